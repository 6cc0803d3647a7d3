"""experiments/advice.py: advice beside what fine-tuning really came to."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jtl.errors import UserError
from jtl.probe import calibration

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location('advice_truth', ROOT / 'experiments' / 'advice.py')
truth = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(truth)


def put_run(folder, weights, share, *, data='folder:/x/a.zip', lr=0.1, val=0.5, few=None, M=200, K=3):
    """A finished run with `share` of the test examples right."""
    folder.mkdir(parents=True)
    label = np.arange(M) % K
    right = np.arange(M) < round(share * M)
    np.savez(folder / 'predictions.npz', logits=np.eye(K)[np.where(right, label, (label + 1) % K)], label=label)
    config = {'data': {'name': data, 'labels_per_class': few}, 'optim': {'lr': lr}}
    (folder / 'config.json').write_text(json.dumps({'weights': weights, 'config': config}))
    (folder / 'result.json').write_text(json.dumps({'test': {'accuracy': share}, 'val': {'accuracy': val}}))


def put_advice(folder, ridges, *, data='folder:/elsewhere/a.zip', few=None, leep=()):
    x = lambda value: {'value': value, 'low': value - 0.1, 'high': value + 0.1}
    sources = {
        f'npz:{weights}': {
            'name': weights,
            'weights': weights,
            'kind': 'image',
            'ridge': x(value),
            'knn': x(-value),
            'layers': [{'logme': 1.0, 'ridge': x(value)}, {'logme': 0.5, 'ridge': x(value)}],
            'scores': {
                'logme': x(0.5),
                'h_score': x(value),
                'h_score_regularised': x(value),
                'leep': x(value) if weights in leep else None,
                'nce': None,
            },
        }
        for weights, value in ridges.items()
    }
    folder.mkdir(parents=True)
    about = {'uri': data, 'examples': 100, 'classes': ['a', 'b', 'c']}
    asked = {'set': {'data': {'name': data, 'labels_per_class': few}}}
    (folder / 'advice.json').write_text(json.dumps({'data': about, 'asked': asked, 'sources': sources}))


@pytest.fixture
def place(tmp_path):
    """Three data sets × three sources; the better ridge is the better run, but for one pair of data set c."""
    for name, shares in (('a', (0.6, 0.7, 0.8)), ('b', (0.5, 0.6, 0.9)), ('c', (0.7, 0.6, 0.8))):
        data = f'folder:/x/{name}.zip'
        for weights, share in zip('uvw', shares):
            put_run(tmp_path / 'runs' / name / weights / 'all' / 'lr=0.1', weights, share, data=data, val=0.6)
            put_run(tmp_path / 'runs' / name / weights / 'all' / 'lr=1', weights, 0.99, data=data, lr=1.0, val=0.4)
            put_run(tmp_path / 'runs' / name / weights / 'head' / 'lr=0.1', weights, 0.1, data=data, val=0.9)
        ridges = {'u': 0.5, 'v': 0.6, 'w': 0.7}
        put_advice(tmp_path / 'advice' / name, ridges, data=f'folder:/other/{name}.zip', leep='vw')
    return tmp_path


def test_read_takes_the_rate_that_validation_chose_of_the_method_asked_for(place):
    cases = truth.read(place / 'runs', [place / 'advice'])
    assert [[row['accuracy'] for row in one.rows] for one in cases] == [
        pytest.approx([0.6, 0.7, 0.8]), pytest.approx([0.5, 0.6, 0.9]), pytest.approx([0.7, 0.6, 0.8])
    ]  # fmt: skip


def test_read_leaves_out_what_has_no_runs_and_says_so(place, capsys):
    put_advice(place / 'advice' / 'few', {'u': 0.5, 'v': 0.6}, data='folder:/x/a.zip', few=10)
    put_advice(place / 'more', {'u': 0.5, 'v': 0.6, 'x': 0.9}, data='folder:/x/a.zip')
    cases = truth.read(place / 'runs', [place / 'advice', place / 'more'])
    assert [len(one.names) for one in cases] == [3, 3, 3, 2]
    said = capsys.readouterr().err
    assert 'no finished run of npz:x' in said and 'folder:a.zip, 10 a class' in said
    with pytest.raises(UserError, match='no advice with two finished runs'):
        truth.read(place / 'runs', [place / 'advice'], 'lora')


@pytest.mark.parametrize('seed', range(3))
def test_correlations_of_one_data_set_are_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 12).astype(float)  # with ties
    assert truth.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert truth.pooled_kendall([a], [b]) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_correlations_are_pooled_within_data_sets(place):
    # Levels differ between data sets the other way round; within each the order agrees.
    scores, truths = [np.array([0.1, 0.2]), np.array([0.8, 0.9])], [np.array([0.8, 0.9]), np.array([0.1, 0.2])]
    assert truth.pooled_spearman(scores, truths) == pytest.approx(1, abs=1e-12)
    assert truth.pooled_kendall(scores, truths) == pytest.approx(1, abs=1e-12)
    found = truth.intervals(truth.read(place / 'runs', [place / 'advice']), 'ridge, best block')
    # Pairs: 3 + 3 agree, of c 2 agree and 1 differs: (8 - 1) / 9. Ranks: Σd² = 2 in c alone: ρ = 1, 1, 1/2.
    assert found['all']['kendall'][0] == pytest.approx(7 / 9, abs=1e-12)
    assert found['all']['spearman'][0] == pytest.approx(2.5 / 3, abs=1e-12)
    assert found['folder:c.zip']['spearman'][0] == pytest.approx(0.5, abs=1e-12)
    low, high = found['all']['kendall'][1:]
    assert low <= 7 / 9 <= high and low < high


def test_a_score_that_tells_nothing_has_no_correlation(place):
    found = truth.intervals(truth.read(place / 'runs', [place / 'advice']), 'LogME')
    assert np.isnan(found['all']['spearman'][0]) and np.isnan(found['folder:a.zip']['kendall'][0])


def test_table_and_calibration_are_written(place, tmp_path, capsys):
    file = tmp_path / 'calibration.json'
    given = ['--runs', str(place / 'runs'), '--advice', str(place / 'advice'), '--calibration', str(file)]
    assert truth.main(given) == 0
    said = capsys.readouterr().out
    assert '| folder:b.zip | 3 | 100 | w | 70.0 | 90.0 |' in said
    assert '| LEEP (of 2 sources) | +1.00' in said and '| NCE (of 0 sources) | – |' in said
    assert '| k-NN, best block | -1.00' in said
    predicted = calibration.predict(calibration.read(file), 0.6, 100, 3, 'image')
    assert predicted['low'] < predicted['value'] < predicted['high'] and predicted['data_sets'] == 3


def test_the_table_goes_between_the_markers_of_readme(place, tmp_path, monkeypatch):
    (tmp_path / 'README.md').write_text('Before.\n<!-- results:advice -->\nstale numbers\n<!-- end -->\nAfter.\n')
    monkeypatch.setattr(truth.readme, 'ROOT', tmp_path)
    assert truth.main(['--runs', str(place / 'runs'), '--advice', str(place / 'advice'), '--readme']) == 0
    text = (tmp_path / 'README.md').read_text()
    assert text.startswith('Before.\n<!-- results:advice -->\n| data |') and text.endswith('<!-- end -->\nAfter.\n')
    assert 'stale' not in text
