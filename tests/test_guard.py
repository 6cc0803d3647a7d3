"""The guard against negative transfer, on runs of a second: what it trains, what it says, with what status it ends."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from sklearn.datasets import load_digits

from jtl import launch, metrics, tree
from jtl.config import override, parse
from jtl.guard import Run, choose, guard, lay_out, line, options
from jtl.main import main
from jtl.paired import HELPED, HURT, OPEN, commonest, right, versus
from jtl.plan import make_plan
from jtl.run import read
from jtl.train import train

MLP = {'model': {'name': 'mlp', 'hidden': (16,)}, 'batch_size': 64, 'log_every': 100, 'report': False}
SOURCE = {**MLP, 'optim': {'name': 'adamw', 'lr': 0.01}, 'seed': 7}  # no seed of a target: heads would start alike
TARGET = {**MLP, 'model': {}, 'steps': 60, 'eval_every': 20, 'optim': {'name': 'adamw', 'lr': 0.01}}
DIGITS, FEW = {'name': 'digits', 'val': 0.2}, {'name': 'digits', 'val': 0.2, 'labels_per_class': 3}


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JTL_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Weights: of the target's own task; of another task, is a digit bright or dark; of no training."""
    folder = tmp_path_factory.mktemp('sources')
    images = load_digits().images.astype(np.uint8)[..., None] * 15
    bright = images.mean((1, 2, 3)) > np.median(images.mean((1, 2, 3)))
    np.savez(folder / 'bright.npz', x=images, y=bright.astype(int), classes=['dark', 'bright'])
    np.savez(  # digits with few to test on
        folder / 'small.npz',
        **{'x_train': images[:1500], 'y_train': load_digits().target[:1500]},
        **{'x_test': images[1500:1524], 'y_test': load_digits().target[1500:1524]},
        classes=[str(i) for i in range(10)],
    )
    np.savez(folder / 'no_test.npz', x_train=images[:400], y_train=load_digits().target[:400],
             x_val=images[400:600], y_val=load_digits().target[400:600])  # fmt: skip
    np.savez(folder / 'several.npz', x=images[:600], y=(load_digits().target[:600, None] % [2, 3, 5] == 0).astype(int))
    train({**SOURCE, 'data': DIGITS, 'steps': 200, 'eval_every': 200}, folder / 'digits', quiet=True)
    data = {'name': f'npz:{folder}/bright.npz', 'val': 0.2}
    train({**SOURCE, 'data': data, 'steps': 100, 'eval_every': 100}, folder / 'bright', quiet=True)
    nothing = {'optim': {'name': 'sgd', 'lr': 1e-6}, 'steps': 1}
    train({**SOURCE, 'data': DIGITS, **nothing}, folder / 'nothing', quiet=True)
    return folder


def helps(sources):
    return {**TARGET, 'data': FEW, 'init': str(sources / 'digits')}


def run_main(config, workdir, *flags):
    path = tiny.write_config(workdir.parent / f'{workdir.name}.py', config)
    return main([f'--config={path}', f'--workdir={workdir}', *flags])


@pytest.fixture(scope='module')
def helped(sources, tmp_path_factory):
    """`(workdir, exit status)` of a guarded run."""
    workdir = tmp_path_factory.mktemp('helped') / 'run'
    return workdir, run_main(helps(sources), workdir, '--config.guard.seeds=1')


def found_in(workdir):
    return json.loads((workdir / 'guard.json').read_text())


def accuracy(folder, split='test'):
    return json.loads((folder / 'result.json').read_text())[split]['accuracy']


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())['config']


# What it says, and the exit status.


def test_guard_says_that_transfer_helped(helped):
    # the same task with a hundred times the labels
    workdir, status = helped
    found = found_in(workdir)
    assert status == 0 and found['verdict'] == 'helped'
    assert found['scratch']['low'] > 0.1 and found['scratch']['mcnemar'][0] < 1e-6
    assert found['majority']['verdict'] == 'helped' and found['examples'] == 797 and found['seeds'] == [0]


