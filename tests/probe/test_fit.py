"""`jtl probe`: what it chooses, and that what it writes is a finished run like any other."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from jtl import cli, models, predict, run
from jtl.errors import UserError
from jtl.probe import choose, fit, telling
from jtl.probe.features import features, open_source
from jtl.probe.folds import folds
from jtl.train import train

HEADS = 'mean,ridge,knn'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Pictures of three levels that overlap, 30, 24 and 24 of them, and a barely trained network of two stages."""
    folder = tmp_path_factory.mktemp('probe')
    tiny.pictures(folder / 'data', {'bright': 150, 'dark': 100}, each=24)
    tiny.pictures(folder / 'more', {'middle': 125}, each=30, seed=1)
    (folder / 'more' / 'middle').rename(folder / 'data' / 'middle')
    model = {'name': 'resnet', 'stages': (1, 1), 'width': 4}
    data = {'name': f'folder:{folder / "data"}', 'val': 0.1, 'test': 0.3}
    train({**tiny.CONFIG, 'data': data, 'model': model, 'steps': 2}, folder / 'source', quiet=True)
    return folder


def command(capsys, *arguments):
    """`(status, what it printed, its message)`."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert 'Traceback' not in said.err
    return status, said.out, said.err


def probe(place, capsys, name, *more):
    data = ('--data', f'folder:{place / "data"}', '--init', place / 'source', '--workdir', place / name)
    return command(capsys, 'probe', *data, '--heads', HEADS, '--set', 'data.test=0.3', *more)


@pytest.fixture
def probed(place, capsys):
    """The folder of one probe, made once."""
    if not (place / 'probed').exists():
        status, out, err = probe(place, capsys, 'probed')
        assert status == 0, err
        (place / 'said').write_text(out)
    return place / 'probed'


def test_probe_says_what_it_chose_and_writes_all_candidates(probed):
    out, told = (probed.parent / 'said').read_text(), json.loads((probed / 'probe.json').read_text())
    assert 'by 5-fold cross-validation over 55 examples' in out  # 8 for validation are too few to choose by
    assert {c['head'] for c in told['candidates']} == set(HEADS.split(','))
    assert {c['layer'] for c in told['candidates']} >= {'stem', 'stage1/block0', 'features'}
    values = [c['value'] for c in told['candidates'] if c['value'] is not None]
    assert told['chosen']['value'] == max(values) and f'{max(values):.4f}' in out
    assert {c['reason'] for c in told['candidates'] if c['layer'] == 'stage2/block0'} == {'the same as features'}
    assert any(c.get('reason', '').startswith('50 neighbours') for c in told['candidates'])
    test = told['chosen']['test']['accuracy']
    assert test['low'] < test['value'] <= test['high'] and f'[{test["low"]:.4f}, {test["high"]:.4f}]' in out
    assert told['written']['layer'] == 'features' and told['written']['head'] != 'knn'
    assert told['written']['value'] > 0.6  # 0.38 is the largest class
    assert 'Seconds: features' in out


def test_probe_writes_a_head_whose_logits_are_its_scores(probed, place):
    """The full model from pictures, against the head on cached features, and the head fitted anew."""
    fitted = run.read(probed)
    of, plan = open_source({'name': f'folder:{place / "data"}', 'test': 0.3}, str(place / 'source'))
    seen = features(of, say=lambda text: None)
    head, answer = fitted.params['head'], predict.predictor(fitted)
    batch = next(plan.data.plain('test'))
    logits = np.asarray(answer(batch)['logits'])[batch['mask'] > 0]
    scores = seen['test']['features'] @ head['kernel'] + head['bias']
    np.testing.assert_allclose(logits, scores[: len(logits)], atol=1e-4)
    with np.load(probed / 'predictions.npz') as kept:
        np.testing.assert_allclose(kept['logits'], scores, atol=1e-4)
        np.testing.assert_array_equal(kept['label'], plan.data.labels['train'][kept['index']])
    x = np.concatenate([seen['train']['features'], seen['val']['features']])
    y = np.concatenate([plan.data.labels['train'][plan.data.parts[split][1]] for split in ('train', 'val')])
    told = json.loads((probed / 'probe.json').read_text())['written']
    candidate = choose.Candidate('features', told['head'], told['setting'], 0, 0)
    learnt = of.data.sizes['train']  # not the validation split, which whoever goes on from the run judges by
    plain = choose.refit(candidate, x[:learnt], y[:learnt], fitted.classes).scores(seen['test']['features'])
    ratio = (scores - scores.mean(1, keepdims=True)).std() / (plain - plain.mean(1, keepdims=True)).std()
    np.testing.assert_allclose(scores, plain * ratio, atol=1e-3 * abs(scores).max())  # one temperature for all
    assert (scores.argmax(1) == plain.argmax(1)).all()
    rows, unseen = choose.held_out(candidate, x, y, fitted.classes, folds(y, 5))
    assert ratio == pytest.approx(choose.temperature(unseen, y[rows]), rel=1e-3)
    assert not 0.9 < ratio < 1.1


def test_probe_writes_a_run_that_other_commands_take(probed, place, capsys):
    result = json.loads((probed / 'result.json').read_text())
    status, out, err = command(capsys, 'eval', probed, '--json')
    assert status == 0, err
    assert json.loads(out)['accuracy'] == pytest.approx(result['test']['accuracy'], abs=1e-7)
    assert json.loads(out)['loss'] < np.log(3)  # its scores are logits: better than not knowing
    picture = next((place / 'data' / 'dark').iterdir())
    status, out, err = command(capsys, 'predict', probed, picture, '--json')
    assert status == 0 and set(json.loads(out)['classes']) == {'bright', 'dark', 'middle'}, err
    status, _, err = command(capsys, 'convert', probed, f'--to=safetensors:{place / "out.safetensors"}')
    assert status == 0, err
    assert 'jtl probe' in (probed / 'params.txt').read_text()
    assert json.loads((probed / 'config.json').read_text())['command'].startswith('jtl probe --data')


def test_probe_writes_where_fine_tuning_goes_on(probed, place):
    """LP-FT: with the head kept, and a step of no length, the test accuracy is the probe's; a step changes it all."""
    result = json.loads((probed / 'result.json').read_text())
    config = {
        **tiny.CONFIG,
        'data': {'name': f'folder:{place / "data"}', 'val': 0.1, 'test': 0.3},
        'model': {},
        'init': str(probed),
        'load': {'head': 'keep'},
        'select': None,
        'steps': 1,
        'rules': tiny.HEAD,  # BatchNorm stands still
        'optim': {'name': 'sgd', 'lr': 1e-12},
    }
    started = train(config, place / 'still', quiet=True)
    assert started['test']['accuracy'] == pytest.approx(result['test']['accuracy'], abs=1e-7)
    with np.load(place / 'still' / 'predictions.npz') as a, np.load(probed / 'predictions.npz') as b:
        np.testing.assert_allclose(a['logits'], b['logits'], atol=1e-4)
    moved = {**config, 'rules': tiny.ALL, 'optim': {'name': 'sgd', 'lr': 0.01}, 'steps': 3}
    assert train(moved, place / 'moved', quiet=True)['test']['loss'] != pytest.approx(started['test']['loss'], abs=1e-6)


