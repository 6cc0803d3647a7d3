"""A run that was cut short ends as if it had not been: the same bits, wherever it stopped."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from jtl import checkpoint
from jtl.errors import UserError
from jtl.main import load_file
from jtl.train import Stopped, train

EVERYTHING = {
    **tiny.EVERYTHING,
    'batch_size': 6,  # 40 examples: batches run on across epochs
    'steps': 9,
    'eval_every': 2,
    'log_every': 4,
    'checkpoint_every': 3,
    'keep_last': 1,
    'patience': 50,
    'seed': 3,
    'phases': ((4, tiny.HEAD), (None, tiny.ALL)),
    'optim': {'name': 'adamw', 'lr': 1e-2, 'warmup': 2, 'ema': 0.9, 'accumulate': 2, 'clip': 1.0},
}
outcome = load_file(Path(__file__).parents[2] / 'benchmarks' / 'kill.py').outcome


def at(question):
    """A `stop` that says yes from the given question on: one comes after each step and before each batch evaluated."""
    count = itertools.count(1)
    return lambda: next(count) >= question


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp('whole') / 'run'
    train(EVERYTHING, run, quiet=True)
    return outcome(run)


def test_a_run_has_what_resuming_could_lose(uninterrupted):
    """The comparison below is of something: optimiser slots, averages, statistics, a phase, a best value."""
    assert uninterrupted['result']['step'] in (2, 4, 6, 8)  # the last step is not evaluated on, so is never selected
    assert {step for step, _ in uninterrupted['checkpoints']} == {uninterrupted['result']['step'], 9}
    paths = {path for step, path in uninterrupted['checkpoints'] if step == 9}
    for part in (
        'params/head/',
        'state/.*batch_stats/',
        'state/class_weight',
        'opt_state/',
        'ema/backbone/',
        'loop/rng',
    ):
        assert any(re.match(part, path) for path in paths), part
    assert uninterrupted['progress']['phase'] == 1 and uninterrupted['progress']['best']


def test_a_run_stopped_anywhere_ends_with_the_same_bits(uninterrupted, tmp_path):
    # 9 questions after steps and 2 in each of the 5 evaluations on 40 examples: before, at and after the phase's change
    # at 4, at a checkpoint's step, an evaluation's and neither, in the middle of an evaluation; then in the final ones
    said = []
    for question in itertools.count(1):
        run = tmp_path / str(question)
        try:
            train(EVERYTHING, run, stop=at(question), quiet=True)
        except Stopped as e:
            said.append(str(e))
            train(EVERYTHING, run, quiet=True)
        else:
            break
        found = outcome(run)
        for part, expected in uninterrupted.items():
            assert found[part] == expected, (said[-1], part)
    for step in range(1, 10):
        assert said.count(f'stopped after step {step} of 9, saved') == (1 if step in (1, 3, 5, 7) else 3)
    assert said[-1].startswith('stopped after the last step, before the end of the final evaluation')


def test_a_run_stopped_again_and_again_ends_with_the_same_bits(uninterrupted, tmp_path):
    said = ''
    while not said.startswith('stopped after the last step'):
        with pytest.raises(Stopped) as stopped:
            train(EVERYTHING, tmp_path / 'run', stop=at(4), quiet=True)
        assert str(stopped.value) != said  # headway
        said = str(stopped.value)
    train(EVERYTHING, tmp_path / 'run', quiet=True)
    assert outcome(tmp_path / 'run') == uninterrupted


def test_a_killed_run_goes_on_from_its_last_checkpoint(uninterrupted, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(count=itertools.count(1)):  # noqa: B008 (counts the questions of the one session)
        if next(count) == 9:  # after step 5: four after steps and two in each of two evaluations were before it
            raise Killed
        return False

    save = checkpoint.Writer.save
    with monkeypatch.context() as patch:  # written at once: in this process, what is being written would not be lost
        patch.setattr(checkpoint.Writer, 'save', lambda self, *args, **kw: (save(self, *args, **kw), self.wait()))
        with pytest.raises(Killed):
            train(EVERYTHING, tmp_path / 'run', stop=kill, quiet=True)
    (tmp_path / 'run' / 'checkpoints' / 'tmp-5').mkdir()
    with (tmp_path / 'run' / 'metrics.jsonl').open('a') as f:
        f.write('{"step": 5, "split": "train", "lo')  # cut off in the middle of a line
    assert checkpoint.steps(tmp_path / 'run' / 'checkpoints')[-1] in (3, 4)  # 4 if it was the best so far
    train(EVERYTHING, tmp_path / 'run', quiet=True)
    assert outcome(tmp_path / 'run') == uninterrupted
    assert not list((tmp_path / 'run' / 'checkpoints').glob('tmp-*'))


def test_a_kill_after_an_evaluation_that_was_made_again_writes_no_row_twice(uninterrupted, tmp_path, monkeypatch):
    # stopped in the evaluation after step 2; resumed, and killed between the row of that evaluation and the checkpoint
    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    with pytest.raises(Stopped, match='after step 2'):
        train(EVERYTHING, tmp_path / 'run', stop=at(3), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr('jtl.train.save', kill)
        with pytest.raises(Killed):
            train(EVERYTHING, tmp_path / 'run', quiet=True)
    assert [row['step'] for row in tiny.rows(tmp_path / 'run')] == [2]  # the row is there
    train(EVERYTHING, tmp_path / 'run', quiet=True)
    assert outcome(tmp_path / 'run') == uninterrupted


def test_patience_counts_across_sessions(tmp_path):
    # a rate this low changes no prediction, so accuracy never improves on its first value:
    # evaluations after 2, 4, 6, 8 steps wait 0, 1, 2, 3
    config = {**tiny.CONFIG, 'steps': 20, 'patience': 3, 'keep_last': 1, 'optim': {'name': 'sgd', 'lr': 1e-9}}
    with pytest.raises(Stopped):
        train(config, tmp_path / 'run', stop=at(5), quiet=True)
    result = train(config, tmp_path / 'run', quiet=True)
    assert result['step'] == 8 and checkpoint.steps(tmp_path / 'run' / 'checkpoints') == [8]  # the latest of equals


def test_a_finished_run_is_returned_at_once(tmp_path, monkeypatch):
    first = train(tiny.CONFIG, tmp_path / 'run', quiet=True)
    before = tiny.files(tmp_path / 'run')
    monkeypatch.setattr('jtl.train.compile_step', None)  # nothing is trained
    assert train(tiny.CONFIG, tmp_path / 'run', quiet=True) == first
    assert tiny.files(tmp_path / 'run') == before


def test_a_run_killed_before_its_result_only_finishes(tmp_path, monkeypatch):
    run = tmp_path / 'run'
    train(tiny.CONFIG, run, quiet=True)
    before = outcome(run)
    for file in ('result.json', 'predictions.npz'):
        (run / file).unlink()
    monkeypatch.setattr('jtl.train.compile_step', None)
    train(tiny.CONFIG, run, quiet=True)
    assert outcome(run) == before


def test_without_checkpoints_a_stopped_run_says_that_nothing_is_saved(tmp_path):
    config = {**tiny.CONFIG, 'checkpoint_every': 0}
    with pytest.raises(Stopped, match=r'not saved, since config\.checkpoint_every is 0'):
        train(config, tmp_path / 'run', stop=at(1), quiet=True)
    assert train(config, tmp_path / 'run', quiet=True)['step'] == 3  # from the start


def test_another_config_is_refused_while_the_run_is_unfinished(tmp_path):
    with pytest.raises(Stopped):
        train(tiny.CONFIG, tmp_path / 'run', stop=at(1), quiet=True)
    before = tiny.files(tmp_path / 'run')
    with pytest.raises(UserError, match=r'config\.steps: 3 -> 4\.'):
        train({**tiny.CONFIG, 'steps': 4}, tmp_path / 'run', quiet=True)
    assert tiny.files(tmp_path / 'run') == before


def test_a_signal_saves_says_so_and_the_same_command_finishes(tmp_path):
    # the signal is sent after the first few of 4,000 steps, which take seconds
    config = tiny.write_config(tmp_path / 'config.py', {**tiny.CONFIG, 'steps': 4000, 'eval_every': 4000})
    command = [sys.executable, '-m', 'jtl.main', f'--config={config}', f'--workdir={tmp_path / "run"}']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / 'run' / 'metrics.jsonl').exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert 'Stopping after this step' in err and 'Traceback' not in err
    (step,) = checkpoint.steps(tmp_path / 'run' / 'checkpoints')
    assert (
        f'stopped after step {step} of 4000, saved. The same command with --workdir={tmp_path / "run"} goes on' in out
    )
    assert not (tmp_path / 'run' / 'result.json').exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'going on from step {step} of 4000' in done.stdout
    steps = [row['step'] for row in tiny.rows(tmp_path / 'run') if row['split'] == 'train']
    assert steps == list(range(1, 4001))  # log_every is 1: none is missing, none is there twice
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['step'] == 4000
