"""DELTA: the penalty against NumPy on the maps that Flax itself captures; attention against channels taken out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.methods import delta as d
from jtl.methods.delta import delta
from jtl.methods.supervised import supervised
from jtl.models import build, norm

B, K = 6, 3
RNG = np.random.default_rng(0)
LABEL = np.array([0, 1, 2, 0, 1, 2], np.int32)
IMAGE = (RNG.normal(size=(B, 8, 8, 3)) + LABEL[:, None, None, None]).astype(np.float32)
BATCH = {'image': IMAGE, 'label': LABEL, 'mask': np.float32([1, 1, 1, 1, 1, 0]), 'index': np.arange(B)}
MODEL = build('resnet', K, stages=(1, 1), width=4)
PLAIN = supervised(MODEL)
ARGS = (jax.random.key(1), jnp.int32(0))
LAYERS = ('stage1/block0', 'stage2/block0')


@pytest.fixture(scope='module')
def moved():
    """`(params and state as they came, others)`, statistics as well."""
    params, state = jit(PLAIN.init)(jax.random.key(0), BATCH)
    nudge = lambda x: x + RNG.uniform(0.05, 0.3, x.shape).astype(np.float32)
    return (params, state), (jax.tree.map(nudge, params), jax.tree.map(nudge, state))


def head(x, y, K):
    """Some head, in the place of the one that is solved for, which `test_lpft` is about."""
    assert x.shape == (10, 8) and sorted(set(y)) == list(range(K)) == [0, 1, 2]  # padding is left out
    return RNG.normal(size=(8, K)).astype(np.float32), np.zeros(K, np.float32)


@pytest.fixture(scope='module')
def prepared(moved):
    (params, state), other = moved
    method = delta(PLAIN, model=MODEL, alpha=0.7, beta=0.3)
    more = {**BATCH, 'image': IMAGE + RNG.normal(size=IMAGE.shape).astype(np.float32)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(d, 'solve', head)
        _, state = method.prepare(params, state, [BATCH, more], jax.random.key(0))
    return method, other[0], {**other[1], 'delta': state['delta']}


@pytest.fixture(scope='module')
def compiled(prepared):
    """The gradient functions without and with DELTA."""
    method, params, state = prepared
    return [jit(m.grads(m.loss)).lower(params, state, BATCH, *ARGS).compile() for m in (PLAIN, method)]


def captured(params, state, train):
    """What the blocks give, as Flax's own `capture_intermediates` has it."""
    variables = {'params': params, **state['model']}
    _, seen = MODEL.apply(variables, BATCH, train, capture_intermediates=True, mutable=['batch_stats', 'intermediates'])
    node = lambda name: seen['intermediates']['backbone'][name.split('/')[0]][name.split('/')[1]]['__call__'][0]
    return {name: node(name) for name in LAYERS}