def test_guard_says_that_transfer_hurt_and_exits_with_3(sources, tmp_path, capsys):
    # a frozen backbone that learnt to tell bright from dark, and plenty of labels that it keeps from being used
    config = {**TARGET, 'data': DIGITS, 'init': str(sources / 'bright'), 'rules': tiny.HEAD}
    config |= {'optim': {'name': 'adamw', 'lr': 0.1}, 'guard': {'seeds': 1, 'rates': (0.3, 1.0)}}
    assert run_main(config, tmp_path / 'run') == launch.HURT == 3
    said, found = capsys.readouterr().out, found_in(tmp_path / 'run')
    assert found['verdict'] == 'hurt' and found['scratch']['high'] < -0.05
    assert found['probe']['lr'] != 0.1 or found['probe']['difference'] == 0  # at the same rate it is the run itself
    assert said.splitlines()[-1] == found['line'] and found['line'].startswith('guard: transfer hurt: ')
    assert run_main(config, tmp_path / 'run') == 3  # nothing is trained again, and the verdict stays


def test_guard_says_that_it_cannot_be_told(sources, tmp_path):
    # weights that are as good as random, tested on 24 examples: p < 0.05 takes 6 on which they differ, all one way
    config = {**TARGET, 'data': {'name': f'npz:{sources}/small.npz', 'val': 0.2}, 'init': str(sources / 'nothing')}
    config |= {'steps': 150, 'eval_every': 50, 'guard': {'seeds': 1, 'rates': (1.0,)}}
    assert run_main(config, tmp_path / 'run') == 0
    found = found_in(tmp_path / 'run')
    assert found['verdict'] == 'cannot be told' and 'whether transfer helped cannot be told: ' in found['line']
    assert found['examples'] == 24 and found['majority']['verdict'] == 'helped'


def test_guard_reports_what_the_runs_report(helped):
    workdir, _ = helped
    found = found_in(workdir)
    assert found['transfer']['accuracy'] == pytest.approx(accuracy(workdir), abs=1e-12)
    for kind in ('scratch', 'probe'):
        folder = workdir / 'guard' / kind / f'lr={found[kind]["lr"]:g}' / 'seed=0'
        assert found[kind]['accuracy'] == pytest.approx(accuracy(folder), abs=1e-12)
        difference = accuracy(workdir) - accuracy(folder)
        assert found[kind]['difference'] == pytest.approx(difference, abs=1e-12)
    assert found['majority']['accuracy'] == json.loads((workdir / 'result.json').read_text())['test']['majority']


# What it trains.


def test_guard_leaves_the_run_as_it_is_without(helped, sources, tmp_path):
    workdir, _ = helped
    train(helps(sources), tmp_path / 'alone', quiet=True)
    alone, guarded = (tree.flatten(read(folder).params) for folder in (tmp_path / 'alone', workdir))
    assert alone.keys() == guarded.keys()
    for path, leaf in alone.items():
        np.testing.assert_array_equal(leaf, guarded[path])
    assert tiny.rows(tmp_path / 'alone') == tiny.rows(workdir)


def test_guard_of_a_finished_run_trains_the_baselines_alone(helped, sources, tmp_path):
    train(helps(sources), tmp_path / 'run', quiet=True)
    before = tiny.files(tmp_path / 'run')
    assert run_main(helps(sources), tmp_path / 'run', '--config.guard.seeds=1') == 0
    after = tiny.files(tmp_path / 'run')
    assert before.items() <= after.items()
    assert {Path(p).parts[0] for p in after.keys() - before.keys()} == {'guard', 'guard.json'}
    assert found_in(tmp_path / 'run') == found_in(helped[0])


