"""`jtl average`: soups, the line between two runs, checkpoints of one run, ensembles."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from jtl import checkpoint, cli, predict, run, tree
from jtl.averaging import ensemble, ingredients, weights
from jtl.train import train

CONFIG = {
    **tiny.CONFIG,
    'data': {'name': 'digits', 'val': 0.2, 'eval_batch_size': 100},
    'model': {'name': 'mlp', 'hidden': (12,)},
    'steps': 30,
    'eval_every': 15,
    'checkpoint_every': 10,
    'keep_last': 2,
    'optim': {'name': 'sgd', 'lr': 0.3, 'schedule': 'constant'},
}
NOISES = (0.9, 0.7, 1.5, 0.8, 0.6, 1.0)  # of the runs of a soup, none of them in order
MODEL = 'model/model.json'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A run on digits, `source`; `tuned`, which goes on from it; and copies of `tuned` with noise on every weight."""
    folder = tmp_path_factory.mktemp('average')
    train(CONFIG, folder / 'source', quiet=True)
    more = {**CONFIG, 'init': str(folder / 'source'), 'model': {}, 'seed': 1, 'steps': 60}
    train({**more, 'load': {'head': 'keep'}}, folder / 'tuned', quiet=True)
    tuned = ingredients.read(folder / 'tuned')
    data = ingredients.open_data(tuned)
    for i, noise in enumerate(NOISES):
        put(folder / f'noisy{i}', tuned, data, noisy(i, noise, tuned.run.params))
    return folder


def put(folder, like, data, params, state=None):
    """The folder of a finished run with these parameters."""
    fitted = like.run._replace(params=params, state=state or {})
    bench = weights.Bench(data, 'accuracy', 8, 0)
    found = {split: weights.judged(bench, fitted, split) for split in ('val', 'test')}
    result = {'step': 0, 'seconds': 0.0, 'examples_per_second': None, 'params': like.result['params']}
    result |= {split: {'accuracy': each.values['accuracy']} for split, each in found.items()}
    model = json.loads((like.run.path / 'model' / 'model.json').read_text())
    run.write_finished(folder, like.record, model, '', {}, params, fitted.state, result, found['test'].outputs)


def noisy(seed, noise, params):
    rng = np.random.default_rng(seed)
    return tree.map_paths(lambda path, x: (x + noise * x.std() * rng.normal(size=x.shape)).astype(x.dtype), params)


def edit(folder, to, file, change):
    """A copy of a run whose JSON file says something else."""
    shutil.copytree(folder, to)
    said = json.loads((to / file).read_text())
    change(said)
    (to / file).write_text(json.dumps(said))
    return to


def command(capsys, *arguments):
    """`(status, what it printed, its message)`."""
    capsys.readouterr()
    status = cli.main(['average', *map(str, arguments)])
    said = capsys.readouterr()
    assert 'Traceback' not in said.err
    return status, said.out, said.err


def average(capsys, to, how, *runs):
    """What average.json says of one that was made."""
    status, out, err = command(capsys, *runs, f'--to={to}', f'--how={how}', '--json')
    assert status == 0, err
    assert json.loads(out) == json.loads((to / 'average.json').read_text())
    return json.loads(out)


def params(folder):
    return tree.flatten(run.read(folder).params)


def accuracy(flat, batches):
    """Of the MLP, in NumPy and float64."""
    right = []
    for batch in batches:
        x = batch['image'].reshape(len(batch['image']), -1).astype(np.float64)
        x = np.maximum(x @ flat['backbone/fc1/kernel'] + flat['backbone/fc1/bias'], 0)
        answer = (x @ flat['head/kernel'] + flat['head/bias']).argmax(1)
        right.append((answer == batch['label'])[batch['mask'] > 0])
    return np.concatenate(right).mean()


# Soups.