def test_delta_adds_the_distance_of_feature_maps(moved, prepared, compiled):
    (params0, state0), _ = moved
    method, params, state = prepared
    look = jit(lambda: (captured(params, state, True), captured(params0, state0, False)))
    (ours, source), expected = look(), 0.0
    weights = tree.flatten(state['delta']['weight'])
    assert tuple(weights) == LAYERS
    for name, weight in weights.items():
        a, b = (np.asarray(maps[name], np.float64) for maps in (ours, source))
        C, weight = a.shape[-1], np.asarray(weight, np.float64)
        np.testing.assert_allclose(weight.sum(), 1, rtol=1e-6)
        assert weight.max() > 1.1 * weight.min()
        each = ((a - b) ** 2).mean((1, 2)) @ weight * C  # [B]
        expected += 0.7 / 2 * each[:5].mean()  # the sixth row is padding
    expected += 0.3 / 2 * sum((np.asarray(w, np.float64) ** 2).sum() for w in params['head'].values())
    (_, _, plain), (_, kept, metrics) = (grads(params, state, BATCH, *ARGS) for grads in compiled)
    np.testing.assert_allclose(metrics['delta'], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss'], plain['loss'] + expected, rtol=1e-5)
    assert metrics['accuracy'] == plain['accuracy']
    assert method.predict is PLAIN.predict
    jax.tree.map(np.testing.assert_array_equal, kept['delta'], state['delta'])


def test_the_gradient_of_delta_agrees_with_finite_differences_in_float64(prepared):
    method, params, state = prepared
    with jax.enable_x64():
        wide = lambda x: jnp.asarray(np.asarray(x), jnp.float64) if jnp.asarray(x).dtype == jnp.float32 else x
        params, state, batch = (jax.tree.map(wide, of) for of in (params, state, BATCH))
        model = build('resnet', K, stages=(1, 1), width=4)
        model = model.clone(backbone=model.backbone.clone(dtype='float64'))
        inner = supervised(model)
        both = delta(inner, model=model, alpha=0.7, beta=0.3)
        added = jit(jax.value_and_grad(lambda p: both.loss(p, state, batch, *ARGS)[1][1]['metrics']['delta']))
        slope = added(params)[1]
        way = jax.tree.map(lambda w: jnp.asarray(RNG.normal(size=w.shape)), params)
        at = lambda e: float(added(jax.tree.map(lambda w, v: w + e * v, params, way))[0])
        expected = (at(1e-6) - at(-1e-6)) / 2e-6
        found = sum(float((g * v).sum()) for g, v in zip(*map(jax.tree.leaves, (slope, way))))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_source_costs_a_forward_pass_and_no_gradient(prepared, compiled):
    _, params, state = prepared
    plain, ours = (grads.cost_analysis()['flops'] for grads in compiled)
    forward = jit(lambda p, s: PLAIN.predict(p, s, BATCH)['features']).lower(params, state).compile()
    assert 0.9 < (ours - plain) / forward.cost_analysis()['flops'] < 1.3


def test_taylor_is_the_slope_that_removal_follows(monkeypatch):
    x = RNG.normal(size=(40, 4)).astype(np.float32)
    y = (x[:, 0] + 0.3 * RNG.normal(size=40) > 0).astype(np.int32)
    x[:, 1] = 0  # nothing is lost with it
    batches = [{'features': x, 'label': y, 'mask': np.ones(40, np.float32)}]
    model = build('mlp', 2, hidden=())
    maps = lambda batch: model.apply({'params': {}}, batch, train=False, method='features')
    kernel, bias = np.float32([[-1, 1], [2, 3], [0.3, -0.2], [0, 0.1]]), np.float32([0.1, -0.1])
    monkeypatch.setattr(d, 'solve', lambda *args: (kernel, bias))
    taylor = d.rises(maps, batches, {'features': 4}, 'taylor')['features']
    removal = d.rises(maps, batches, {'features': 4}, 'removal')['features']

    def loss(gate):
        logits = (x * gate).astype(np.float64) @ kernel + bias
        return -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(40), y].mean()

    base, eye = loss(np.ones(4)), np.eye(4)
    np.testing.assert_allclose(removal, [loss(1 - eye[c]) - base for c in range(4)], atol=1e-5)
    np.testing.assert_allclose(taylor, [-(loss(1 + 1e-4 * e) - loss(1 - 1e-4 * e)) / 2e-4 for e in eye], atol=1e-5)
    assert removal[0] == removal.max() > 0.1 and abs(removal[1]) < 1e-6


def test_removal_takes_one_channel_of_a_block_out(moved, monkeypatch):
    kernel, bias = RNG.normal(size=(8, K)).astype(np.float32), np.float32([0.2, 0, -0.2])
    monkeypatch.setattr(d, 'solve', lambda *args: (kernel, bias))
    (params, state), _ = moved
    source = {'params': {'backbone': params['backbone']}, **state['model']}
    maps = lambda batch: MODEL.apply(source, batch, train=False, method='features')
    found = d.rises(maps, [{**BATCH, 'mask': np.ones(B, np.float32)}], {'stage2/block0': 8}, 'removal')
    # features are the mean of this block's map, so that a channel less is a feature less
    features = np.asarray(jit(maps)(BATCH), np.float64)

    def loss(x):
        logits = x @ kernel + bias
        return -(logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(B), LABEL].mean()

    expected = [loss(features * (np.arange(8) != c)) - loss(features) for c in range(8)]
    np.testing.assert_allclose(found['stage2/block0'], expected, atol=1e-5)


def test_attention_is_a_softmax_of_what_is_lost():
    weight = d.soft(np.array([0.0, 1.0, 5.0]))
    z = (np.array([0, 1, 5]) - 2) / np.sqrt(14 / 3) / 5
    np.testing.assert_allclose(weight, np.exp(z) / np.exp(z).sum(), rtol=1e-6)
    np.testing.assert_allclose(d.soft(np.ones(4)), 0.25)


