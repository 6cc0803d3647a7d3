import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.models import build, preprocess
from jtl.models.bert import NAMES

TOKENS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 9, 9, 3, 0]], np.int32)  # 0 is padding
TYPES = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], np.int32)
BATCH = {'tokens': TOKENS, 'token_types': TYPES}
SMALL = {'vocab': 11, 'positions': 7, 'width': 12, 'depth': 2, 'heads': 3, 'mlp': 20}


def shapes_of(name, classes=2, **kwargs):
    model = build(name, classes, **kwargs)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, train=False))['params']


def tiny(**kwargs):
    """Two blocks with random parameters, biases and scales included."""
    model = build('bert', 5, **{**SMALL, **kwargs})
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH, train=False))
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: np.float32(path.endswith('scale') + 0.3 * rng.normal(size=leaf.shape))
    return model, tree.map_paths(draw, variables)


@functools.partial(jit, static_argnames=('model', 'train'))
def features_of(model, variables, batch, train=False, seed=0):
    return model.apply(variables, batch, train, method='features', rngs={'dropout': jax.random.key(seed)})


@pytest.mark.parametrize(
    'name, expected',  # of the published models, without a head; MiniLM without the pooler that the mean does not use
    [
        ('bert_tiny', 4_385_920),
        ('bert_mini', 11_170_560),
        ('bert_small', 28_763_648),
        ('bert_medium', 41_373_184),
        ('bert_base', 109_482_240),
        ('bert_large', 335_141_888),
        ('bert_minilm_l6', 22_713_216 - 147_840),
        ('bert_minilm_l12', 33_360_000 - 147_840),
    ],
)
def test_bert_parameter_count(name, expected):
    assert tree.count(shapes_of(name)['backbone']) == expected


def test_bert_parameter_names():
    params = {path: leaf.shape for path, leaf in tree.flatten(shapes_of('bert', **SMALL)['backbone']).items()}
    assert params['word/embedding'] == (11, 12)
    assert params['position/embedding'] == (7, 12)
    assert params['token_type/embedding'] == (2, 12)
    for name in ('attn/query', 'attn/key', 'attn/value', 'attn/out'):
        assert params[f'block1/{name}/kernel'] == (12, 12) and params[f'block1/{name}/bias'] == (12,)
    assert params['block0/mlp/fc1/kernel'] == (12, 20) and params['block0/mlp/fc2/kernel'] == (20, 12)
    assert params['norm/scale'] == params['block0/norm1/scale'] == params['block1/norm2/bias'] == (12,)
    assert params['pooler/kernel'] == (12, 12)
    expected = {'word', 'position', 'token_type', 'norm', 'block0', 'block1', 'pooler'}
    assert {path.split('/')[0] for path in params} == expected


