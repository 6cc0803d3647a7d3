"""Rows on disk: there and whole, or computed again."""

import errno
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from tiny import tamper

from jtl.errors import UserError
from jtl.probe import cache

N, SHAPES = 40, {'stage1/block0': (3,), 'features': (2, 2)}
TRUTH = {name: np.random.default_rng(i).normal(size=(N, *shape)).astype(np.float32) for i, (name, shape) in
         enumerate(SHAPES.items())}  # fmt: skip
WHAT = {'weights': 'w', 'data': 'd', 'split': 'train', 'from': ['folder:x', 'runs/a']}
ALL = np.arange(N)


class Computer:
    """Gives the truth in pieces, and remembers what it was asked for."""

    def __init__(self, stop_after=None, size=7):
        self.asked, self.stop_after, self.size = [], stop_after, size

    def __call__(self, rows, layers=SHAPES):
        for i in range(0, len(rows), self.size):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            part = rows[i : i + self.size]
            self.asked += part.tolist()
            yield part, {name: TRUTH[name][part] for name in layers}


def entry(folder, **changes):
    return cache.entry(folder, {**WHAT, **changes}, N, SHAPES)


def same(found, rows=ALL):
    for name in SHAPES:
        np.testing.assert_array_equal(found.read(name)[rows], TRUTH[name][rows])


def test_ensure_computes_each_row_once(tmp_path):
    compute, e = Computer(), entry(tmp_path)
    some = np.array([3, 4, 5, 11, 30, 39])
    assert cache.ensure(e, some, compute) == (0, 6, 0)
    same(e, some)
    assert cache.ensure(e, ALL, compute) == (6, 34, 0)
    same(e)
    assert sorted(compute.asked) == ALL.tolist()
    assert cache.ensure(e, ALL, compute) == (40, 0, 0) and len(compute.asked) == N
    assert isinstance(e.read('features'), np.memmap)
    np.testing.assert_array_equal(np.load(e.file('features')), TRUTH['features'])  # NumPy's own format


def test_entry_is_named_by_what_decides_and_not_by_where_it_came_from(tmp_path):
    assert entry(tmp_path).folder == entry(tmp_path, **{'from': ['elsewhere']}).folder
    for key in ('weights', 'data', 'split'):
        assert entry(tmp_path, **{key: 'other'}).folder != entry(tmp_path).folder


def test_a_second_layer_leaves_the_first_as_it_is(tmp_path):
    one = cache.entry(tmp_path, WHAT, N, {'features': (2, 2)})
    cache.ensure(one, ALL, lambda rows: Computer()(rows, ['features']))
    both = entry(tmp_path)
    assert both.folder == one.folder
    assert cache.ensure(both, ALL, Computer()).computed == N
    same(both)


def test_ensure_goes_on_after_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cache.ensure(entry(tmp_path), ALL, Computer(stop_after=14))
    compute = Computer()
    assert cache.ensure(entry(tmp_path), ALL, compute) == (14, 26, 0)
    assert compute.asked == list(range(14, N))
    same(entry(tmp_path))


def flip(path):
    tamper(path)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b'')


def header(path):
    path.write_bytes(path.read_bytes()[:20] + b'?' + path.read_bytes()[21:])


def gone(path):
    path.unlink()


def longer(path):
    path.write_bytes(path.read_bytes() + 1000 * b'x')


@pytest.mark.parametrize('harm', [flip, cut, empty, header, gone, longer])
@pytest.mark.parametrize('file', ['features.npy', 'features.sum', 'stage1.block0.npy', 'entry.json', 'lock'])
def test_ensure_mends_what_was_damaged(tmp_path, harm, file):
    e, said = entry(tmp_path), []
    cache.ensure(e, ALL, Computer())
    if file == 'lock' and harm in (flip, header):
        pytest.skip('it is empty')
    harm(e.folder / file)
    compute = Computer()
    counted = cache.ensure(e, ALL, compute, said.append)
    same(e)
    assert counted.computed == len(compute.asked)
    if harm in (flip, cut) and file.endswith('.npy'):
        assert counted.damaged == counted.computed > 0 and f'{counted.damaged} of 40 rows are damaged' in said[0]
        assert counted.computed < N


def test_a_full_disk_keeps_what_was_computed(tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def full(file, data, offset):
        written.append(len(data))
        if len(written) > 60:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return pwrite(file, data[: max(len(data) // 2, 1)], offset)  # and a disk may take a part

    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwrite', full)
        with pytest.raises(UserError, match='the disk is full.*JTL_CACHE'):
            cache.ensure(entry(tmp_path), ALL, Computer(size=2))
    counted = cache.ensure(entry(tmp_path), ALL, Computer())
    assert counted.read > 0 and counted.computed < N
    same(entry(tmp_path))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / 'features').write_text('a file')
    with pytest.raises(UserError, match='features.*cannot be written to'):
        cache.ensure(entry(tmp_path), ALL, Computer())


def slowly(folder, log):
    def compute(rows):
        for part, values in Computer(size=4)(rows):
            time.sleep(0.05)
            with open(log, 'a') as f:
                f.writelines(f'{row}\n' for row in part)
            yield part, values

    cache.ensure(entry(folder), ALL, compute)


def test_processes_that_want_the_same_do_the_work_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    workers = [context.Process(target=slowly, args=(tmp_path, tmp_path / 'log')) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    same(entry(tmp_path))
    assert sorted(map(int, (tmp_path / 'log').read_text().split())) == ALL.tolist()


def test_a_killed_process_neither_blocks_nor_loses(tmp_path):
    worker = multiprocessing.get_context('spawn').Process(target=slowly, args=(tmp_path, tmp_path / 'log'))
    worker.start()
    while not (tmp_path / 'log').exists() or len((tmp_path / 'log').read_text().split()) < 12:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    counted = cache.ensure(entry(tmp_path), ALL, Computer())
    assert 8 <= counted.read < N and not counted.damaged
    same(entry(tmp_path))


def test_others_tells_what_changed(tmp_path):
    cache.ensure(entry(tmp_path), ALL, Computer())
    assert cache.others(tmp_path, entry(tmp_path, data='e')) == ['data']
    assert cache.others(tmp_path, entry(tmp_path, weights='v')) == ['weights']
    assert cache.others(tmp_path, entry(tmp_path, split='test')) == []
    assert cache.others(tmp_path, entry(tmp_path, data='e', **{'from': ['folder:y', 'runs/a']})) == []
    file = entry(tmp_path).folder / 'entry.json'
    file.write_text(json.dumps(WHAT)[:10])
    assert cache.others(tmp_path, entry(tmp_path, data='e')) == []


@pytest.mark.parametrize('given, said', [({'use': 'allways'}, 'always'), ({'views': 0}, 'at least 1')])
def test_caching_refuses_what_it_does_not_know(given, said):
    with pytest.raises(UserError, match=said):
        cache.caching(**given)
