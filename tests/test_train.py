"""The loop, on real (tiny) models and the bundled digits."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jtl import checkpoint, train, tree
from jtl.config import parse
from jtl.errors import UserError

HEAD_ONLY = (('head/.*', 1.0), ('.*', None))
EVERYTHING = (('.*', 1.0),)
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
    assert checkpoint.steps(folder / 'checkpoints') == [best, 36, 40]  # and the last two


def test_patience_stops_early(tmp_path):
    optimiser = {'name': 'sgd', 'lr': 30.0, 'schedule': 'constant', 'warmup': 40}
    result, folder = run(tmp_path, steps=400, optim=optimiser, select='loss', patience=2)
    steps = [row['step'] for row in rows(folder, 'val')]
    assert steps[-1] == result['step'] + 2 * 4
    assert checkpoint.steps(folder / 'checkpoints') == steps[-3:]  # the best, and the last two


def test_a_loss_that_is_not_finite_is_found_within_log_every_steps(tmp_path):
    # the gradient of step 1 times 1e30 overflows in the forward pass of step 2; nothing but the log looks before 12
    optimiser = {'name': 'sgd', 'lr': 1e30}
    with pytest.raises(train.Diverged, match='^step 2: training (loss|grad_norm) is (nan|inf)'):
        run(tmp_path, optim=optimiser, log_every=4, eval_every=12)
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
    assert checkpoint.steps(tmp_path / 'run' / 'checkpoints') == []


def test_the_test_split_decides_nothing(tmp_path, monkeypatch):
    evaluate, seen = train.evaluate, []

    def watched(plan, ts, split, *args, **kwargs):
        seen.append(split)
        return evaluate(plan, ts, split, *args, **kwargs)

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
        ends.append({k: v.tobytes() for k, v in tree.flatten(parts).items() if not k.startswith('loop')})
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


@pytest.mark.parametrize(
    'change',
    [
        {'phase': 1},
        {'phase': -1},
        {'phase': 'x'},
        {'best': 5},
        {'best': [[1]]},
        {'best': [[1, 'x']]},
        {'best': [['1', 0.5]]},
        {'waited': 'x'},
        {'pending': 'x'},
        {'window': 7},
        {'window': [7]},
        {'window': [{'loss': 'x'}]},
        {'window': [{'loss': 1.0}, {'loss': 1.0, 'foo': 1.0}]},
        {'seconds': 'x'},
        {'foo': 1},
        None,
    ],
    ids=str,
)
def test_read_host_refuses_what_was_not_written_by_this_version(change):
    host = train.Host('x', best=[[3, 0.5]], window=[{'loss': 1.0}])
    progress = json.loads(json.dumps(dataclasses.asdict(host)))
    assert train.read_host(progress, 1, 'here') == host
    with pytest.raises(UserError, match=r'^here is of another version of jtl: progress\.json: '):
        train.read_host({**progress, **change} if change else {}, 1, 'here')


def looks(values, **config):
    """`(which of these validation values were to be saved, the host's account)`."""
    host = train.Host()
    config = parse({**CONFIG, 'select': 'accuracy', **config})
    saved = [train.improves(host, config, {config.select: value}, step) for step, value in enumerate(values)]
    return saved, host


def test_of_equal_validation_scores_the_latest_is_kept_but_patience_runs_out():
    saved, host = looks((0.5, 0.5, 0.4))
    assert saved == [True, True, False]
    assert (host.best, host.best_step, host.waited) == ([[1, 0.5]], 1, 2)


def test_keep_best_keeps_that_many():
    saved, host = looks((0.5, 0.1, 0.3, 0.4, 0.2), keep_best=2)
    assert saved == [True, True, True, True, False]
    assert (host.best, host.waited) == ([[0, 0.5], [3, 0.4]], 4)


def test_a_validation_value_that_is_not_a_number_is_never_the_best():
    for select, values in (('accuracy', (0.5, 0.6)), ('loss', (0.6, 0.5)), ('robust_loss', (0.6, 0.5))):
        nan = float('nan')
        saved, host = looks((nan, values[0], nan, values[1]), select=select)
        assert saved == [False, True, False, True]
        assert (host.best, host.waited) == ([[3, values[1]]], 0)