def bert_reference(params, tokens, types, heads, pool, activation, eps):
    """The forward pass in float64, a text at a time with its padding cut off: what padding must amount to."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    linear = lambda x, q: x @ q['kernel'] + q['bias']
    act = {
        'gelu': lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        'gelu_tanh': lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        'relu': lambda x: np.maximum(x, 0),
    }[activation]

    def norm(x, q):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * q['scale'] + q['bias']

    features = []
    for ids, kinds in zip(tokens, types):
        kinds, ids = kinds[ids != 0], ids[ids != 0]
        z = p['word']['embedding'][ids] + p['token_type']['embedding'][kinds] + p['position']['embedding'][: len(ids)]
        z = norm(z, p['norm'])
        for block in ('block0', 'block1'):
            q = p[block]
            query, key, value = (np.split(linear(z, q['attn'][n]), heads, -1) for n in ('query', 'key', 'value'))
            mixed = []
            for n in range(heads):
                weights = np.exp(query[n] @ key[n].T / math.sqrt(query[n].shape[-1]))
                mixed.append(weights / weights.sum(-1, keepdims=True) @ value[n])
            z = norm(z + linear(np.concatenate(mixed, -1), q['attn']['out']), q['norm1'])
            z = norm(z + linear(act(linear(z, q['mlp']['fc1'])), q['mlp']['fc2']), q['norm2'])
        first = z[0] if pool != 'pooler' else np.tanh(linear(z[0], p['pooler']))
        features.append(z.mean(0) if pool == 'mean' else first)
    return np.stack(features)


@pytest.mark.parametrize(
    'pool, activation, eps',
    [('pooler', 'gelu', 1e-12), ('token', 'gelu_tanh', 1e-12), ('mean', 'relu', 1e-12), ('mean', 'gelu', 0.5)],
)
def test_bert_equals_numpy(pool, activation, eps):
    model, variables = tiny(pool=pool, activation=activation, eps=eps)
    features = features_of(model, variables, BATCH)
    expected = bert_reference(variables['params']['backbone'], TOKENS, TYPES, 3, pool, activation, eps)
    np.testing.assert_allclose(features, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.3  # and it is not nothing


@pytest.mark.parametrize('pool', ['pooler', 'token', 'mean'])
def test_bert_more_padding_changes_nothing(pool):
    model, variables = tiny(pool=pool)
    features = features_of(model, variables, BATCH)
    longer = {key: np.pad(x, ((0, 0), (0, 2))) for key, x in BATCH.items()}
    np.testing.assert_allclose(features_of(model, variables, longer), features, atol=1e-6)
    longer['tokens'][1, -1] = 4  # a token that is not padding does
    assert np.abs(features_of(model, variables, longer)[1] - features[1]).max() > 0.01


def test_bert_norm_keeps_its_digits_far_from_zero():
    """It takes a constant away: 100 on all of a word's numbers, whose squares are rounded to 6e-4, changes nothing."""
    model, variables = tiny()
    word = variables['params']['backbone']['word']['embedding']
    backbone = {**variables['params']['backbone'], 'word': {'embedding': word + np.float32(100)}}
    shifted = features_of(model, {'params': {'backbone': backbone}}, BATCH)
    np.testing.assert_allclose(shifted, features_of(model, variables, BATCH), atol=2e-4)


def test_bert_pad_is_the_id_that_is_told():
    model, variables = tiny(pad=9)
    batch = {'tokens': np.array([[2, 5, 9, 9]], np.int32)}
    short = {'tokens': np.array([[2, 5]], np.int32)}
    expected = features_of(model, variables, short)
    np.testing.assert_allclose(features_of(model, variables, batch), expected, atol=1e-6)
    other, _ = tiny(pad=0)
    assert np.abs(features_of(other, variables, batch) - expected).max() > 0.01


def test_bert_without_token_types_takes_zeros():
    model, variables = tiny()
    plain = features_of(model, variables, {'tokens': TOKENS})
    np.testing.assert_array_equal(plain, features_of(model, variables, {**BATCH, 'token_types': 0 * TYPES}))
    assert np.abs(plain - features_of(model, variables, BATCH)).max() > 0.01


@pytest.mark.parametrize('pool', ['pooler', 'token', 'mean'])
def test_bert_of_padding_alone_is_finite(pool):
    model, variables = tiny(pool=pool)
    empty = {'tokens': np.zeros((2, 4), np.int32)}
    assert np.isfinite(features_of(model, variables, empty)).all()


def test_bert_depth_keeps_the_first_blocks():
    """The tokens after block 0 of two are those of a network of depth 1, whose paths are among those of depth 2."""
    model, variables = tiny(pool='token')
    short = build('bert', 5, **{**SMALL, 'depth': 1, 'pool': 'token'})
    backbone = {key: value for key, value in variables['params']['backbone'].items() if key != 'block1'}
    kept = shapes_of('bert', 5, **{**SMALL, 'depth': 1, 'pool': 'token'})['backbone']
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, backbone)
    _, seen = model.apply(variables, BATCH, False, capture_intermediates=True, mutable=['intermediates'])
    expected = seen['intermediates']['backbone']['block0']['__call__'][0][:, 0]
    np.testing.assert_allclose(features_of(short, {'params': {'backbone': backbone}}, BATCH), expected, atol=1e-5)


def test_bert_dropout_acts_in_training_only():
    model, variables = tiny(dropout=0.5)
    run = lambda train, seed: features_of(model, variables, BATCH, train=train, seed=seed)
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert np.abs(run(True, 0) - run(True, 1)).max() > 0.01
    still, _ = tiny()
    np.testing.assert_array_equal(features_of(still, variables, BATCH, train=True), run(False, 0))