def test_guard_gives_every_run_the_same_budget_and_data(helped, sources):
    workdir, _ = helped
    own = config_of(workdir)
    runs = {
        str(p.parent.relative_to(workdir / 'guard')): config_of(p.parent)
        for p in workdir.glob('guard/*/**/config.json')
    }
    assert set(runs) == {f'{kind}/lr={lr}/seed=0' for kind in ('scratch', 'probe') for lr in ('0.01', '0.03', '0.1')}
    for name, config in runs.items():
        kind, lr, _ = name.split('/')
        differ = {key for key in own if own[key] != config[key]}
        assert config['optim'] == {**own['optim'], 'lr': float(lr.removeprefix('lr='))}
        assert config['guard'] is False and differ <= {'guard', 'load', 'rules', 'optim'}
        assert config['load'] == ({'fresh': True} if kind == 'scratch' else {})
    tables = {name: (workdir / 'guard' / name / 'params.txt').read_text() for name in runs}
    assert all('frozen' in re.search(r'backbone/fc1/kernel.*', tables[n])[0] for n in runs if n.startswith('probe'))
    assert all('1,210 trained, 0 frozen' in tables[n] for n in runs if n.startswith('scratch'))


def test_guard_leaves_out_from_scratch_what_holds_on_to_the_source(sources, tmp_path):
    values = override(helps(sources), {'method': {'label_smoothing': 0.1, 'l2sp': {}, 'lpft': {}, 'sam': {'rho': 0.1}}})
    runs = lay_out(values, make_plan(parse(values)), tmp_path, 1, (1.0,), {'scratch': {}, 'probe': {}})
    methods = {each.kind: each.values['method'] for each in runs}
    assert methods['scratch'] == {'label_smoothing': 0.1, 'sam': {'rho': 0.1}}
    assert methods['probe'] == methods['transfer'] == values['method']


def test_guard_freezes_the_backbone_of_the_probe_and_starts_scratch_elsewhere(helped, sources):
    workdir, _ = helped
    kernel = lambda folder: tree.flatten(read(folder).params)['backbone/fc1/kernel']
    theirs = kernel(sources / 'digits')
    np.testing.assert_array_equal(kernel(workdir / 'guard/probe/lr=0.01/seed=0'), theirs)
    scratch = kernel(workdir / 'guard/scratch/lr=0.01/seed=0')
    assert abs(np.corrcoef(scratch.ravel(), theirs.ravel())[0, 1]) < 0.3
    assert abs(np.corrcoef(kernel(workdir).ravel(), theirs.ravel())[0, 1]) > 0.8


def test_guard_shows_the_same_pictures_to_the_model_from_scratch(tmp_path):
    # mean, spread, size and crop come with the weights, and so does the model; random crops need the size
    tiny.pictures(tmp_path / 'a', side=10)
    tiny.pictures(tmp_path / 'b', side=13, seed=1)
    base = {**tiny.CONFIG, 'eval_every': 3}
    preprocess = {'size': 8, 'mean': (0.3, 0.4, 0.5), 'std': (0.2,), 'crop': 0.8, 'interpolation': 'bilinear'}
    train({**base, 'data': {'name': f'folder:{tmp_path}/a'}, 'preprocess': preprocess}, tmp_path / 'source', quiet=True)
    data = {'name': f'folder:{tmp_path}/b', 'augment': (('random_resized_crop', (0.5, 1.0)),)}
    config = {**base, 'data': data, 'model': {'head': {'init': 'zeros'}}, 'init': str(tmp_path / 'source'), 'seed': 3}
    guard(config, tmp_path / 'run', seeds=1, rates=(1.0,))
    model = lambda folder: json.loads((folder / 'model' / 'model.json').read_text())
    expected = model(tmp_path / 'run')
    assert expected['preprocess']['crop'] == 0.8 and expected['model']['hidden'] == [8]
    assert model(tmp_path / 'run/guard/scratch/lr=0.1/seed=3') == expected
    assert model(tmp_path / 'run/guard/probe/lr=0.1/seed=3') == expected


def test_guard_with_seeds_trains_each_again_and_bootstraps_over_them(helped, sources, tmp_path):
    workdir = tmp_path / 'run'
    train(helps(sources), workdir, quiet=True)
    result, found = guard(helps(sources), workdir, rates=(1.0,))
    assert result['test']['accuracy'] == accuracy(workdir) and found['seeds'] == [0, 1, 2]
    others = [workdir / 'guard' / 'transfer' / f'seed={s}' for s in (1, 2)]
    assert found['transfer']['by_seed'] == pytest.approx([accuracy(workdir), *map(accuracy, others)], abs=1e-12)
    assert len({*found['transfer']['by_seed']}) > 1 and len(found['scratch']['mcnemar']) == 3
    assert not (workdir / 'guard' / 'transfer' / 'seed=0').exists()
    assert '797 test examples, 3 seeds, McNemar p < 0.05 in 3 of them' in found['line']
    assert found['verdict'] == HELPED