def test_uniform_is_the_mean_in_float64(place, tmp_path, capsys):
    runs = [place / f'noisy{i}' for i in (1, 4, 3)]
    told = average(capsys, tmp_path / 'soup', 'uniform', *runs)
    each, made = [params(folder) for folder in runs], params(tmp_path / 'soup')
    for path, leaf in made.items():
        expected = np.mean([x[path].astype(np.float64) for x in each], 0).astype(np.float32)
        np.testing.assert_array_equal(leaf, expected)
        assert (leaf != each[0][path]).any()
    assert [row['share'] for row in told['runs']] == [1 / 3] * 3 and told['of'] == 'mean of 3 runs'
    values = [row['val'] for row in told['runs']]
    assert [row['best'] for row in told['runs']] == [value == max(values) for value in values]
    result = json.loads((tmp_path / 'soup' / 'result.json').read_text())
    assert (
        result['test']['accuracy'] == told['test']['accuracy'] and result['val']['accuracy'] == told['val']['accuracy']
    )


def test_an_average_is_compared_with_each_run_by_example(place, tmp_path, capsys):
    runs = [place / 'noisy1', place / 'noisy3']
    told = average(capsys, tmp_path / 'soup', 'uniform', *runs)
    load = lambda folder: np.load(folder / 'predictions.npz')
    own = load(tmp_path / 'soup')
    right = own['logits'].argmax(1) == own['label']
    for folder, row in zip(runs, told['runs']):
        theirs = load(folder)
        difference = right.mean() - (theirs['logits'].argmax(1) == theirs['label']).mean()
        assert row['versus']['difference'] == pytest.approx(difference, abs=1e-12) and difference != 0
        assert row['versus']['low'] <= difference <= row['versus']['high'] and row['versus']['mcnemar'][0] <= 1


def test_greedy_keeps_what_brute_force_keeps(place, tmp_path, capsys):
    runs = [place / f'noisy{i}' for i in range(len(NOISES))]
    told = average(capsys, tmp_path / 'soup', 'greedy', *runs)
    each = [{k: v.astype(np.float64) for k, v in params(folder).items()} for folder in runs]
    batches = list(ingredients.open_data(ingredients.read(place / 'tuned')).plain('val'))
    alone = [accuracy(flat, batches) for flat in each]
    kept, best = [], -1.0
    for i in sorted(range(len(runs)), key=lambda i: (-alone[i], i)):
        soup = {path: sum(each[k][path] for k in [*kept, i]) / (len(kept) + 1) for path in each[0]}
        if accuracy(soup, batches) >= best:
            kept, best = [*kept, i], accuracy(soup, batches)
    assert 2 <= len(kept) < len(runs) and kept != sorted(kept)  # there was something to choose
    assert [row['share'] for row in told['runs']] == [(i in kept) / len(kept) for i in range(len(runs))]
    assert [row['val'] for row in told['runs']] == alone and told['val']['accuracy'] == best >= max(alone)
    for path, leaf in params(tmp_path / 'soup').items():
        np.testing.assert_allclose(leaf, np.mean([each[k][path] for k in kept], 0), rtol=1e-6, atol=1e-7)


def test_greedy_by_a_metric_that_should_be_low(place, tmp_path, capsys):
    runs = [place / 'noisy2', place / 'noisy1']
    status, out, err = command(capsys, *runs, f'--to={tmp_path / "soup"}', '--how=greedy', '--metric=loss')
    assert status == 0 and f'{runs[0]}: left out' in out, err
    np.testing.assert_array_equal(params(tmp_path / 'soup')['head/kernel'], params(runs[1])['head/kernel'])


def told_by(monkeypatch, value):
    """`mixed` gives the shares alone, and `judged` the accuracy that `value` has for them, or for a run."""
    monkeypatch.setattr(weights, 'mixed', lambda bench, runs, shares: shares)
    judged = lambda bench, fitted, split: weights.Candidate(
        fitted, {'accuracy': value(fitted)}, {}, weights.goodness({'accuracy': value(fitted)}, 'accuracy')
    )
    monkeypatch.setattr(weights, 'judged', judged)
    return weights.Bench(None, 'accuracy', 8, 0)


def test_greedy_keeps_a_run_that_changes_nothing_and_none_that_is_not_finite(monkeypatch):
    a, b, c = (SimpleNamespace(path=name) for name in 'abc')
    bench = told_by(monkeypatch, lambda of: 0.5)
    assert weights.greedy(bench, [a, b, c], print)[0] == [0, 1, 2]
    bench = told_by(monkeypatch, lambda of: np.nan if of in (a, [1, 1]) else 0.5)
    kept, _, soup = weights.greedy(bench, [a, b, c], print)
    assert kept == [1] and soup.run is b