def test_bert_remat_gives_the_same_outputs_and_gradients():
    kept, variables = tiny(depth=1, dropout=0.3)
    remade, _ = tiny(depth=1, dropout=0.3, remat=True)

    def loss(model, v):
        rngs = {'dropout': jax.random.key(0)}
        return (model.apply(v, BATCH, train=True, rngs=rngs)['logits'] ** 2).sum()

    a, b = (tree.flatten(jit(jax.grad(functools.partial(loss, model)))(variables)) for model in (kept, remade))
    assert a.keys() == b.keys()
    atol = 1e-5 * max(np.abs(x).max() for x in a.values())
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)


def test_bert_bfloat16_is_in_every_layer_but_the_head():
    model, variables = tiny(dtype='bfloat16')
    shapes = shapes_of('bert', **SMALL, dtype='bfloat16')
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    run = lambda v: model.apply(v, BATCH, train=False, capture_intermediates=True)[1]['intermediates']['backbone']
    inner = tree.flatten(jax.eval_shape(run, variables))
    layers = {path: leaf.dtype for path, leaf in inner.items() if not path.startswith('__call__')}
    assert len(layers) > 20 and set(layers.values()) == {jnp.dtype('bfloat16')}
    exact, coarse = (features_of(m, variables, BATCH) for m in (tiny()[0], model))
    assert exact.dtype == coarse.dtype == jnp.float32
    assert 1e-5 < np.abs(exact - coarse).max() / np.abs(exact).max() < 0.05  # 8 bits an operation


def test_bert_overfits_one_batch():
    """16 random texts with labels that have nothing to do with them, 4 classes: chance is 25 %, learning is 100 %."""
    rng = np.random.default_rng(0)
    batch = {'tokens': rng.integers(1, 11, (16, 6)).astype(np.int32)}
    labels = np.arange(16) % 4
    model = build('bert', 4, **{**SMALL, 'depth': 1})
    params = jit(model.init, static_argnames='train')(jax.random.key(0), batch, train=False)['params']
    tx = optax.adam(1e-2)

    def loss_fn(params):
        logits = model.apply({'params': params}, batch, train=True)['logits']
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    @jit
    def step(params, opt_state):
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss, (logits.argmax(-1) == labels).mean()

    opt_state = tx.init(params)
    for _ in range(80):
        params, opt_state, loss, accuracy = step(params, opt_state)
    assert accuracy == 1.0
    assert loss < np.log(4) / 10  # chance is log 4


def test_bert_too_many_tokens_or_none_are_refused():
    model, variables = tiny()
    for length in (0, 8):
        with pytest.raises(UserError, match=f'texts of {length} tokens.*positions knows 1 to 7'):
            model.apply(variables, {'tokens': np.ones((2, length), np.int32)}, False)


def test_bert_without_tokens_names_what_is_needed():
    with pytest.raises(UserError, match="Bert reads 'tokens', and the batch has only: image, token_types"):
        build('bert', 2).init(jax.random.key(0), {'image': 0, 'token_types': TYPES}, train=False)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'name': 'bert_bse'}, "'bert_bse'.*did you mean 'bert_base'"),
        ({'pool': 'men'}, "config.model.pool 'men': did you mean 'mean'"),
        ({'activation': 'gelu_tan'}, "did you mean 'gelu_tanh'"),
        ({'width': 10, 'heads': 4}, 'width 10 .* 4 heads'),
        ({'heads': 0}, 'config.model.heads: 0 should be at least 1'),
        ({'mlp': 0}, 'config.model.mlp: 0 should be at least 1'),
        ({'dept': 1}, "config.model.dept: did you mean 'depth'"),
    ],
)
def test_bert_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(**{'name': 'bert', 'num_classes': 2, **kwargs})


def test_bert_preprocess_leaves_pictures_as_they_are():
    for name in NAMES:
        assert preprocess(name)['size'] is None
    with pytest.raises(UserError, match='bert_huge'):
        preprocess('bert_huge')


def test_bert_spare_parameters_are_those_of_the_pooler():
    whole, less = (tree.flatten(shapes_of('bert', pool=pool)) for pool in ('pooler', 'mean'))
    spare = build('bert', 2, pool='mean').backbone.SPARE
    assert set(whole) - set(less) == {path for path in whole if any(re.fullmatch(regex, path) for regex in spare)}
    assert set(less) < set(whole)