def test_guard_takes_what_differs_in_a_baseline(sources, tmp_path):
    flags = ['--config.guard.scratch.optim.lr=0.05', '--config.guard.rates=(1, 2)', '--config.guard.confidence=0.9']
    flags += ['--config.guard.seeds=1']
    assert run_main({**helps(sources), 'steps': 5}, tmp_path / 'run', *flags) == 0
    found = found_in(tmp_path / 'run')
    assert [rate['lr'] for rate in found['scratch']['rates']] == [0.05] and not found['scratch']['edge']
    assert [rate['lr'] for rate in found['probe']['rates']] == [0.01, 0.02] and found['confidence'] == 0.9


def test_guard_of_several_labels_compares_their_shares(sources, tmp_path):
    data = {'name': f'npz:{sources}/several.npz'}
    config = {**TARGET, 'data': data, 'init': str(sources / 'digits'), 'steps': 20}
    result, found = guard(config, tmp_path / 'run', seeds=1, rates=(1.0,))
    assert found['scratch']['mcnemar'] is None and 'McNemar' not in found['line']
    assert found['transfer']['accuracy'] == pytest.approx(result['test']['accuracy'], abs=1e-6)
    assert 0.5 < found['majority']['accuracy'] < 1


def test_guard_without_a_test_split_compares_on_validation_and_says_so(sources, tmp_path):
    config = {**TARGET, 'data': {'name': f'npz:{sources}/no_test.npz'}, 'init': str(sources / 'digits')}
    result, found = guard(config, tmp_path / 'run', seeds=2, rates=(1.0,))
    assert 'test' not in result and found['split'] == 'val' and found['examples'] == 200
    assert found['transfer']['accuracy'] == pytest.approx(
        np.mean([result['val']['accuracy'], accuracy(tmp_path / 'run/guard/transfer/seed=1', 'val')]), abs=1e-12
    )
    assert '200 validation examples' in found['line'] and 'there is no test split' in found['line']
    with pytest.raises(Exception, match='cannot compare runs without checkpoints'):
        guard({**config, 'checkpoint_every': 0}, tmp_path / 'other')


def test_guard_without_validation_data_has_one_learning_rate_and_says_so(sources, tmp_path):
    config = {**helps(sources), 'data': {**FEW, 'val': 0.0}, 'steps': 20}
    _, found = guard(config, tmp_path / 'run', seeds=1)
    assert [rate['lr'] for rate in found['scratch']['rates']] == [0.01] and found['verdict'] == HELPED
    assert 'no validation data to choose its learning rate by' in found['line']


def test_guard_goes_on_at_a_learning_rate_that_diverges(sources, tmp_path, capsys):
    config = {**helps(sources), 'steps': 5, 'optim': {'name': 'sgd', 'lr': 0.1}}
    _, found = guard(config, tmp_path / 'run', seeds=1, rates=(1.0, 1e31))
    assert [(rate['lr'], rate['val'] is None) for rate in found['scratch']['rates']] == [(0.1, False), (1e30, True)]
    assert 'Checkpoints of earlier steps are kept' in capsys.readouterr().out
    with pytest.raises(Exception, match=r'scratch diverged at every learning rate tried \(1e\+30\)'):
        guard(config, tmp_path / 'run', seeds=1, rates=(1.0,), scratch={'optim': {'lr': 1e30}})


# Stopped and started again.


