"""Real processes that are killed, stopped, or in each other's way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from jtl import checkpoint

ROOT = Path(__file__).parents[2]
LONG = {**tiny.CONFIG, 'steps': 10**6, 'eval_every': 10**6}  # ends when it is told to


def start(tmp_path, config, *flags):
    """`python -m jtl.main` in a process group of its own."""
    path = tiny.write_config(tmp_path / 'config.py', config)
    command = [sys.executable, '-m', 'jtl.main', f'--config={path}', f'--workdir={tmp_path / "run"}', *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(process, happens, seconds=90):
    until = time.monotonic() + seconds
    while not happens() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def finish(process, seconds=90):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def children_of(process):
    """Numbers of the processes that any of its threads started."""
    files = Path(f'/proc/{process.pid}/task').glob('*/children')
    return [int(pid) for file in files for pid in file.read_text().split()]


def all_end(pids, seconds=30):
    until = time.monotonic() + seconds
    while any(Path(f'/proc/{pid}').exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(Path(f'/proc/{pid}').exists() for pid in pids)


def both_workers_deliver(tmp_path):
    """Every worker is past its start, in which a signal would still end it."""
    record = tmp_path / 'run' / 'metrics.jsonl'
    return lambda: record.exists() and record.read_text().count('\n') > 40


def trains(tmp_path):
    return (tmp_path / 'run' / 'metrics.jsonl').exists


def test_a_process_killed_at_any_time_ends_with_the_same_bits(tmp_path):
    # the long one is `python benchmarks/kill.py`
    command = [sys.executable, ROOT / 'benchmarks' / 'kill.py', '--kills=4', '--steps=400', f'--folder={tmp_path}']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'the same bits' in done.stdout and '4 kills' in done.stdout


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    first = start(tmp_path, LONG)
    wait_for(first, trains(tmp_path))
    status, out, err = finish(start(tmp_path, LONG))
    assert status == 2 and 'Traceback' not in err
    assert f'{tmp_path / "run"}: another process works in it (process {first.pid} on ' in err
    assert first.poll() is None  # and goes on
    first.kill()
    finish(first)
    assert (tmp_path / 'run' / 'lock').exists()  # a kill leaves the file, and it hinders nobody
    third = start(tmp_path, LONG)
    wait_for(third, lambda: (tmp_path / 'run' / 'lock').read_text().startswith(f'process {third.pid} '))
    third.send_signal(signal.SIGTERM)
    status, out, err = finish(third)
    assert status == 0, err
    assert not (tmp_path / 'run' / 'lock').exists()


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint_whole(tmp_path):
    process = start(tmp_path, {**LONG, 'checkpoint_every': 20, 'steps': 10**6, 'eval_every': 10**6})
    wait_for(process, lambda: checkpoint.steps(tmp_path / 'run' / 'checkpoints'))
    process.send_signal(signal.SIGINT)
    wait_for_line(process.stderr, 'Stopping after this step; once more stops at once.')
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process, seconds=20)
    assert status in (0, -signal.SIGINT) and 'Traceback' not in err  # 0 if it had saved before the second came
    step, parts, _, bad = checkpoint.newest(tmp_path / 'run' / 'checkpoints')
    assert step >= 20 and not bad


def wait_for_line(stream, text):
    for line in stream:
        if text in line:
            return
    raise AssertionError(f'no {text!r}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['ctrl-c', 'scheduler'])
def test_a_signal_to_all_processes_of_the_group_saves_with_workers(number, tmp_path):
    # a terminal's Ctrl-C and a scheduler's SIGTERM reach the processes that read data as well
    config = {**LONG, 'data': {**tiny.CONFIG['data'], 'augment': ('flip',), 'workers': 2}}
    process = start(tmp_path, config)
    wait_for(process, both_workers_deliver(tmp_path))
    children = children_of(process)
    os.killpg(process.pid, number)
    status, out, err = finish(process)
    assert status == 0 and 'saved' in out and 'Traceback' not in err, err
    assert len(children) >= 2 and all_end(children)


def test_a_killed_process_leaves_no_workers_behind(tmp_path):
    config = {**LONG, 'data': {**tiny.CONFIG['data'], 'augment': ('flip',), 'workers': 2}}
    process = start(tmp_path, config)
    wait_for(process, trains(tmp_path))
    children = children_of(process)
    process.kill()
    process.wait()
    assert len(children) >= 2 and all_end(children)


def test_a_signal_in_a_long_evaluation_saves_and_the_evaluation_is_made_again(tmp_path):
    # 40 examples one at a time after every step: nearly all the time goes into evaluations
    data = {**tiny.CONFIG['data'], 'eval_batch_size': 1, 'threads': 0}
    config = {**tiny.CONFIG, 'steps': 60, 'eval_every': 1, 'data': data, 'evals': ('classification',)}
    process = start(tmp_path, config)
    wait_for(process, trains(tmp_path))
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 0 and 'saved' in out, err
    assert time.monotonic() - began < 15  # a few tenths, on a machine that is not busy
    status, out, err = finish(start(tmp_path, config))
    assert status == 0, err
    rows = [(row['step'], row['split']) for row in tiny.rows(tmp_path / 'run')]
    assert rows == [(step, split) for step in range(1, 61) for split in ('train', 'val')]
