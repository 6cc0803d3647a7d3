"""Features of a frozen backbone: what the model gives, once for each example."""

import json
import re

import numpy as np
import pytest
from tiny import CONFIG, pictures

from jtl import tree
from jtl.cli import main
from jtl.errors import UserError
from jtl.probe import features
from jtl.probe.features import ensure, open_source
from jtl.train import train

NETWORK = {'name': 'resnet', 'stages': (1, 1), 'width': 4}
EIGHTS = {'val': 0.0, 'test': 0.25}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A former run: the URI of its weights."""
    folder = tmp_path_factory.mktemp('source') / 'run'
    train({**CONFIG, 'model': NETWORK}, folder, quiet=True)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    pictures(tmp_path / 'pictures')  # 24 of them, two classes
    return f'folder:{tmp_path / "pictures"}'


@pytest.fixture
def passes(monkeypatch):
    """The rows that backbone passes were made for, in the order they were."""
    seen, compute = [], features._compute

    def watched(of, split, layers, pool, epoch, quiet, rows):
        seen.append((split, epoch, rows.tolist()))
        return compute(of, split, layers, pool, epoch, quiet, rows)

    monkeypatch.setattr(features, '_compute', watched)
    return seen


def test_features_are_what_the_model_gives(source, data, tmp_path):
    of, plan = open_source({'name': data, **EIGHTS}, source)
    found = features.features(of, ('stage1/block0', 'features'), folder=tmp_path / 'cache')
    for split in ('train', 'test'):
        rows = [of.model.apply(of.variables, batch, train=False, method='features') for batch in of.data.plain(split)]
        expected = np.concatenate(rows)[: of.data.sizes[split]]
        np.testing.assert_allclose(found[split]['features'], expected, atol=1e-5)
        assert found[split]['stage1/block0'].shape == (of.data.sizes[split], 4)
        labels = np.concatenate([batch['label'] for batch in of.data.plain(split)])[: of.data.sizes[split]]
        np.testing.assert_array_equal(features.labels(of.data, split), labels)
    assert found['train']['features'].std(0).min() > 0  # they differ from picture to picture


def test_a_row_does_not_depend_on_the_others_of_its_pass(source, data, tmp_path):
    of, _ = open_source({'name': data, **EIGHTS, 'test': 0.0}, source)
    together, _ = ensure(of, 'train', np.arange(24), folder=tmp_path / 'a')
    ensure(of, 'train', np.array([5, 23]), folder=tmp_path / 'b')
    apart, counted = ensure(of, 'train', np.arange(24), folder=tmp_path / 'b')
    assert counted.read == 2
    np.testing.assert_array_equal(together.read('features'), apart.read('features'))


def test_every_division_of_the_data_reads_the_same_rows(source, data, tmp_path, passes):
    of = lambda **division: open_source({'name': data, **division}, source)[0]
    few = features.features(of(labels_per_class=3, val=0.0, test=0.25), folder=tmp_path)
    assert len(passes) == 2 and len(passes[0][2]) == 6
    features.features(of(val=0.0, test=0.0), folder=tmp_path)
    computed = [row for _, _, rows in passes for row in rows]
    assert sorted(computed) == list(range(24))
    again = features.features(of(labels_per_class=3, val=0.0, test=0.25), folder=tmp_path)
    assert len(passes) == 3
    np.testing.assert_array_equal(again['train']['features'], few['train']['features'])


def test_features_are_computed_again_when_something_changed(source, data, tmp_path, passes, capsys):
    path = data.removeprefix('folder:')
    of = lambda uri=data, init=source, **config: features.features(
        open_source({'name': uri, **EIGHTS}, init, config)[0], splits=('train',), folder=tmp_path / 'cache'
    )
    before = of()
    of()
    assert len(passes) == 1
    of(preprocess={'size': 12})
    assert len(passes) == 2 and 'changed' not in capsys.readouterr().out
    victim = sorted((tmp_path / 'pictures/bright').iterdir())[0]
    victim.write_bytes(sorted((tmp_path / 'pictures/dark').iterdir())[0].read_bytes())
    after = of()
    assert len(passes) == 3
    assert f'Features of {data}: the data changed' in capsys.readouterr().out
    assert (before['train']['features'] != after['train']['features']).any()
    train({**CONFIG, 'model': NETWORK, 'seed': 1}, tmp_path / 'other', quiet=True)
    of(init=str(tmp_path / 'other'))
    assert len(passes) == 4
    (tmp_path / 'pictures').rename(tmp_path / 'moved')
    of(uri=f'folder:{tmp_path / "moved"}')
    assert len(passes) == 4, path


def test_views_are_the_epochs_of_training(source, data, tmp_path):
    augmented = {'name': data, **EIGHTS, 'augment': (('pad_crop', 2), 'flip')}
    of, _ = open_source(augmented, source)
    rows = of.data.parts['train'][1]
    one, two = (ensure(of, 'train', rows, epoch=e, folder=tmp_path)[0].read('features') for e in (0, 1))
    assert (one[rows] != two[rows]).any()
    batch = next(of.data.train(0, 1))
    expected = of.model.apply(of.variables, batch, train=False, method='features')
    first = batch['index'][: len(rows)]  # of the first epoch
    assert sorted(first) == rows.tolist()
    np.testing.assert_allclose(one[first], expected[: len(rows)], atol=1e-5)


def test_features_command_writes_arrays_and_reads_them_again(source, data, tmp_path, capsys):
    command = ['features', f'--data={data}', f'--init={source}', '--layers=all', f'--cache={tmp_path / "cache"}']
    assert main(command) == 0
    first = capsys.readouterr().out
    assert 'train: 24 computed, 0 were there' in first and 'stage2/block0    24×8' in first
    folder = first.split('were there: ')[1].split('\n')[0]
    assert np.load(f'{folder}/features.npy').shape == (24, 8)
    assert main(command) == 0
    assert 'train: 0 computed, 24 were there' in capsys.readouterr().out
    assert main([*command, '--pool=none']) == 0
    assert 'stage2/block0    24×4×4×8' in capsys.readouterr().out
    assert main([*command, '--views=2', '--augment=("flip",)']) == 0
    assert 'train, view 2 of 2: 24 computed' in capsys.readouterr().out


@pytest.mark.parametrize(
    'given, said',
    [
        (['--layers=stage9'], "no layer 'stage9'.*did you mean"),
        (['--layers=*'], 'not a regular expression'),
        (['--split=tset'], 'no such split'),
        (['--set', 'model.dpeth=1'], "did you mean 'depth'"),
        (['--set', 'preprocess.size'], 'expected KEY=VALUE'),
        (['--views=0'], 'at least 1'),
        (['--views=1', '--augment=("flop",)'], 'flip'),
        (['--pool=token'], 'no tokens'),
    ],
)
def test_features_command_says_what_is_wrong(source, data, tmp_path, capsys, given, said):
    command = ['features', f'--data={data}', f'--init={source}', f'--cache={tmp_path / "cache"}', '--layers=stem']
    assert main([*command, *given]) == 2
    assert re.search(said, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / 'cache/features').exists()


def test_features_that_are_not_finite_are_refused(source, data, tmp_path):
    of, _ = open_source({'name': data, **EIGHTS}, source)
    spoilt = 'params/backbone/stage2/block0/bn2/bias'
    wild = tree.map_paths(lambda path, x: x + (np.inf if path == spoilt else 0), of.variables)
    with pytest.raises(UserError, match='layer features.*not finite for example 0, 2'):
        features.features(of._replace(variables=wild), folder=tmp_path)


def test_entry_says_in_json_what_it_is(source, data, tmp_path):
    of, _ = open_source({'name': data, **EIGHTS}, source)
    entry, _ = ensure(of, 'train', np.arange(2), folder=tmp_path)
    said = json.loads((entry.folder / 'entry.json').read_text())
    assert (
        said['from'][1:] == [data, source, 'train']
        and said['model']['name'] == 'resnet'
        and said['preprocess']['size'] == 8
    )


def test_a_pass_during_which_the_data_changes_leaves_nothing(source, data, tmp_path, monkeypatch):
    of, _ = open_source({'name': data, **EIGHTS, 'cache_mb': 0}, source)
    victim, first = sorted((tmp_path / 'pictures/dark').iterdir())[-1], features._compiled

    def meddling(*args):
        victim.write_bytes(sorted((tmp_path / 'pictures/bright').iterdir())[0].read_bytes())
        return first(*args)

    before = victim.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(features, '_compiled', meddling)
        with pytest.raises(UserError, match='files changed since they were opened'):
            ensure(of, 'train', np.arange(24), folder=tmp_path / 'cache')
    victim.write_bytes(before)
    of, _ = open_source({'name': data, **EIGHTS, 'cache_mb': 0}, source)
    assert ensure(of, 'train', np.arange(24), folder=tmp_path / 'cache')[1].computed == 24