def test_probe_reads_the_test_split_after_it_has_chosen(place, monkeypatch):
    order = []
    for name in ('candidates', 'best', 'refit', 'held_out'):
        wrapped = getattr(choose, name)
        monkeypatch.setattr(choose, name, lambda *a, f=wrapped, name=name, **k: order.append(name) or f(*a, **k))
    real = fit.features
    monkeypatch.setattr(fit, 'features', lambda *a, splits, **k: order.append(splits) or real(*a, splits=splits, **k))
    of, _ = open_source({'name': f'folder:{place / "data"}', 'test': 0.3}, str(place / 'source'))
    found = fit.probe(of, ('stem', 'features'), ('mean', 'ridge'))
    assert order[0] == ['train', 'val'] and order[-1] == ['test']
    assert order.count(['test']) == 1 and {'candidates', 'best', 'refit', 'held_out'} == set(map(str, order[1:-1]))
    assert len(found.logits) == of.data.sizes['test']


def test_probe_as_json_prints_that_alone(place, capsys):
    status, out, err = probe(place, capsys, 'as_json', '--json', '--layers', 'features', '--folds', '0')
    assert status == 0, err
    assert json.loads(out) == json.loads((place / 'as_json' / 'probe.json').read_text())
    assert json.loads(out)['judged_by'] == '6 validation examples'