def test_guard_stopped_anywhere_goes_on_to_the_same_verdict(sources, tmp_path, monkeypatch, capsys):
    config = {
        **helps(sources),
        'steps': 4,
        'eval_every': 2,
        'checkpoint_every': 1,
        'guard': {'seeds': 2, 'rates': (1.0,)},
    }
    _, expected = guard({**config, 'guard': False}, tmp_path / 'whole', seeds=2, rates=(1.0,))
    calls, stops = [0], 0

    def asked():
        calls[0] += 1
        return calls[0] % 25 == 0  # a run asks about 29 times

    monkeypatch.setattr('jtl.main.on_signal', lambda: asked)
    while not (tmp_path / 'cut' / 'guard.json').exists():
        assert run_main(config, tmp_path / 'cut') == 0 and stops < 60
        stops += 'goes on' in capsys.readouterr().out
    assert stops >= 4  # in the run, and in its baselines
    assert found_in(tmp_path / 'cut') == metrics.finite(expected)
    for path in (tmp_path / 'whole').rglob('predictions.npz'):
        same = tmp_path / 'cut' / path.relative_to(tmp_path / 'whole')
        with np.load(path) as a, np.load(same) as b:
            assert all(np.array_equal(a[key], b[key]) for key in ('index', 'label', 'logits'))


# What it refuses, before anything is written.


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'guard': True, 'init': None, 'model': {'name': 'mlp'}}, r'config\.guard: config\.init names no weights'),
        ({'guard': 3}, r'config\.guard: 3 should be bool'),
        ({'guard': {'seedz': 3}}, r"unknown key config\.guard\.seedz: did you mean 'seeds'"),
        ({'guard': {'stop': None}}, r'unknown key config\.guard\.stop'),
        ({'guard': {'seeds': 'many'}}, r"config\.guard\.seeds: 'many' should be int"),
        ({'guard': {'seeds': 0}}, r'config\.guard\.seeds: 0 should be at least 1'),
        ({'guard': {'rates': ()}}, r'config\.guard\.rates: \(\) should be multiples'),
        ({'guard': {'rates': (0.0, 1.0)}}, r'config\.guard\.rates: \(0\.0, 1\.0\) should be'),
        ({'guard': {'confidence': 95.0}}, r'config\.guard\.confidence: 95\.0 should be between'),
        ({'guard': {'scratch': {'steps': 600}}}, r"config\.guard\.scratch: 'steps' may not differ"),
        ({'guard': {'probe': {'optim': {'lrr': 1.0}}}}, r"probe: unknown key config\.optim\.lrr: did you mean 'lr'"),
        (
            {'guard': {'scratch': {'optim': {'lr': 'high'}}}},
            r"config\.guard\.scratch\.optim\.lr: 'high' should be float",
        ),
        ({'guard': {'scratch': {'optim': {'warmup': 900}}}}, r'scratch: config\.optim\.warmup: 900'),
        ({'guard': {'scratch': {'method': {'mixxup': 0.1}}}}, r'scratch: unknown key config\.method\.mixxup'),
        ({'guard': {'probe': {'method': {'mixxup': 0.1}}}}, r'probe: unknown key config\.method\.mixxup'),
        ({'guard': True, 'epochs': 1}, r'give one of config\.steps and config\.epochs'),
    ],
)
def test_guard_refuses(changes, message, sources, tmp_path, capsys):
    assert run_main({**helps(sources), **changes}, tmp_path / 'run') == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and 'Traceback' not in said, said
    assert not (tmp_path / 'run').exists()


def test_guard_refuses_a_sweep(sources, tmp_path, capsys):
    more = "\n\ndef sweep(config):\n    yield 'a', {}\n    yield 'b', {'guard': True}\n"
    path = tiny.write_config(tmp_path / 'config.py', helps(sources), more)
    assert main([f'--config={path}', f'--workdir={tmp_path / "run"}']) == 2
    assert 'run b: config.guard: guards a single run; a sweep has baselines' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_options_are_those_of_the_config(sources):
    config = helps(sources)
    assert options(config) is None
    assert options({**config, 'guard': True}) == options({**config, 'guard': {}}) == {}
    assert options({**config, 'guard': {'seeds': 2}}) == {'seeds': 2}


# The parts.


