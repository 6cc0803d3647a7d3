"""experiments/probe_table.py and the table it comes to: cells once each, numbers as they were logged."""

import importlib
import json
from pathlib import Path

import pytest

from jtl.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch):
    """Both modules, as a script in their folder finds them."""
    monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
    return importlib.import_module('probe_table'), importlib.import_module('readme')


def cell(name, accuracy, head='ridge', layer='features', computed=0.0):
    source, data, seed = name.split('/')
    test = {
        key: {'value': v, 'low': v - 0.05, 'high': v + 0.04} for key, v in (('accuracy', accuracy), ('auroc', 0.97))
    }
    test['f1_macro'] = {'value': 0.815, 'low': 0.781, 'high': 0.842}
    ridge = {'accuracy': {key: value - 0.1 for key, value in test['accuracy'].items()}}
    return {
        'cell': name, 'source': source, 'data': data, 'seed': int(seed), 'size': 96, 'sizes': {'test': 100},
        'chosen': {'head': head, 'layer': layer, 'said': 'penalty 0.3'}, 'test': test, 'ridge': {'test': ridge},
        'computed': {'examples': 10, 'seconds': computed}, 'seconds': {'features': 1.0, 'heads': 30.4},
        'hardware': '1 × cpu', 'versions': {'jax': '0.10.2'}, 'version': '0.1.0', 'commit': 'abc',
    }  # fmt: skip


def test_fill_computes_what_the_log_lacks_and_nothing_twice(experiment, tmp_path, monkeypatch, capsys):
    module, _ = experiment
    log, made, known = tmp_path / 'log.jsonl', [], ['mobilenetv2/cifar10-100/0', 'mobilenetv2/cifar10-100/2']
    log.write_text(''.join(json.dumps(cell(name, 0.5)) + '\n' for name in known[:1]))

    def measure(shared, source, data, seed, quick):
        made.append((source, data, seed))
        if len(made) == 2:
            raise KeyboardInterrupt
        return cell(f'{source}/{data}/{seed}', 0.6)

    monkeypatch.setattr(module, 'measure', measure)
    with pytest.raises(KeyboardInterrupt):
        module.fill('somewhere', log, 'mobilenetv2/cifar10-100/')
    assert made == [('mobilenetv2', 'cifar10-100', 1), ('mobilenetv2', 'cifar10-100', 2)]
    module.fill('somewhere', log, 'mobilenetv2/cifar10-100/')
    assert made[2:] == [('mobilenetv2', 'cifar10-100', 2)]
    assert [json.loads(line)['seed'] for line in log.read_text().splitlines()] == [0, 1, 2]


def test_cells_are_all_sources_on_all_data(experiment):
    module, readme = experiment
    names = [name for name, *_ in module.cells()]
    assert len(names) == len(set(names)) == 5 * (1 + 1 + 1 + 3 + 3 + 1)
    assert tuple(module.DATA) == readme.DATA


def test_probe_makes_a_row_of_a_data_set_and_source(experiment, tmp_path):
    _, readme = experiment
    log = tmp_path / 'log.jsonl'
    rows = [
        cell('mobilenetv2/cifar10-100/1', 0.58, 'lda', 'block12', 7.0),
        cell('mobilenetv2/cifar10-100/0', 0.52, computed=6.0),
        cell('mobilenetv2/catsdogs/0', 0.9),
        cell('cifar_resnet20/pneumonia/0', 0.86, 'knn'),
    ]
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    head, _, *lines = [line for line in readme.probe(log).splitlines() if line.startswith('|')]
    assert [line.split(' | ')[0] for line in lines] == ['| catsdogs', '| pneumonia', '| cifar10-100']
    assert lines[0].split(' | ')[2:] == [
        'ridge (penalty 0.3)', 'features', '90.0 [85.0, 94.0]', '80.0 [75.0, 84.0]', '–', '30 |'
    ]  # fmt: skip
    assert 'features; block12 | 55.0 [52.0, 58.0] | 45.0 [42.0, 48.0] | 13 | 30 |' in lines[2]
    assert 'cifar_resnet20: macro-F1 0.815 [0.781, 0.842], AUROC 0.970 [0.920, 1.010].' in readme.probe(log)
    assert 'commit abc' in readme.probe(log)


def test_probe_refuses_what_is_no_log(experiment, tmp_path):
    (tmp_path / 'log').write_text('{"cell":')
    with pytest.raises(UserError, match='expected the log'):
        experiment[1].probe(tmp_path / 'log')
