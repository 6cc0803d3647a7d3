"""Two real processes that train together over loopback: what one would do, whatever happens to either of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny

from jtl import checkpoint, launch, metrics, tree
from jtl.main import main
from jtl.run import read
from jtl.train import Stopped, train

HERE = Path(__file__).parent
JTL = (sys.executable, '-m', 'jtl.main')
HOST = (sys.executable, HERE / 'host.py')
TIMES = dict.fromkeys(('seconds', 'examples_per_second', 'compile_seconds'))
CUT = {  # parameters, momentum and averages of two layers are in halves
    **tiny.CONFIG,
    'model': {'name': 'mlp', 'hidden': (256,)},
    'steps': 40,
    'eval_every': 10,
    'checkpoint_every': 5,
    'optim': {'name': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'ema': 0.9},
    'sharding': {'rules': (('backbone/fc1/.*', 'fsdp'), ('head/kernel', 'fsdp(0)'), ('.*', 'replicate'))},
}


class Ended(NamedTuple):
    status: int
    out: str
    err: str
    at: float  # seconds since the start

    @property
    def last_line(self):
        return self.err.splitlines()[-1]


def two(tmp_path, *command, env=({}, {}), flags=((), ()), cwd=(HERE, HERE), processes=(0, 1), seconds=120):
    """Starts a command in two processes, or only in some of them, and returns how they ended."""
    with socket.create_server(('', 0)) as server:
        port = server.getsockname()[1]
    running, began = {}, time.monotonic()
    for i in processes:
        addresses = {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(i)}
        with open(tmp_path / f'{i}.out', 'w') as out, open(tmp_path / f'{i}.err', 'w') as err:
            running[i] = subprocess.Popen(
                [*command, *flags[i]], stdout=out, stderr=err, env={**os.environ, **addresses, **env[i]}, cwd=cwd[i]
            )
    ended = {}
    try:
        while len(ended) < len(running) and time.monotonic() - began < seconds:
            for i, process in running.items():
                if i not in ended and process.poll() is not None:
                    ended[i] = time.monotonic() - began
            time.sleep(0.01)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    said = lambda i, stream: (tmp_path / f'{i}.{stream}').read_text()
    assert len(ended) == len(running), [said(i, 'err') for i in running if i not in ended]
    return [Ended(running[i].returncode, said(i, 'out'), said(i, 'err'), ended[i]) for i in processes]


def fine(ended):
    assert [e.status for e in ended] == [0] * len(ended), '\n'.join(e.err for e in ended)
    return ended


def leaves(run, step):
    parts, _ = checkpoint.load(run / 'checkpoints', step)
    return tree.flatten(parts)


def bits(run, step):
    return {path: (x.shape, x.dtype, x.tobytes()) for path, x in leaves(run, step).items()}


def difference(a, b, step):
    """The largest, over all numbers of a checkpoint."""
    a, b = leaves(a, step), leaves(b, step)
    assert {path: (x.shape, x.dtype) for path, x in a.items()} == {path: (x.shape, x.dtype) for path, x in b.items()}
    assert {path.split('/')[0] for path in a} >= {'params', 'opt_state', 'ema', 'loop'}
    largest = max(np.abs(a[path].astype(np.float64) - b[path].astype(np.float64)).max() for path in a)
    print(f'difference after {step} steps: {largest:.1e}')
    return largest


# One run to which everything happens.

FLOAT64 = {'JAX_ENABLE_X64': '1', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}  # the latter only saves time
PHASED = {
    **tiny.EVERYTHING,
    'model': {**tiny.EVERYTHING['model'], 'dtype': 'float64'},
    'phases': ((8, tiny.HEAD), (None, tiny.ALL)),
}
SWEEP = "\n\ndef sweep(config):\n    yield 'whole', {}\n    yield 'hurt', {}\n"
KILLED, STOPPED, LOST, ORPHANED, DONE = range(5)
FROM = (4, 6, 10, 14)  # the steps whose checkpoint the accidents wait for
ACCIDENTS = (  # to process 0 and 1, in the run `hurt`
    (f'SIGKILL:{FROM[KILLED]}', f'SIGKILL:{FROM[KILLED]}'),
    (None, f'SIGTERM:{FROM[STOPPED]}'),
    (None, f'SIGKILL:{FROM[LOST]}'),
    (f'SIGKILL:{FROM[ORPHANED]}', None),
    (None, None),
)


class Story(NamedTuple):
    """A sweep of two equal runs, started again until it is done.

    Attributes:
        whole, hurt: their folders; to the second everything happens.
        ends: how both processes ended each time.
        config: when the config.json of `hurt` was written, as of each time.
        rows: its metrics.jsonl, as of each time.
    """

    whole: Path
    hurt: Path
    ends: list[list[Ended]]
    config: list[int]
    rows: list[list[dict]]


@pytest.fixture(scope='module')
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp('story')
    command = (*HOST, f'--config={tiny.write_config(folder / "config.py", PHASED, SWEEP)}', f'--workdir={folder}/two')
    story = Story(folder / 'two' / 'whole', folder / 'two' / 'hurt', [], [], [])
    for accidents in ACCIDENTS:
        env = [{**FLOAT64, **({'ACCIDENT': f'{a}:{story.hurt}'} if a else {})} for a in accidents]
        story.ends.append(two(folder, *command, env=env))
        assert story.hurt.exists(), [e.err for e in story.ends[-1]]
        story.config.append((story.hurt / 'config.json').stat().st_mtime_ns)
        story.rows.append(metrics.read(story.hurt / 'metrics.jsonl'))
    return story


def test_two_processes_are_one_after_twenty_steps_in_float64(story, tmp_path):
    one = tmp_path / 'one'
    command = [*HOST, f'--config={tiny.write_config(tmp_path / "config.py", PHASED)}', f'--workdir={one}']
    subprocess.run(command, check=True, timeout=120, env={**os.environ, **FLOAT64}, cwd=HERE)
    assert all(x.dtype == np.float64 for x in leaves(one, 20).values() if x.dtype.kind == 'f')
    for run in (story.whole, story.hurt):
        assert difference(one, run, 20) <= 1e-5
        for expected, found in zip(tiny.rows(one), tiny.rows(run), strict=True):
            assert found == pytest.approx(expected, abs=1e-5)


def test_whatever_happens_to_two_processes_the_end_has_the_same_bits(story):
    whole, hurt = story.whole, story.hurt
    fine(story.ends[DONE])
    assert checkpoint.steps(hurt / 'checkpoints') == checkpoint.steps(whole / 'checkpoints')
    for step in checkpoint.steps(whole / 'checkpoints'):
        assert bits(hurt, step) == bits(whole, step)
    assert tiny.rows(hurt) == tiny.rows(whole)
    assert (hurt / 'params.txt').read_text() == (whole / 'params.txt').read_text()
    with np.load(whole / 'predictions.npz') as expected, np.load(hurt / 'predictions.npz') as found:
        assert all(np.array_equal(expected[name], found[name]) for name in ('index', 'label', 'logits'))
    expected, found = (json.loads((run / 'result.json').read_text()) for run in (whole, hurt))
    assert {**found, **TIMES} == {**expected, **TIMES}


def test_every_start_goes_on_from_a_whole_checkpoint(story):
    assert [e.status for e in story.ends[KILLED]] == [-signal.SIGKILL] * 2
    for before, after, step in zip(story.rows, story.rows[1:], FROM):
        kept = lambda rows: [row for row in rows if row['step'] <= step]  # noqa: B023
        assert kept(after) == kept(before)  # how many examples a second it were included: it was not made again
        assert before[-1]['step'] >= step
    train_rows = [row['step'] for row in story.rows[DONE] if row['split'] == 'train']
    assert train_rows == list(range(1, 21))  # log_every is 1: none is missing, none is there twice
    assert len(set(story.config)) == 1  # written once
    assert not any('Going on from the one before' in e.out for ended in story.ends for e in ended)


def test_a_signal_to_one_process_stops_both_at_the_same_step(story):
    first, second = fine(story.ends[STOPPED])
    assert 'Stopping after this step' in second.err and 'Stopping' not in first.err
    assert re.search(r'stopped after step \d+ of 20, saved\. The same command', first.out)


@pytest.mark.parametrize('which, lost', [(LOST, 1), (ORPHANED, 0)])
def test_the_survivor_of_a_lost_process_says_so_and_ends(story, which, lost):
    gone, survivor = story.ends[which][lost], story.ends[which][1 - lost]
    assert gone.status == -signal.SIGKILL
    assert survivor.status == launch.STATUS, survivor.err
    assert survivor.last_line == launch.LOST and 'Traceback' not in survivor.err
    print(f'ended {survivor.at - gone.at:.1f} s later')
    assert survivor.at - gone.at < 20


# After one step, as it is used: in float32, optimised.


def test_two_processes_are_one_after_a_step(tmp_path):
    config = {**tiny.EVERYTHING, 'steps': 1, 'optim': {**tiny.EVERYTHING['optim'], 'warmup': 0}}
    path = tiny.write_config(tmp_path / 'config.py', config)
    ended = fine(two(tmp_path, *JTL, f'--config={path}', f'--workdir={tmp_path / "two"}'))
    assert 'step 1, val accuracy' in ended[0].out and 'step 1' not in ended[1].out  # the first alone speaks
    train(config, tmp_path / 'one', quiet=True)
    assert difference(tmp_path / 'one', tmp_path / 'two', 1) <= 1e-6
    assert {p.name for p in (tmp_path / 'two').iterdir()} == {p.name for p in (tmp_path / 'one').iterdir()}


# Parameters in pieces.


@pytest.fixture(scope='module')
def cut(tmp_path_factory):
    """`(arguments without --workdir, folder of a run that one process made)`."""
    folder = tmp_path_factory.mktemp('cut')
    config = tiny.write_config(folder / 'config.py', CUT)
    train(CUT, folder / 'one', quiet=True)
    return f'--config={config}', folder / 'one'


def test_two_processes_start_from_weights_that_they_cut(cut, tmp_path):
    _, one = cut
    loaded = {**CUT, 'init': str(one), 'load': {'head': 'names'}, 'steps': 1, 'optim': {'name': 'sgd', 'lr': 1e-30}}
    path = tiny.write_config(tmp_path / 'config.py', loaded)
    fine(two(tmp_path, *JTL, f'--config={path}', f'--workdir={tmp_path / "run"}'))
    assert '10 of 10 classes by name' in (tmp_path / 'run' / 'params.txt').read_text()
    before, after = tree.flatten(read(one).params), tree.flatten(read(tmp_path / 'run').params)
    for name, leaf in before.items():
        np.testing.assert_allclose(after[name], leaf, rtol=0, atol=1e-20)


def test_a_cut_state_is_saved_whole_and_one_process_goes_on(cut, tmp_path):
    config, one = cut
    run = tmp_path / 'run'
    env = [{'ACCIDENT': f'SIGTERM:10:{run}'}] * 2
    first, second = fine(two(tmp_path, *HOST, config, f'--workdir={run}', env=env))
    assert '2 devices, 0.1 MiB of the 0.2 MiB' in first.out  # half of it on each
    assert all('Stopping after this step' in e.err for e in (first, second))
    step = checkpoint.steps(run / 'checkpoints')[-1]
    assert f'stopped after step {step} of 40, saved' in first.out and 11 <= step < 40
    assert leaves(run, step)['params/backbone/fc1/kernel'].shape == (64, 256)
    assert main([config, f'--workdir={run}']) == 0
    assert difference(run, one, 40) <= 1e-5


def test_two_processes_go_on_with_the_run_of_one(cut, tmp_path):
    config, one = cut
    run = tmp_path / 'run'
    questions = iter([False] * 14 + [True])
    with pytest.raises(Stopped):
        train(CUT, run, stop=lambda: next(questions), quiet=True)
    (step,) = checkpoint.steps(run / 'checkpoints')[-1:]
    ended = fine(two(tmp_path, *JTL, config, f'--workdir={run}'))
    assert f'going on from step {step} of 40' in ended[0].out
    assert difference(run, one, 40) <= 1e-5
    # and now that it is finished, the same command returns at once
    before = tiny.files(run)
    ended = fine(two(tmp_path, *JTL, config, f'--workdir={run}'))
    assert 'val accuracy' in ended[0].out and tiny.files(run) == before


def test_two_processes_agree_that_transfer_hurt(cut, tmp_path):
    _, one = cut
    data = {'name': 'digits', 'val': 0.2, 'eval_batch_size': 256}
    config = {**CUT, 'data': data, 'init': str(one), 'load': {'head': 'fresh'}, 'rules': tiny.HEAD, 'sharding': {}}
    config |= {'optim': {'name': 'sgd', 'lr': 1e-6}, 'guard': {'seeds': 1, 'rates': (1e5,)}}  # it learns nothing
    config |= {'steps': 15, 'eval_every': 15, 'checkpoint_every': 15}
    path = tiny.write_config(tmp_path / 'config.py', config)
    ended = two(tmp_path, *JTL, f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert [e.status for e in ended] == [launch.HURT] * 2, '\n'.join(e.err for e in ended)
    assert all(launch.LOST not in e.err and 'Traceback' not in e.err for e in ended)
    found = json.loads((tmp_path / 'run' / 'guard.json').read_text())
    assert found['verdict'] == 'hurt' and found['scratch']['lr'] == 0.1
    assert ended[0].out.splitlines()[-1] == found['line'] and 'guard' not in ended[1].out


# What is wrong with one of them.


def pictures_of_two(tmp_path, seeds):
    """A command that trains on `pictures` below the current folder, and such folders, one for each process."""
    config = {**tiny.CONFIG, 'data': {'name': 'folder:pictures', 'val': 0.2}}
    folders = [tmp_path / str(i) for i in range(2)]
    for folder, seed in zip(folders, seeds):
        folder.mkdir()
        if seed is not None:
            tiny.pictures(folder / 'pictures', seed=seed)
    return (*JTL, f'--config={tiny.write_config(tmp_path / "config.py", config)}', f'--workdir={tmp_path}/run'), folders


def test_processes_with_other_pictures_are_refused(tmp_path):
    command, folders = pictures_of_two(tmp_path, seeds=(0, 1))
    refused(two(tmp_path, *command, cwd=folders))
    assert not (tmp_path / 'run').exists()


def test_processes_with_other_flags_are_refused(tmp_path):
    config = tiny.write_config(tmp_path / 'config.py')
    command = (*JTL, f'--config={config}', f'--workdir={tmp_path / "run"}')
    refused(two(tmp_path, *command, flags=([], ['--config.optim.lr=0.2'])))
    assert not (tmp_path / 'run').exists()


def refused(ended):
    for e in ended:
        assert e.status == 2 and 'Traceback' not in e.err, e.err
        assert e.last_line == (
            'jtl: The config, or the data or weights behind it, differs between the processes of this run: '
            '1 and 0 do not agree.'
        )


@pytest.mark.parametrize('fails', [0, 1])
def test_a_process_that_fails_alone_does_not_leave_the_other_waiting(fails, tmp_path):
    command, folders = pictures_of_two(tmp_path, seeds=[None if i == fails else 0 for i in range(2)])
    ended = two(tmp_path, *command, cwd=folders)
    assert ended[fails].status == 2 and re.search(r'^jtl: .*pictures', ended[fails].last_line), ended[fails].err
    survivor = ended[1 - fails]
    assert survivor.status == launch.STATUS and survivor.last_line == launch.LOST, survivor.err
    print(f'ended {survivor.at - ended[fails].at:.1f} s later')
    assert survivor.at - ended[fails].at < 20
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('starts', [0, 1])
def test_a_process_that_starts_alone_says_so(starts, tmp_path):
    (ended,) = two(tmp_path, sys.executable, HERE / 'telling.py', '--start=3', processes=[starts])
    assert ended.status == launch.STATUS and ended.last_line == launch.LATE, ended.err


# What they tell each other.


def test_what_processes_tell_each_other_keeps_its_bits(tmp_path):
    fine(two(tmp_path, sys.executable, HERE / 'telling.py'))


@pytest.mark.slow
def test_processes_may_take_their_time_to_open_their_data(tmp_path):
    env = [{'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}] * 2
    fine(two(tmp_path, sys.executable, HERE / 'telling.py', '--late=40', env=env))  # Gloo connects within 30 s or never