def test_probe_refuses_before_it_works(place, capsys):
    (place / 'taken').mkdir(exist_ok=True)
    for name, more, said in (
        ('taken', (), 'exists already'),
        ('new', ('--heads', 'ridge,lgistic'), "'lgistic' is unknown; did you mean 'logistic'"),
        ('new', ('--metric', 'acc'), "'acc' is unknown; did you mean 'accuracy'"),
        ('new', ('--pool', 'none'), 'takes a vector'),
        ('new', ('--folds', '1'), '--folds 1'),
        ('new', ('--folds', '0', '--set', 'data.val=0.0'), 'no validation split'),
        ('new', ('--layers', 'stage9'), "no layer 'stage9'"),
        ('new', ('--heads', 'knn'), 'a linear one'),
        ('new', ('--metric', 'auroc'), 'not defined'),
    ):
        status, _, err = probe(place, capsys, name, *more)
        assert status == 2 and said in err, (more, err)
    assert not (place / 'new').exists() and not list((place / 'taken').iterdir())


def test_cut_says_where_a_model_can_end():
    def of(name, **options):
        return SimpleNamespace(model=models.build(name, 2, **options))

    assert 'model.depth=2 cuts the model there' in telling.cut(of('resnet50'), 'stage2/block3')
    assert 'model.depth=2 cuts the model after the whole of its stage' in telling.cut(of('resnet50'), 'stage2/block1')
    assert 'model.depth=7 cuts the model there' in telling.cut(of('mobilenetv2'), 'block6')
    assert 'cannot be cut' in telling.cut(of('mobilenetv2'), 'stem')
    with pytest.raises(UserError, match='depth'):
        models.build('mobilenetv2', 2, depth=18)  # of 17 blocks


def test_probe_may_choose_layers_together_and_still_writes_a_head_on_the_last(place, monkeypatch, capsys):
    real = choose.best
    joined = lambda found, *given: real(found, *(given or (None, choose.JOINED)))
    monkeypatch.setattr(choose, 'best', joined)
    status, out, err = probe(place, capsys, 'together', '--heads', 'ridge')
    assert status == 0, err
    told = json.loads((place / 'together' / 'probe.json').read_text())
    assert told['joined'] == ['stage1/block0', 'features']  # 4 channels, and 8; the stem has 4, too
    assert told['chosen']['layer'] == 'joined' and told['written']['layer'] == 'features'
    assert 'joined is stage1/block0, features together' in out
    of, plan = open_source({'name': f'folder:{place / "data"}', 'test': 0.3}, str(place / 'source'))
    seen = features(of, told['joined'], say=lambda text: None)
    x = {split: choose.join(part, told['joined']) for split, part in seen.items()}
    y = {split: plan.data.labels['train'][index] for split, (_, index) in plan.data.parts.items()}
    learnt = (np.concatenate([part['train'], part['val']]) for part in (x, y))
    setting = told['chosen']['setting']
    scores = choose.refit(choose.Candidate('joined', 'ridge', setting, 0, 0), *learnt, 'abc').scores(x['test'])
    assert told['chosen']['test']['accuracy']['value'] == pytest.approx((scores.argmax(1) == y['test']).mean())
