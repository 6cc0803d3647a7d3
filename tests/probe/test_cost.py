"""What steps cost: real compiled steps, one of each kind, measured once a machine."""

import itertools
import json

import numpy as np
import pytest
import tiny

from jtl.errors import UserError
from jtl.probe import cost
from jtl.train import train

MODEL = {'name': 'resnet', 'stages': (1,), 'width': 4}


@pytest.fixture(scope='module')
def values(tmp_path_factory):
    """A config of pictures and a source for them, without rules."""
    folder = tmp_path_factory.mktemp('cost')
    data = {'name': f'folder:{tiny.pictures(folder / "pictures")}'}
    train({**tiny.CONFIG, 'data': data, 'model': MODEL}, folder / 'source', quiet=True)
    return {'data': data, 'init': str(folder / 'source'), 'batch_size': 4}


def test_measure_times_each_kind_in_turns_and_takes_medians(values, monkeypatch):
    # A clock by which the n-th call of all takes 1, 2, 3, …: four compilations, then rounds of full, head, cached,
    # forward: 5 6 7 8, 9 10 11 12, 13 14 15 16.
    monkeypatch.setattr(cost, '_step', lambda values, kind: lambda: None)
    monkeypatch.setattr(cost, '_forward', lambda values: lambda: None)
    ticks = itertools.chain.from_iterable((1000 * n, 1000 * n + n) for n in itertools.count(1))
    found = cost.measure(values, repeats=3, clock=lambda: float(next(ticks)))
    assert [found[kind] for kind in cost.KINDS] == [9, 10, 11, 12]
    assert found['compile_seconds'] == {'full': 1, 'head': 2, 'cached': 3, 'forward': 4}
    assert found['spread']['cached'] == [7, 15] and found['batch_size'] == 4


def test_measure_runs_the_steps_of_real_runs(values, monkeypatch, tmp_path):
    seen, compile_step = [], cost.compile_step

    def spy(method, phase, *rest):
        update = compile_step(method, phase, *rest)

        def step(ts, batch, rates):
            before = {key: np.array(ts.params[key][name]) for key, name in (('head', 'kernel'),)}
            kernel = np.array(ts.params['backbone']['stem']['conv']['kernel'])
            ts, measured = update(ts, batch, rates)
            moved = (np.array(ts.params['head']['kernel']) != before['head']).any()
            moved_backbone = (np.array(ts.params['backbone']['stem']['conv']['kernel']) != kernel).any()
            seen.append(('image' in batch, 'embedding' in batch, bool(moved), bool(moved_backbone)))
            return ts, measured

        return step

    monkeypatch.setattr(cost, 'compile_step', spy)
    monkeypatch.chdir(tmp_path)
    found = cost.measure(values, repeats=1)
    picture, cached, head, backbone = (sum(column) for column in zip(*seen))
    assert len(seen) == 6 and (picture, cached, head, backbone) == (4, 2, 6, 2)
    assert all(found[kind] > 0 for kind in cost.KINDS)
    assert not any(tmp_path.iterdir())  # no folder of a run


def test_measured_is_measured_once_a_machine(values, monkeypatch, tmp_path):
    calls, said = [], []
    fake = {**dict.fromkeys(cost.KINDS, 0.5), 'batch_size': 4}
    monkeypatch.setattr(cost, 'measure', lambda values: calls.append(1) or dict(fake))
    first = cost.measured(values, tmp_path, said.append)
    assert cost.measured(values, tmp_path, said.append) == first and len(calls) == len(said) == 1
    cost.measured({**values, 'batch_size': 8}, tmp_path, said.append)
    assert len(calls) == 2
    for file in (tmp_path / 'cost').iterdir():
        file.write_text(json.dumps({'full': None}))
    cost.measured(values, tmp_path, said.append)  # damaged: again
    assert len(calls) == 3


def test_total_counts_the_pass_once():
    step = {'batch_size': 10, 'full': 4.0, 'head': 2.0, 'cached': 0.5, 'forward': 1.0}
    # 100 examples are 10 batches an epoch
    assert cost.total(step, 100, 3, 0.25) == {'full': 120, 'head': 60, 'cached': 10 + 15, 'ridge': 10.25}


def test_a_source_that_does_not_fit_is_refused(values, tmp_path):
    with pytest.raises(UserError, match='no/such/run'):
        cost.measured({**values, 'init': 'torch:no/such/run.pth'}, tmp_path)
