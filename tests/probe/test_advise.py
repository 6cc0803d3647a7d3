"""`jtl advise` from the command line: two small sources on noisy pictures."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

from jtl import cli
from jtl.errors import UserError
from jtl.probe import advise, calibration, cost, features, measure, sources
from jtl.train import train

MODEL = {'name': 'resnet', 'stages': (1, 1), 'width': 4}
COST = {'batch_size': 8, 'full': 0.3, 'head': 0.1, 'cached': 0.01, 'forward': 0.1, 'repeats': 7}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Pictures of three classes of unequal size that overlap, and two sources: a run with 2 classes of its own, and
    one for larger pictures."""
    folder = tmp_path_factory.mktemp('advise')
    rng = np.random.default_rng(0)
    for name, level, each in (('bright', 150, 30), ('dark', 90, 14), ('middle', 120, 22)):
        (folder / 'pictures' / name).mkdir(parents=True)
        for i in range(each):
            image = np.clip(level + rng.normal(0, 15) + rng.normal(0, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / 'pictures' / name / f'{i:02d}.png')
    start = {**tiny.CONFIG, 'data': {'name': f'folder:{tiny.pictures(folder / "other")}'}, 'model': MODEL}
    train(start, folder / 'first', quiet=True)
    train({**start, 'seed': 1}, folder / 'second', quiet=True)
    file = folder / 'second' / 'model' / 'model.json'  # as if it had been trained on larger ones
    model = json.loads(file.read_text())
    file.write_text(json.dumps({**model, 'preprocess': {**model['preprocess'], 'size': 12}}))
    return folder


@pytest.fixture
def ask(place, tmp_path, monkeypatch):
    """Runs the command on both sources; `advice.json`."""
    monkeypatch.setenv('JTL_CACHE', str(place / 'cache'))  # of all tests here: the first one computes
    monkeypatch.setattr(cost, 'measured', lambda values, cache, say: dict(COST))

    def run(*more, names='first,second', workdir='advice'):
        uris = ','.join(str(place / name) for name in names.split(','))
        given = ['--data', f'folder:{place}/pictures', '--sources', uris, '--workdir', str(tmp_path / workdir)]
        assert cli.main(['advise', *given, '--set', 'batch_size=8', '--debug', *more]) == 0
        return json.loads((tmp_path / workdir / 'advice.json').read_text())

    return run


def test_advice_ranks_scores_and_explains(ask, place, tmp_path, capsys):
    found = ask()
    said, first = capsys.readouterr().out, found['ranking'][0]['source']
    assert found['data']['used'] == found['data']['examples'] == 57  # 66 less 15 % of each class for the test
    assert found['data']['classes'] == ['bright', 'dark', 'middle']
    values = [row['value'] for row in found['ranking']]
    assert values == sorted(values, reverse=True) and found['ranking'][0]['behind'] is None
    one = found['sources'][first]
    assert [layer['name'] for layer in one['layers']] == ['stem', 'stage1/block0', 'stage2/block0', 'features']
    for x in (one['ridge'], one['knn'], *one['scores'].values()):
        assert x['low'] <= x['value'] <= x['high'] and x['low'] < x['high']
    assert one['scores']['leep']['value'] < 0 and one['scores']['nce']['value'] < 0  # a classifier of 2 classes
    assert one['ridge']['value'] > 0.55  # the commonest class has 26 of 56, and levels are 2 deviations apart
    assert np.allclose(np.diag(one['cka']), 1) and np.shape(one['cka']) == (4, 4)
    assert [found['sources'][str(place / name)]['preprocess']['size'] for name in ('first', 'second')] == [8, 12]
    for reason in found['reasons']:
        assert reason in said
    page = (tmp_path / 'advice' / 'advice.html').read_text()
    assert page.count('data:image/png') == 4 and not re.search(r'(src|href)="(?!data:)', page)
    assert {p.name for p in (tmp_path / 'advice').iterdir()} == {
        'advice.json', 'advice.html', 'ranking.png', 'layers.png', 'likeness.png', 'cost.png'
    }  # fmt: skip


def test_advice_again_passes_no_backbone(ask, monkeypatch):
    before = ask('--no-cost', workdir='before')

    def refuse(*args, **kwargs):
        raise AssertionError('a backbone pass')

    monkeypatch.setattr(features, '_compute', refuse)
    monkeypatch.setattr(advise, 'look', refuse)  # nor the numbers
    after = ask('--no-cost', workdir='after')
    assert [one['features'] for one in after['sources'].values()] == [{'read': 57, 'computed': 0}] * 2
    for key in ('ranking', 'reasons'):
        assert after[key] == before[key]
    some = {uri: {**one, 'features': None} for uri, one in before['sources'].items()}
    assert {uri: {**one, 'features': None} for uri, one in after['sources'].items()} == some


def test_advice_is_not_remembered_across_labels_or_seeds(ask, place, tmp_path, monkeypatch):
    calls, look = [], advise.look
    monkeypatch.setattr(advise, 'look', lambda *args: calls.append(1) or look(*args))
    ask('--no-cost', '--set', 'seed=5', names='first', workdir='before')
    ask('--no-cost', '--set', 'seed=5', names='first', workdir='same')
    ask('--no-cost', '--set', 'seed=6', names='first', workdir='other')
    ask('--no-cost', '--set', 'seed=5', '--confidence=0.9', names='first', workdir='another')
    assert len(calls) == 3
    for file in (place / 'cache' / 'advice').iterdir():
        file.write_text('{')
    ask('--no-cost', '--set', 'seed=5', names='first', workdir='damaged')
    assert len(calls) == 4


def test_advice_never_looks_at_the_test_split(ask, place, tmp_path, monkeypatch):
    # The same training pictures twice; of the second folder the test pictures are others, and in other classes.
    names = 'one', 'two'
    for name, swap in zip(names, (False, True)):
        for kind, each in (('bright', 26), ('dark', 12), ('middle', 19)):  # 57 as elsewhere here, to compile nothing
            (tmp_path / name / 'train' / kind).mkdir(parents=True)
            for i in range(each):
                shutil.copy(place / 'pictures' / kind / f'{i:02d}.png', tmp_path / name / 'train' / kind)
        for kind, picture in (('bright', 'dark/00.png'), ('dark', 'bright/00.png')):
            (tmp_path / name / 'test' / kind).mkdir(parents=True)
            other = f'{kind}/01.png' if swap else picture
            shutil.copy(place / 'pictures' / other, tmp_path / name / 'test' / kind / 'x.png')
    seen, ensure = [], sources.ensure
    monkeypatch.setattr(sources, 'ensure', lambda of, where, *a, **k: seen.append(where) or ensure(of, where, *a, **k))
    one, two = (
        ask('--no-cost', '--data', f'folder:{tmp_path / name}', workdir=f'to-{name}') for name in ('one', 'two')
    )
    assert one['data']['fingerprint'] != two['data']['fingerprint'] and set(seen) == {'train'}
    assert one['ranking'] == two['ranking'] and one['reasons'] == two['reasons']
    for uri, found in one['sources'].items():
        assert found['scores'] == two['sources'][uri]['scores'] and found['layers'] == two['sources'][uri]['layers']


def test_the_cost_of_a_whole_is_in_the_advice(ask):
    found = ask('--epochs=4')
    one = next(iter(found['sources'].values()))
    batches = 51 / 8  # 57 less 10 % of each class to validate
    assert one['cost']['total']['full'] == pytest.approx(4 * batches * 0.3, rel=1e-9)
    assert 'not predicted' in found['reasons'][-1] and '4 epochs of it cost' in found['reasons'][-1]


def test_a_calibration_gives_predictions_with_intervals(ask, monkeypatch):
    rows = [
        {'data': f'd{g}', 'source': 's', 'ridge': r, 'accuracy': min(r + 0.1, 0.95), 'examples': 60, 'classes': 3}
        for g in range(4)
        for r in (0.3 + 0.01 * g, 0.9)
    ]
    monkeypatch.setattr(calibration, 'read', lambda: calibration.fit(rows))
    found = ask('--no-cost')
    for one in found['sources'].values():
        assert one['predicted']['low'] < one['predicted']['value'] < one['predicted']['high']
        assert one['predicted']['value'] > one['ridge']['value']
    assert 'predicted at' in found['reasons'][-1]


def test_check_trains_the_top_and_compares(ask, tmp_path, capsys):
    given = (
        '--check',
        '--steps=3',
        '--no-cost',
        '--set',
        'preprocess.size=8',
        '--set',
        "optim={'name': 'sgd', 'lr': 0.1}",
    )
    found = ask(*given)
    checked, said = found['check'], capsys.readouterr().out
    assert [(one['source'], one['method']) for one in checked['runs']] == [
        (row['source'], method) for row in found['ranking'] for method in ('ridge', 'head', 'full')
    ]
    assert checked['examples'] == 9 and checked['budget'] == {'steps': 3}
    ridge = [one for one in checked['runs'] if one['method'] == 'ridge']
    assert all(one['predicted'] and one['within'] in (True, False) for one in ridge)
    folders = sorted(tmp_path.glob('advice/check/steps=3/*/*/result.json'))
    assert len(folders) == 4
    real = json.loads((folders[0]).read_text())['test']['accuracy']
    assert real in [pytest.approx(one['accuracy']['value']) for one in checked['runs']]
    for text in checked['said']:
        assert text in said
    assert 'held' in ' '.join(checked['said']) or 'cannot be told' in ' '.join(checked['said'])
    before = {p: p.stat().st_mtime_ns for p in folders}
    again = ask(*given)
    assert again['check']['runs'][0]['accuracy'] == checked['runs'][0]['accuracy']
    assert {p: p.stat().st_mtime_ns for p in folders} == before  # finished runs are not run again


def test_json_is_all_that_is_printed(ask, capsys):
    found = ask('--json', '--no-cost')
    assert json.loads(capsys.readouterr().out) == found


def test_a_folder_with_other_advice_is_refused(ask, place, tmp_path, capsys):
    ask('--no-cost')
    with pytest.raises(UserError, match='holds advice on something else; it differs in sources, weights, layers'):
        ask('--no-cost', names='first')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('keep')
    with pytest.raises(UserError, match='is not empty and holds no advice'):
        ask('--no-cost', workdir='mine')


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--sources', 'torch:no/such.pth'), 'no/such.pth'),
        (('--sources', ' , '), 'names none'),
        (('--pool', 'none'), '--pool none'),
        (('--layers', 'stage9'), "has no layer 'stage9'"),
        (('--most', '5'), '--most 5: should be at least 6'),
        (('--set', 'steps=3'), '--set steps: not here'),
        (('--confidence', '95'), '--confidence 95.0: should be between 0.5 and 1'),
        (('--check', '--set', 'data.test=0.0'), 'no test split'),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(ask, more, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'ensure', None)
    with pytest.raises(UserError, match=re.escape(message)):
        ask(*more)
    assert not (tmp_path / 'advice').exists()


def test_a_source_that_does_not_fit_is_named_before_any_work(ask, place, monkeypatch):
    x = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    np.savez(place / 'numbers.npz', x=x, y=np.arange(20) % 2)
    model = {'name': 'mlp', 'hidden': (4,)}
    train({**tiny.CONFIG, 'data': {'name': f'npz:{place}/numbers.npz'}, 'model': model}, place / 'mlp', quiet=True)
    monkeypatch.setattr(sources, 'ensure', None)
    with pytest.raises(UserError, match=re.escape(str(place / 'mlp'))):
        ask(names='first,mlp')


# The parts.


def test_subsample_keeps_shares_and_two_of_each_class():
    y = np.r_[np.zeros(900, int), np.ones(90, int), np.full(3, 2)]
    found = sources.subsample(y, 100, 0)
    assert len(found) == len(set(found)) == 100 and (np.diff(found) > 0).all()
    assert np.bincount(y[found]).tolist() == pytest.approx([89, 9, 2], abs=1)
    assert (found != sources.subsample(y, 100, 1)).any()
    assert (sources.subsample(y, 993, 0) == np.arange(993)).all()


@pytest.mark.parametrize(
    ('uris', 'names'),
    [
        (['npz:/a/mobilenet/weights.npz', 'torch:r20.th'], ['mobilenet', 'r20']),
        (['hf:timm/resnet50.a1_in1k', 'runs/a'], ['resnet50.a1_in1k', 'a']),
        (['runs/a', 'old/a'], ['runs/a', 'old/a']),
    ],
)
def test_sources_have_short_names_that_differ(uris, names):
    assert list(sources.name_all(uris).values()) == names


def test_predictions_are_the_softmax_of_the_source_head():
    x = np.array([[1.0, 2.0]], np.float32)
    head = {'kernel': np.array([[1.0, 0, 2], [0, 1, 0]]), 'bias': np.array([0.0, 0, 1])}
    e = np.exp([1.0, 2.0, 3.0])
    assert np.allclose(measure.predictions(x, head), e / e.sum(), atol=1e-12)
    assert measure.predictions(x, None) is None
    assert measure.predictions(np.ones((1, 3), np.float32), head) is None  # cut elsewhere


def test_padding_changes_no_number():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    y = (x[:, 0] + 0.5 * rng.normal(size=50) > 0).astype(int)
    plain = np.asarray(measure.ridge(measure.standard(x)(x), y, 2, measure.LAMBDAS).loo)
    assert measure._padded(x).shape == (50, 64)
    assert np.allclose(measure.leave_one_out(x, y, 2), plain, atol=2e-5)


def test_right_on_knows_nothing_of_the_test_labels():
    rng = np.random.default_rng(0)
    y, other = np.arange(60) % 2, np.arange(40) % 2
    x, test = ((rng.normal(size=(len(t), 5)) + 2 * t[:, None]).astype(np.float32) for t in (y, other))
    right = measure.right_on(x, y, test, other, 2, 1.0)
    assert right.mean() > 0.9
    assert (measure.right_on(x, y, test, 1 - other, 2, 1.0) == 1 - right).all()


def test_accuracy_of_no_mistake_has_an_interval():
    found = measure.accuracy(np.ones(30), 0.95)
    assert found['value'] == found['high'] == 1 and 0.85 < found['low'] < 0.95


@pytest.mark.parametrize(
    ('y', 'classes', 'message'),
    [
        (np.eye(3), ('a', 'b', 'c'), 'several labels'),
        (np.zeros(4, int), ('a',), 'one class'),
        (np.array([0, 0, 1]), ('a', 'b'), "each class needs 2 examples to fit this to; too few: 'b' \\(1\\)"),
    ],
)
def test_labels_that_say_nothing_are_refused(y, classes, message):
    with pytest.raises(UserError, match=message):
        measure.check_labels(y, classes, 'folder:x')