# The line between two.


def test_wise_ends_are_the_runs_themselves(place):
    a, b = (ingredients.read(place / name) for name in ('source', 'tuned'))
    bench = weights.Bench(ingredients.open_data(b), 'accuracy', 8, 0)
    batch = next(bench.data.plain('test'))
    logits = lambda fitted: np.asarray(predict.predictor(fitted)(batch)['logits'])
    for shares, end in (((0.0, 1.0), a), ((1.0, 0.0), b)):
        made = weights.mixed(bench, (b.run, a.run), shares)
        np.testing.assert_array_equal(logits(made), logits(end.run))
    between = weights.mixed(bench, (b.run, a.run), (0.3, 0.7))
    for path, leaf in tree.flatten(between.params).items():
        mine, yours = (tree.flatten(x.run.params)[path].astype(np.float64) for x in (a, b))
        np.testing.assert_allclose(leaf, 0.7 * mine + 0.3 * yours, rtol=1e-6, atol=1e-8)


def test_wise_chooses_by_validation_and_shows_the_line(place, tmp_path, capsys):
    told = average(capsys, tmp_path / 'wise', 'wise', place / 'source', place / 'tuned')
    values = [row['val']['accuracy'] for row in told['curve']]
    assert [row['alpha'] for row in told['curve']] == [i / 10 for i in range(11)] and len(set(values)) > 2
    best = [i for i, value in enumerate(values) if value == max(values)]
    chosen = min(best, key=lambda i: (abs(i - 5), i))
    assert told['alpha'] == chosen / 10 and told['val'] == told['curve'][chosen]['val']
    a, b, made = (params(folder) for folder in (place / 'source', place / 'tuned', tmp_path / 'wise'))
    for path, leaf in made.items():
        expected = (1 - told['alpha']) * a[path].astype(np.float64) + told['alpha'] * b[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-8)
    for row, name in zip(told['runs'], ('source', 'tuned')):
        result = json.loads((place / name / 'result.json').read_text())
        assert row['test'] == result['test']['accuracy'] and row['val'] == result['val']['accuracy']
    assert (tmp_path / 'wise' / 'wise.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize('best, chosen', [(range(11), 5), ((4, 6), 4), ((0, 7), 7), ((10,), 10)])
def test_wise_takes_of_equals_the_one_nearest_to_the_middle(best, chosen, monkeypatch):
    bench = told_by(monkeypatch, lambda shares: float(round(10 * shares[0]) in best))  # (alpha, 1 - alpha)
    assert weights.curve(bench, None, None)[1] == chosen


def test_wise_takes_a_run_on_other_data_and_says_so(place, tmp_path, capsys):
    train({**CONFIG, 'data': {**CONFIG['data'], 'val': 0.3}, 'steps': 2}, tmp_path / 'before', quiet=True)
    status, out, err = command(capsys, tmp_path / 'before', place / 'tuned', f'--to={tmp_path / "w"}', '--how=wise')
    assert status == 0 and f'Note: {tmp_path / "before"} was trained on other data' in out, err
    assert re.search(r'alpha += \d', out) is not None and 'chosen' in out


# The checkpoints of one run.


@pytest.mark.parametrize('more, steps', [((), [50, 60]), (('--from=60',), None), (('--from=20',), [50, 60])])
def test_swa_is_the_mean_of_the_checkpoints(more, steps, place, tmp_path, capsys):
    there = checkpoint.steps(place / 'tuned' / 'checkpoints')
    assert there[-2:] == [50, 60]  # and perhaps the best by validation
    status, out, err = command(capsys, place / 'tuned', f'--to={tmp_path / "swa"}', '--how=swa', *more)
    if steps is None:
        assert status == 2 and 'takes two checkpoints at least' in err and "config.optim.schedule='constant'" in err
        return
    assert status == 0, err
    steps = steps if not more else there
    each = [checkpoint.load(place / 'tuned' / 'checkpoints', s, ('params',))[0]['params'] for s in steps]
    for path, leaf in params(tmp_path / 'swa').items():
        expected = np.mean([tree.flatten(x)[path].astype(np.float64) for x in each], 0).astype(np.float32)
        np.testing.assert_array_equal(leaf, expected)
    assert f'Checkpoints of steps {", ".join(map(str, steps))}.' in out


# Ensembles.


def test_ensemble_is_the_mean_of_logits(place, tmp_path, capsys):
    edit(place / 'noisy1', tmp_path / 'other', MODEL, lambda m: m['model'].update(hidden=[13]))  # of no soup
    runs = [place / 'noisy3', tmp_path / 'other', place / 'source']
    told = average(capsys, tmp_path / 'ensemble', 'ensemble', *runs)
    with np.load(tmp_path / 'ensemble' / 'predictions.npz') as made, np.load(runs[0] / 'predictions.npz') as first:
        logits = np.mean([np.load(folder / 'predictions.npz')['logits'].astype(np.float64) for folder in runs], 0)
        np.testing.assert_allclose(made['logits'], logits, rtol=1e-6)
        assert told['test']['accuracy'] == (logits.argmax(1) == made['label']).mean() and set(made) == {
            'index',
            'label',
            'logits',
        }
        np.testing.assert_array_equal(made['index'], first['index'])
    assert not (tmp_path / 'ensemble' / 'config.json').exists()  # no run
    assert all(row['versus'] for row in told['runs'])


def test_ensemble_logits_by_hand():
    each = np.array([[[1.0, 2.0]], [[3.0, -2.0]], [[2.0, 3.0]]], np.float32)
    np.testing.assert_array_equal(ensemble.logits(each), [[2.0, 1.0]])


# BatchNorm.


@pytest.fixture(scope='module')
def normalised(tmp_path_factory):
    """A small ResNet; `all1`, `all2` with noise on all of it, statistics too; `head1`, `head2` on the head alone."""
    folder = tmp_path_factory.mktemp('normalised')
    tiny.pictures(folder / 'data', {'bright': 160, 'dark': 90}, each=23)
    data = {'name': f'folder:{folder / "data"}', 'val': 0.2, 'test': 0.2}
    config = {**CONFIG, 'data': data, 'model': {'name': 'resnet', 'stages': (1,), 'width': 4}, 'steps': 1}
    train({**config, 'seed': 1}, folder / 'source', quiet=True)  # the pictures lie by class
    source = ingredients.read(folder / 'source')
    data, whole, state = ingredients.open_data(source), source.run.params, source.run.state
    for seed in (1, 2):
        put(folder / f'all{seed}', source, data, noisy(seed, 0.2, whole), noisy(seed, 0.2, state))
        put(folder / f'head{seed}', source, data, {**whole, 'head': noisy(seed, 0.2, whole['head'])}, state)
    return folder


def test_uniform_computes_the_statistics_anew(normalised, tmp_path, capsys):
    """The stem's, by NumPy; deeper ones are in tests/models/test_statistics.py."""
    told = average(capsys, tmp_path / 'soup', 'uniform', normalised / 'all1', normalised / 'all2')
    made = run.read(tmp_path / 'soup')
    kernel = made.params['backbone']['stem']['conv']['kernel'].astype(np.float64)  # [3, 3, 3, C]
    data = ingredients.open_data(ingredients.read(tmp_path / 'soup'))
    sums, N = np.zeros((2, 4)), 0
    for batch in weights.shuffled(data, 8, 1):  # the runs' batch size and seed
        n = int(batch['mask'].sum())
        x = np.pad(batch['image'][:n].astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = sum(x[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))  # [n, 8, 8, C]
        sums, N = sums + n * np.stack([y.mean((0, 1, 2)), y.var((0, 1, 2))]), N + n
    found = made.state['model']['batch_stats']['backbone']['stem']['bn']
    np.testing.assert_allclose(np.stack([found['mean'], found['var']]), sums / N, rtol=1e-4)
    assert data.sizes['train'] == N and told['statistics'] == f'computed anew from {N} training examples'
    status, values = predict.evaluate(made)
    assert status == 'test' and values['accuracy'] == told['test']['accuracy']


def test_statistics_that_all_runs_share_stand_still(normalised, tmp_path, capsys):
    told = average(capsys, tmp_path / 'soup', 'uniform', normalised / 'head1', normalised / 'head2')
    before, after = (tree.flatten(run.read(f).state) for f in (normalised / 'source', tmp_path / 'soup'))
    assert told['statistics'] is None and before
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf)


def test_shuffled_passes_over_all_once_in_even_batches_that_mix_the_classes(normalised):
    data = ingredients.open_data(ingredients.read(normalised / 'all1'))
    index, rows, classes, shapes = data.parts['train'][1], [], [], set()
    label = {x.tobytes(): y for x, y in zip(data.inputs['train'](index, None)['image'], data.labels['train'][index])}
    for batch in weights.shuffled(data, 8, 0):
        real = batch['image'][batch['mask'] > 0]
        rows += [x.tobytes() for x in real]
        classes.append({int(label[x.tobytes()]) for x in real})
        shapes.add(batch['image'].shape)
        assert len(real) in (len(batch['mask']), len(batch['mask']) - 1) and len(real) <= 8
    assert sorted(rows) == sorted(label) and len(shapes) == 1
    assert classes == [{0, 1}] * len(classes)  # in the order of the folder most would be of one


# What is written, and what is refused.


def test_an_average_is_a_run_that_other_commands_take(place, tmp_path, capsys):
    told = average(capsys, tmp_path / 'soup', 'uniform', place / 'noisy1', place / 'noisy4')
    assert cli.main(['eval', str(tmp_path / 'soup'), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['accuracy'] == told['test']['accuracy']
    start = {**CONFIG, 'model': {}, 'init': str(tmp_path / 'soup'), 'load': {'head': 'keep'}, 'steps': 1}
    on = train({**start, 'optim': {'name': 'sgd', 'lr': 1e-12}}, tmp_path / 'on', quiet=True)
    assert on['test']['accuracy'] == told['test']['accuracy']
    record = json.loads((tmp_path / 'soup' / 'config.json').read_text())
    assert record['command'].startswith('jtl average ')
    assert record['data'] == ingredients.read(place / 'tuned').record['data']
    assert record['weights_from'] == [str(place / 'noisy1'), str(place / 'noisy4')]
    assert 'head/kernel  12×10  mean of 2 runs' in (tmp_path / 'soup' / 'params.txt').read_text()


def test_an_interrupted_command_leaves_nothing_that_looks_finished(place, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for name, left in (('judged', False), ('save', True)):
        with monkeypatch.context() as patch:
            patch.setattr(*((weights, 'judged') if name == 'judged' else (checkpoint.Writer, 'save')), interrupted)
            status, _, err = command(capsys, place / 'source', place / 'tuned', f'--to={tmp_path / name}')
        assert status == 130 and (tmp_path / name).exists() == left
    assert (
        command(capsys, tmp_path / 'save', place / 'tuned', f'--to={tmp_path / "n"}')[2].count('has not finished') == 1
    )


def test_average_refuses_what_cannot_be_averaged(place, tmp_path, capsys):
    a, b = place / 'source', place / 'tuned'
    renamed = edit(b, tmp_path / 'renamed', MODEL, lambda m: m['classes'].__setitem__(3, 'drei'))
    turned = edit(b, tmp_path / 'turned', MODEL, lambda m: m['classes'].reverse())
    many = edit(b, tmp_path / 'many', MODEL, lambda m: m.update(multi_label=True))
    grey = edit(b, tmp_path / 'grey', MODEL, lambda m: m['preprocess'].update(mean=[0.4]))
    lora = edit(b, tmp_path / 'lora', MODEL, lambda m: m['model'].update(lora={'rank': 2}))
    other = edit(b, tmp_path / 'other', 'config.json', lambda c: c.update(data='0123'))
    few = edit(b, tmp_path / 'few', 'config.json', lambda c: (c.update(data='1'), c['config']['data'].update(val=0.3)))
    changed = [edit(f, tmp_path / f'{f.name}2', 'config.json', lambda c: c.update(data='2')) for f in (a, b)]
    nameless = [
        edit(
            f,
            tmp_path / f'{f.name}3',
            'config.json',
            lambda c: (c.update(data=''), c['config']['data'].update(name='')),
        )
        for f in (a, b)
    ]
    half = edit(b, tmp_path / 'half', 'config.json', lambda c: None)
    (half / 'result.json').unlink()
    bare = edit(b, tmp_path / 'bare', 'config.json', lambda c: None)
    shutil.rmtree(bare / 'checkpoints')
    untested = edit(b, tmp_path / 'untested', 'config.json', lambda c: None)
    (untested / 'predictions.npz').unlink()
    edit(b, tmp_path / 'wide', MODEL, lambda m: m['model'].update(hidden=[13]))
    train({**CONFIG, 'data': {**CONFIG['data'], 'val': 0.0}, 'steps': 1}, tmp_path / 'unjudged', quiet=True)
    shutil.copytree(tmp_path / 'unjudged', tmp_path / 'unjudged2')
    before = sorted(p.name for p in tmp_path.iterdir())
    for runs, more, said in (
        ((a, renamed), (), 'different classes: 3 only in .*source; drei only in .*renamed'),
        ((a, renamed), ('--how=ensemble',), 'different classes'),
        ((a, turned), (), 'different classes: in another order'),
        ((a, many), (), 'has one label for each example, .*many has several labels'),
        ((a, tmp_path / 'wide'), (), r'different models: backbone hidden=\(12,\) and \(13,\).*--how=ensemble'),
        ((a, tmp_path / 'wide'), ('--how=wise',), 'different models'),
        ((a, grey), (), r'different preprocessing: preprocess.mean: \[0.5\] -> \[0.4\]'),
        ((a, lora), (), r'has adapters \(lora\).*--how=ensemble takes them'),
        ((lora,), ('--how=swa',), r'has adapters \(lora\)'),
        ((a, other), (), 'different data or splits'),
        ((a, few), ('--how=greedy',), r'different data or splits: config.data.val: 0.2 -> 0.3'),
        (changed, (), 'is not the data that it was trained on'),
        (nameless, (), 'made by jtl convert and has no data'),
        ((a, half), (), 'has not finished'),
        ((a, half), ('--how=ensemble',), 'has not finished'),
        ((a, bare), (), 'kept no checkpoint of step'),
        ((a, untested), ('--how=ensemble',), 'has no predictions.npz'),
        ((tmp_path / 'unjudged', tmp_path / 'unjudged2'), ('--how=greedy',), 'none .config.data.val'),
        ((a, tmp_path / 'unjudged'), ('--how=wise',), 'none .config.data.val'),
        ((a,), (), 'takes two runs at least; --how=swa'),
        ((a,), ('--how=ensemble',), 'takes two runs at least'),
        ((a,), ('--how=wise',), 'takes two runs, the one before'),
        ((a, b), ('--how=swa',), 'takes one run; 2 given'),
        ((a, a), (), 'is named twice'),
        ((a, b), ('--how=unifrom',), "did you mean 'uniform'"),
        ((a, b), ('--metric=acuracy',), "did you mean 'accuracy'"),
        ((a, b), ('--how=ensemble', '--metric=auroc'), 'unknown for these 10 classes'),
        ((a, b), ('--from=3',), 'is for --how=swa'),
        ((a, place / 'nothing'), (), 'not the folder of a run'),
    ):
        status, out, err = command(capsys, *runs, f'--to={tmp_path / "new"}', *more)
        assert status == 2 and re.search(said, err) and not out, (runs, more, err)
    status, _, err = command(capsys, a, b, f'--to={half}')
    assert status == 2 and 'exists already' in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_soup_of_runs_from_different_weights_is_noted(place, tmp_path, capsys):
    status, out, _ = command(capsys, place / 'source', place / 'tuned', f'--to={tmp_path / "soup"}')
    assert status == 0 and 'Note: these runs did not all start from the same pretrained weights' in out
    status, out, _ = command(capsys, place / 'noisy1', place / 'tuned', f'--to={tmp_path / "same"}')
    assert status == 0 and 'Note' not in out