def test_choose_takes_the_rate_that_validation_likes_best():
    val = {0.1: (0.5, 0.9), 0.3: (0.8, 0.8), 1.0: (0.99, None)}  # by seed; the means are 0.7 and 0.8; one diverged
    runs = [Run('transfer', 0.1, s, Path(f't{s}'), {}) for s in (0, 1)]
    runs += [Run(k, lr, s, Path(f'{k}{lr}{s}'), {}) for k in ('scratch', 'probe') for lr in val for s in (0, 1)]
    results = {r.folder: {'val': {'accuracy': val[r.lr][r.seed]}} for r in runs if val[r.lr][r.seed] is not None}
    chosen = choose(runs, results)
    assert {kind: [(r.lr, r.seed) for r in some] for kind, some in chosen.items()} == {
        'transfer': [(0.1, 0), (0.1, 1)],
        'scratch': [(0.3, 0), (0.3, 1)],
        'probe': [(0.3, 0), (0.3, 1)],
    }


def test_right_counts_as_the_evaluator_does():
    logits = np.array([[2.0, 1.0], [1.0, 2.0], [np.nan, 2.0], [np.inf, 0.0]])
    assert right(logits, np.array([0, 0, 1, 0])).tolist() == [1, 0, 0, 0]
    assert right(logits[:3], np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).tolist() == [0.5, 0.5, 0.5]


def test_commonest_is_the_class_that_training_had_most_of():
    label = np.array([0, 0, 0, 1, 1, 2])
    assert commonest(label, 2 / 6).tolist() == [0, 0, 0, 1, 1, 0]
    assert commonest(label, None).tolist() == [1, 1, 1, 0, 0, 0]
    assert commonest(np.array([[1, 0], [1, 0], [0, 0]]), None).tolist() == [1, 1, 0.5]


def test_versus_asks_mcnemar_as_well_of_one_seed():
    # 30 examples, 5 that a alone has right: p = 2 / 2^5 = 0.0625, while the interval starts above 0
    a, b = np.ones((1, 30)), np.repeat([0.0, 1.0], (5, 25))[None]
    found = versus(a, b, 0.95)
    assert found['low'] > 0 and found['mcnemar'] == [0.0625] and found['verdict'] == OPEN
    assert versus(a, b, 0.93)['verdict'] == HELPED and versus(b, a, 0.93)['verdict'] == HURT
    six = np.repeat([0.0, 1.0], (6, 24))[None]
    assert versus(a, six, 0.95)['verdict'] == HELPED  # p = 2 / 2^6
    assert versus(a[:, :19], six[:, :19], 0.95)['verdict'] == OPEN  # too few examples
    assert versus(np.repeat(a, 3, 0), np.repeat(b, 3, 0), 0.95)['verdict'] == HELPED  # several: the interval alone


def test_line_is_one_line():
    side = {'accuracy': 0.78, 'difference': 0.133, 'low': 0.091, 'high': 0.175, 'mcnemar': [2e-9]}
    rates = {'edge': True, 'lr': 0.1, 'rates': [{'lr': 0.01, 'val': 0.7}, {'lr': 0.1, 'val': 0.8}]}
    found = {
        'split': 'test',
        'examples': 300,
        'seeds': [0],
        'confidence': 0.95,
        'transfer': {'accuracy': 0.913},
        'scratch': {**side, **rates},
        'probe': {**side, 'verdict': OPEN, 'accuracy': 0.927, 'difference': -0.014, 'low': -0.03, 'high': 0.002},
        'majority': {'accuracy': 0.5, 'verdict': 'helped'},
    }
    assert line('helped', found) == (
        'guard: transfer helped: 91.3 % against 78.0 % from scratch (+13.3 points [9.1, 17.5], 300 test examples, '
        '1 seed, McNemar p = 2e-09); a frozen probe did as well, for all that can be told: 92.7 % (-1.4 points '
        '[-3.0, 0.2]); majority class 50.0 %; scratch may do better still, its best learning rate being 0.1 of 0.01, '
        '0.1; one seed tells two models apart, not what others would give.'
    )
    found['seeds'], found['scratch']['mcnemar'] = [0, 1], [0.01, 0.2]
    found['majority'] = {'accuracy': 0.9, 'verdict': 'cannot be told'}
    assert line('hurt', found).endswith('majority class 90.0 %, which the run is not shown to beat.')