def test_a_sample_is_drawn_from_all_batches_and_padded():
    def batch(i, real):
        return {
            'label': np.full(4, i),
            'mask': np.float32([1] * real + [0] * (4 - real)),
            'index': 4 * i + np.arange(4),
        }

    sample = d.Sample(10, jax.random.key(0))
    for i in range(50):
        sample.look(batch(i, 4 if i else 3))
    batches = sample.batches()
    assert [b['mask'].sum() for b in batches] == [4, 4, 2] and len(batches[2]['label']) == 4
    kept = np.concatenate([b['index'][b['mask'] > 0] for b in batches])
    assert len(set(kept)) == 10 and 3 not in kept and kept.max() > 100
    few = d.Sample(10, jax.random.key(0))
    few.look(batch(0, 3))
    assert len(few.batches()) == 1 and sorted(few.batches()[0]['index']) == [0, 1, 2]


def test_delta_chooses_layers():
    names = ['stem', 'stage1/block0', 'stage1/block1', 'stage2/block0', 'features']
    assert d.chosen(names, None) == ['stage1/block1', 'stage2/block0']
    vit = [*(f'block{i}' for i in range(12)), 'features']
    assert d.chosen(vit, None) == ['block2', 'block5', 'block8', 'block11']
    assert d.chosen(['block0', 'block1', 'features'], None) == ['block0', 'block1']
    assert d.chosen(['features'], None) == ['features']
    assert d.chosen(names, 'stage1/.*|features') == ['stage1/block0', 'stage1/block1', 'features']
    with pytest.raises(UserError, match=r"layers: 'stage3/.\*' matches no layer"):
        d.chosen(names, 'stage3/.*')


def test_delta_sees_what_the_student_sees_when_pictures_are_mixed(moved):
    (params, state), _ = moved
    mixed = supervised(MODEL, mixup=1.0)
    method = delta(mixed, model=MODEL, alpha=1.0, beta=0.0, attention='uniform', layers='features')
    _, state = method.prepare(params, state, [BATCH], jax.random.key(0))
    with norm.hold_still({'': True}):  # then both are in inference mode, and have the same parameters
        found = jit(method.loss)(params, state, BATCH, *ARGS)[1][1]
    np.testing.assert_allclose(found['metrics']['delta'], 0, atol=1e-10)


def test_delta_overfits_one_batch_and_stays_nearer_to_the_source():
    model, apart = build('mlp', K, hidden=(16,)), {}
    batch = {**BATCH, 'image': IMAGE[:, :2, :2]}
    for alpha in (0.0, 0.5):
        plain = supervised(model)
        method = delta(plain, model=model, alpha=alpha, beta=0.0, attention='uniform')
        params, state = jit(plain.init)(jax.random.key(0), batch)
        params, state = start = method.prepare(params, state, [batch], jax.random.key(0))
        step = jit(method.grads(method.loss))
        np.testing.assert_allclose(step(*start, batch, *ARGS)[2]['delta'], 0, atol=1e-7)
        for _ in range(200):
            grads, state, metrics = step(params, state, batch, *ARGS)
            params = jax.tree.map(lambda w, g: w - 0.3 * g, params, grads)
        assert metrics['accuracy'] == pytest.approx(1.0)  # chance is 1/3
        x, x0 = (plain.predict(p, {}, batch)['features'][:5] for p in (params, start[0]))
        apart[alpha] = float(((x - x0) ** 2).mean())
    assert apart[0.5] < 0.5 * apart[0.0]
    np.testing.assert_allclose(
        method.loss(*start, batch, *ARGS)[0], jit(method.loss)(*start, batch, *ARGS)[0], rtol=1e-6
    )


@pytest.mark.parametrize(
    'options, says',
    [
        ({'alpha': -1.0}, 'alpha'),
        ({'attention': 'tailor'}, "attention: 'tailor'.*did you mean 'taylor'"),
        ({'examples': 1}, 'examples'),
        ({'layers': '('}, 'layers'),
        ({'model': build('resnet', K, remat=True)}, 'watches blocks'),
    ],
)
def test_delta_refuses(options, says):
    with pytest.raises(UserError, match=f'config.method.delta.*{says}'):
        delta(PLAIN, **{'model': MODEL, **options})


def test_delta_refuses_cached_features():
    with pytest.raises(UserError, match='only cached features'):
        delta(PLAIN, model=MODEL).loss({}, {}, {'embedding': np.ones((2, 8))}, *ARGS)
