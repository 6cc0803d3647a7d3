"""The loop and its one step, on real (tiny) models and the bundled digits."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtl import checkpoint, optim, train, tree
from jtl.method import Method
from jtl.plan import make_method
from jtl.train import TrainState

HEAD_ONLY = (('head/.*', 1.0), ('.*', None))
EVERYTHING = (('.*', 1.0),)
RESNET = {'name': 'resnet', 'stages': [1, 1], 'width': 8}
VIT = {'name': 'vit', 'patch': 4, 'depth': 2, 'width': 32, 'heads': 2}
CONFIG = {
    'data': {'name': 'digits', 'val': 0.2, 'labels_per_class': 5},
    'model': {'name': 'mlp', 'hidden': (16,)},
    'batch_size': 10,
    'steps': 12,
    'eval_every': 4,
    'log_every': 3,
    'optim': {'name': 'adamw', 'lr': 3e-3},
    'report': False,
}


def images(batch=8, seed=0, side=8):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.normal(size=(batch, side, side, 3)).astype(np.float32),
        'label': rng.integers(0, 10, batch).astype(np.int32),
    }


def setup(model, rules, **section):
    """`(method, phase, optimiser's halves, a function that makes a fresh TrainState)`."""
    method = make_method(json.dumps(model), '{"name": "supervised"}', 10)
    static, rates = optim.optimiser(100, **{'name': 'adamw', 'lr': 1e-2, 'weight_decay': 0.1, 'clip': 1.0, **section})
    params, state = train.compile_init(method)(jax.random.key(0), images())
    (phase,) = optim.make_phases(params, ((None, rules),), static.decay_rules)

    def fresh():
        p = jax.tree.map(jnp.copy, params)
        ema = optim.split(jax.tree.map(jnp.copy, params), phase)[0] if static.ema else ()
        opt_state = optim.transform(phase, p, static, 0.0, 0.0).init(p)
        return TrainState(jnp.int32(0), jax.random.key(1), p, jax.tree.map(jnp.copy, state), opt_state, ema)

    return method, phase, static, rates, fresh


def bits(node):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.flatten(node).items()}


# The step.


@pytest.mark.parametrize('model', [RESNET, VIT], ids=['resnet', 'vit'])
def test_head_only_step_costs_no_more_than_the_forward_pass(model):
    # with clipping, weight decay and the gradient norm on; one compiled step without a scan, as cost_analysis counts
    method, phase, static, rates, fresh = setup(model, HEAD_ONLY)
    ts, batch = fresh(), images(32, side=16 if model is RESNET else 8)
    step = train.compile_step(method, phase, static).lower(ts, batch, rates).compile().cost_analysis()['flops']
    forward = jax.jit(method.predict).lower(ts.params, ts.state, batch).compile().cost_analysis()['flops']
    everything = setup(model, EVERYTHING)[1]
    whole = train.compile_step(method, everything, static)
    ts = ts._replace(opt_state=optim.transform(everything, ts.params, static, 0.0, 0.0).init(ts.params))
    whole = whole.lower(ts, batch, rates).compile().cost_analysis()['flops']
    assert step <= 1.1 * forward
    assert whole >= 2.5 * forward  # so the measure does see a backward pass


@pytest.mark.parametrize('model', [RESNET, VIT], ids=['resnet', 'vit'])
def test_frozen_leaves_and_statistics_keep_their_bits_over_20_steps(model):
    method, phase, static, rates, fresh = setup(model, HEAD_ONLY)
    ts, step = fresh(), train.compile_step(method, phase, static)
    before = bits(ts.params), bits(ts.state)
    for seed in range(20):
        ts, _ = step(ts, images(seed=seed), rates)
    after = bits(ts.params), bits(ts.state)
    changed = {path for path in after[0] if after[0][path] != before[0][path]}
    assert changed == {'head/kernel', 'head/bias'}
    assert before[1] == after[1]
    assert (len(before[1]) > 0) == (model is RESNET)


def test_thawed_batch_norm_moves_its_statistics():
    method, phase, static, rates, fresh = setup(RESNET, (('(head|backbone/stem)/.*', 1.0), ('.*', None)))
    ts = fresh()
    before = bits(ts.state)
    ts, _ = train.compile_step(method, phase, static)(ts, images(), rates)
    changed = {path for path, value in bits(ts.state).items() if value != before[path]}
    assert changed == {'model/batch_stats/backbone/stem/bn/mean', 'model/batch_stats/backbone/stem/bn/var'}


def linear_method():
    """Least squares in the dtype of its parameters, with a state that counts the calls."""

    def init(rng, batch):
        return {'head': {'kernel': jax.random.normal(rng, (5, 3), jnp.float64)}}, {'calls': jnp.zeros(())}

    def loss(params, state, batch, rng, step):
        error = batch['features'] @ params['head']['kernel'] - batch['label']
        return (error**2).mean(), ({'calls': state['calls'] + 1}, {'metrics': {'largest': jnp.abs(error).max()}})

    return Method(init=init, loss=loss, predict=lambda p, s, b: {'logits': b['features'] @ p['head']['kernel']})


def test_accumulation_over_4_is_one_big_batch_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        method = linear_method()
        params, state = method.init(jax.random.key(0), None)
        (phase,) = optim.make_phases(params, ((None, EVERYTHING),), optim.DECAY_KERNELS)
        ends = []
        for parts in (1, 4):
            static, rates = optim.optimiser(50, name='adamw', lr=0.1, weight_decay=0.01, clip=0.5, accumulate=parts)
            p = jax.tree.map(jnp.copy, params)
            opt_state = optim.transform(phase, p, static, 0.0, 0.0).init(p)
            ts = TrainState(jnp.int32(0), jax.random.key(1), p, jax.tree.map(jnp.copy, state), opt_state, ())
            step = train.compile_step(method, phase, static)
            batches = np.random.default_rng(1)
            for _ in range(10):
                batch = {'features': batches.normal(size=(16, 5)), 'label': batches.normal(size=(16, 3))}
                ts, measured = step(ts, batch, rates)
            ends.append((ts.params['head']['kernel'], measured['loss'], float(ts.state['calls'])))
        del rng
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-10)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-10)
    assert (ends[0][2], ends[1][2]) == (10, 40)  # state went through every part


def test_rng_differs_by_step_and_by_part():
    def loss(params, state, batch, rng, step):
        return params['x'].sum(), (state, {'metrics': {'draw': jax.random.uniform(rng)}})

    grads = train.accumulate(Method(None, loss, None).grads(loss), 2)
    params, batch = {'x': jnp.ones(3)}, {'label': jnp.zeros(4)}
    _, _, measured = grads(params, {}, batch, jax.random.key(0), 0)
    draws = [jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)) for i in range(2)]
    np.testing.assert_allclose(measured['draw'], np.mean(draws), rtol=1e-6)
    assert draws[0] != draws[1]


# The loop.


def run(tmp_path, name='run', **changes):
    return train.train({**CONFIG, **changes}, tmp_path / name, quiet=True), tmp_path / name


def rows(folder, split):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [row for row in lines if row['split'] == split]


def test_train_leaves_the_folder_that_it_promises(tmp_path):
    result, folder = run(tmp_path, report=True)
    files = {p.name for p in folder.iterdir()}
    expected = {'config.json', 'params.txt', 'metrics.jsonl', 'result.json', 'checkpoints', 'predictions.npz', 'model'}
    assert expected | {'report.html', 'curves.png', 'confusion.png'} <= files
    assert [row['step'] for row in rows(folder, 'train')] == [3, 6, 9, 12]
    assert [row['step'] for row in rows(folder, 'val')] == [4, 8, 12]
    config = json.loads((folder / 'config.json').read_text())
    assert config['config']['optim'] == CONFIG['optim'] and config['data'] and config['version']
    saved = json.loads((folder / 'result.json').read_text())
    assert saved['test']['accuracy'] == result['test']['accuracy']
    assert saved['params'] == {'total': 64 * 16 + 16 + 16 * 10 + 10, 'trainable': 64 * 16 + 16 + 16 * 10 + 10}
    with np.load(folder / 'predictions.npz') as predictions:
        hits = predictions['logits'].argmax(1) == predictions['label']
        assert hits.mean() == result['test']['accuracy']
        assert len(np.unique(predictions['index'])) == len(hits)


def test_train_learns(tmp_path):
    # 10 classes: chance is 10 %; with 20 labels a class an MLP is far above, whatever the seed
    result, _ = run(tmp_path, steps=150, eval_every=50, data={**CONFIG['data'], 'labels_per_class': 20})
    assert result['test']['accuracy'] > 0.75
    assert result['test']['majority'] < 0.2


def test_train_keeps_the_best_checkpoint_by_validation_and_the_last(tmp_path):
    # a rate that rises to ruin: the best validation loss comes before the end
    optimiser = {'name': 'sgd', 'lr': 30.0, 'schedule': 'constant', 'warmup': 40}
    result, folder = run(tmp_path, steps=40, optim=optimiser, select='loss')
    losses = {row['step']: row['loss'] for row in rows(folder, 'val')}
    best = min(losses, key=losses.get)
    assert best < 40
    assert result['step'] == best
    np.testing.assert_allclose(result['val']['loss'], losses[best], rtol=1e-6)
    assert checkpoint.steps(folder / 'checkpoints') == [best, 40]


def test_patience_stops_early(tmp_path):
    optimiser = {'name': 'sgd', 'lr': 30.0, 'schedule': 'constant', 'warmup': 40}
    result, folder = run(tmp_path, steps=400, optim=optimiser, select='loss', patience=2)
    steps = [row['step'] for row in rows(folder, 'val')]
    assert steps[-1] == result['step'] + 2 * 4
    assert checkpoint.steps(folder / 'checkpoints') == [result['step'], steps[-1]]


def test_the_test_split_decides_nothing(tmp_path, monkeypatch):
    evaluate, seen = train.evaluate, []

    def watched(plan, ts, split, **kwargs):
        seen.append(split)
        return evaluate(plan, ts, split, **kwargs)

    monkeypatch.setattr(train, 'evaluate', watched)
    run(tmp_path)
    assert seen == ['val', 'val', 'val', 'val', 'val', 'test']  # a check of the metric's name, three, then the end


def test_without_validation_the_last_step_counts(tmp_path):
    result, folder = run(tmp_path, data={**CONFIG['data'], 'val': 0.0})
    assert result['step'] == 12 and 'val' not in result
    assert rows(folder, 'val') == []


def test_same_seed_same_bits_and_other_seed_other_bits(tmp_path):
    optimiser = {'name': 'adamw', 'lr': 3e-3, 'ema': 0.9}
    model = {'name': 'mlp', 'hidden': (16,), 'head': {'dropout': 0.5}}
    data = {**CONFIG['data'], 'augment': (('pad_crop', 1),)}
    ends = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        _, folder = run(tmp_path, name, seed=seed, optim=optimiser, model=model, data=data)
        parts, _ = checkpoint.load(folder / 'checkpoints', 12)
        ends.append({k: v for k, v in bits(parts).items() if not k.startswith('loop')})
    assert ends[0] == ends[1]
    assert ends[0]['params/head/kernel'] != ends[2]['params/head/kernel']


def test_runs_that_differ_in_seed_rate_or_labels_share_the_compiled_step(tmp_path):
    run(tmp_path, 'a')
    before = train.compile_step.cache_info().misses, train.compile_predict.cache_info().misses
    run(tmp_path, 'b', seed=3, optim={'name': 'adamw', 'lr': 0.1}, steps=8)
    result, _ = run(tmp_path, 'c', data={**CONFIG['data'], 'labels_per_class': 7})
    assert (train.compile_step.cache_info().misses, train.compile_predict.cache_info().misses) == before
    assert result['compile_seconds'] < 0.5


def test_phases_head_then_all(tmp_path):
    _, folder = run(tmp_path, phases=((6, HEAD_ONLY), (None, EVERYTHING)), checkpoint_every=6, select=None)
    assert 'frozen → ×1' in (folder / 'params.txt').read_text()
    parts, _ = checkpoint.load(folder / 'checkpoints', 12)
    counts = {k: int(v) for k, v in tree.flatten(parts['opt_state']).items() if k.endswith('count')}
    assert sorted(set(counts.values())) == [6, 12]  # the head's slots were kept, the backbone's began at step 6


def test_ema_is_what_is_evaluated(tmp_path):
    from jtl.predict import evaluate
    from jtl.run import read

    result, folder = run(tmp_path, optim={'name': 'adamw', 'lr': 0.05, 'ema': 0.99})
    fitted = read(folder)
    parts, _ = checkpoint.load(folder / 'checkpoints', result['step'])
    np.testing.assert_array_equal(fitted.params['head']['kernel'], parts['ema']['head']['kernel'])
    assert not np.allclose(parts['ema']['head']['kernel'], parts['params']['head']['kernel'])
    assert evaluate(fitted)[1]['accuracy'] == result['test']['accuracy']


def test_init_from_a_former_run_starts_with_its_weights(tmp_path):
    result, source = run(tmp_path, 'source', data={'name': 'letters'})
    _, folder = run(tmp_path, 'target', init=str(source), rules=HEAD_ONLY, model={})
    old = checkpoint.load(source / 'checkpoints', result['step'])[0]['params']
    new = checkpoint.load(folder / 'checkpoints', 12)[0]['params']
    np.testing.assert_array_equal(old['backbone']['fc1']['kernel'], new['backbone']['fc1']['kernel'])
    assert old['head']['kernel'].shape == (16, 52) and new['head']['kernel'].shape == (16, 10)
    table = (folder / 'params.txt').read_text()
    assert str(source) in table and 'fresh' in table and '170 trained, 1,040 frozen' in table


def test_bfloat16_computes_with_float32_parameters(tmp_path):
    _, folder = run(tmp_path, model={**CONFIG['model'], 'dtype': 'bfloat16'})
    parts, _ = checkpoint.load(folder / 'checkpoints', 12)
    assert {leaf.dtype for leaf in jax.tree.leaves(parts['params'])} == {np.dtype(np.float32)}


def test_class_weights_survive_in_the_state(tmp_path):
    run_ = functools.partial(run, method={'name': 'supervised', 'class_weights': 'balanced'})
    result, folder = run_(tmp_path)
    parts, _ = checkpoint.load(folder / 'checkpoints', 12)
    np.testing.assert_allclose(parts['state']['class_weight'], 1.0)  # 5 labels of each class: balanced already


def test_the_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train.train(CONFIG, 'here', quiet=True)
    assert checkpoint.steps(tmp_path / 'here' / 'checkpoints')[-1] == 12
    assert json.loads((tmp_path / 'here' / 'result.json').read_text())['step'] == result['step']


def test_of_equal_validation_scores_the_latest_is_kept_but_patience_runs_out():
    host = train.Host()
    improved = [
        train.improves(host, 'accuracy', {'accuracy': value}, step) for step, value in enumerate((0.5, 0.5, 0.4))
    ]
    assert improved == [True, True, False]
    assert (host.best_step, host.best_value, host.waited) == (1, 0.5, 2)
