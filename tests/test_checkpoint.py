"""Checkpoints: whole or not at all, verified when read."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny

from jtl import checkpoint
from jtl.errors import UserError

PARTS = {
    'params': {'backbone': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'head': {'bias': jnp.float32(-0.0)}},
    'state': {'count': jnp.int32(7), 'half': jnp.array([1.5, -2], jnp.bfloat16), 'on': jnp.array(True)},
    'opt_state': (jnp.zeros(2), {'mu': None}, [jnp.ones(())]),
    'loop': {'rng': jax.random.key(3)},
    'ema': (),
}


def write(folder, *steps, best=(), parts=PARTS, progress=None, keep_last=1):
    writer = checkpoint.Writer(folder, keep_last)
    for step in steps:
        writer.save(step, parts, progress or {'phase': 1}, best)
    writer.wait()
    return folder


def test_load_gives_back_what_was_saved(tmp_path):
    progress = {'phase': 1, 'best_value': 0.1, 'best_step': None, 'window': [{'loss': 1e-45}]}
    parts, told = checkpoint.load(write(tmp_path, 12, progress=progress), 12)
    assert told == progress
    np.testing.assert_array_equal(parts['params']['backbone']['kernel'], [[0, 1, 2], [3, 4, 5]])
    assert np.signbit(parts['params']['head']['bias']) and parts['params']['head']['bias'].shape == ()
    assert parts['state']['half'].dtype == ml_dtypes.bfloat16 and parts['state']['half'].tolist() == [1.5, -2]
    assert parts['state']['count'].dtype == np.int32 and parts['state']['on'].dtype == bool
    assert 'ema' not in parts  # nothing in it
    rng = jax.random.wrap_key_data(jnp.asarray(parts['loop']['rng']))
    assert jax.random.bits(rng) == jax.random.bits(jax.random.key(3))
    like = jax.eval_shape(lambda: PARTS['opt_state'])
    restored = checkpoint.restore(like, parts['opt_state'], 'here')
    assert jax.tree.structure(restored) == jax.tree.structure(PARTS['opt_state'])


def test_load_reads_the_parts_asked_for(tmp_path):
    parts, _ = checkpoint.load(write(tmp_path, 1), 1, ('params', 'ema'))
    assert set(parts) == {'params', 'ema'} and parts['ema'] == {}


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path('runs/1/checkpoints'), 2)
    parts, _ = checkpoint.load(Path('runs/1/checkpoints'), 2)
    assert parts['params']['backbone']['kernel'].shape == (2, 3)


def test_save_takes_a_copy_that_donation_cannot_touch(tmp_path):
    x = np.ones(3, np.float32)
    writer = checkpoint.Writer(tmp_path)
    writer.save(1, {'params': {'x': x}}, {}, ())
    x[:] = 2
    writer.wait()
    assert checkpoint.load(tmp_path, 1)[0]['params']['x'].tolist() == [1, 1, 1]


def test_writer_keeps_the_newest_and_the_named(tmp_path):
    assert checkpoint.steps(write(tmp_path, 1, 2, 3)) == [3]
    assert checkpoint.steps(write(tmp_path, 4, 5, best=[3])) == [3, 5]
    assert checkpoint.steps(tmp_path / 'nothing') == []


def test_writer_keeps_the_last_few_and_drops_a_future_that_was_left(tmp_path):
    assert checkpoint.steps(write(tmp_path, 1, 2, 3, 4, best=[1], keep_last=2)) == [1, 3, 4]
    # 3 and 4 turned out damaged, say, and the run went on from 1
    assert checkpoint.steps(write(tmp_path, 2, keep_last=2)) == [1, 2]


def test_writer_replaces_the_same_step(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 1, progress={'phase': 2})
    assert checkpoint.load(tmp_path, 1)[1] == {'phase': 2}
    assert [p.name for p in tmp_path.iterdir()] == ['00000001']


@pytest.mark.parametrize('where', ['arrays', 'hashes'])
def test_a_failure_while_writing_leaves_the_older_checkpoint_and_nothing_else(where, tmp_path, monkeypatch):
    write(tmp_path, 1)
    target = {'arrays': (checkpoint.ocp.Checkpointer, 'save'), 'hashes': (checkpoint, '_hashes')}[where]
    real = getattr(*target)

    def fail(*args):
        if where == 'arrays':
            real(*args)  # the first arrays are there, the rest is not
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        writer = checkpoint.Writer(tmp_path)
        writer.save(2, PARTS, {}, ())
        told = f'{tmp_path}: the checkpoint could not be written: No space left on device. Here are those of steps'
        with pytest.raises(UserError, match=told):
            writer.wait()
    assert [p.name for p in tmp_path.iterdir()] == ['00000001']
    assert checkpoint.load(tmp_path, 1)[1] == {'phase': 1}
    writer.save(3, PARTS, {}, ())  # told once, the writer can go on
    writer.wait()
    assert checkpoint.steps(tmp_path) == [3]


def test_a_failed_save_is_told_at_the_next_one(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'save', fail)
    writer = checkpoint.Writer(tmp_path)
    writer.save(1, PARTS, {}, ())
    with pytest.raises(UserError, match='No space left'):
        writer.save(2, PARTS, {}, ())


FULL = """
import resource, signal, sys
import numpy as np
from jtl import checkpoint
from jtl.errors import UserError

writer = checkpoint.Writer(__import__('pathlib').Path(sys.argv[1]))
writer.save(1, {'params': {'x': np.ones(3)}}, {})
writer.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() fails with EFBIG, as it does with ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    writer.save(2, {'params': {'x': np.random.default_rng(0).normal(size=(4000, 2000))}}, {})
    writer.wait()
except UserError as e:
    print(e)
"""


def test_a_write_that_the_kernel_refuses_is_told_and_leaves_the_older_checkpoint(tmp_path):
    # a real refusal, which TensorStore passes on as a ValueError of a page
    done = subprocess.run([sys.executable, '-c', FULL, str(tmp_path)], capture_output=True, text=True)
    expected = (
        'the checkpoint could not be written: File too large. Here are those of steps [1]; the same command goes on.'
    )
    assert done.stdout == f'{tmp_path}: {expected}\n', done.stderr
    assert 'Traceback' not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['00000001']


def test_writer_clears_what_a_killed_run_left(tmp_path):
    write(tmp_path, 1)
    (tmp_path / 'tmp-2' / 'params.orbax-checkpoint-tmp').mkdir(parents=True)
    (tmp_path / 'tmp-old-00000000').mkdir()
    assert checkpoint.newest(tmp_path)[0] == 1
    checkpoint.Writer(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['00000001']


def test_a_checkpoint_written_whole_but_not_renamed_is_not_lost(tmp_path):
    write(tmp_path, 7)
    (tmp_path / '00000007').rename(tmp_path / 'tmp-7')
    assert checkpoint.newest(tmp_path)[0] == 7 and checkpoint.steps(tmp_path) == [7]
    (tmp_path / '00000007').rename(tmp_path / 'tmp-7')
    (tmp_path / 'tmp-7' / 'progress.json').unlink()
    assert checkpoint.newest(tmp_path) is None


def test_newest_goes_back_past_damaged_ones_and_names_them(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    write(tmp_path, 1, 2, 3, keep_last=3)
    tiny.tamper(tiny.largest(tmp_path / '00000003'))
    (tmp_path / '00000002' / 'sha256.json').unlink()
    step, parts, progress, bad = checkpoint.newest(tmp_path)
    assert (step, progress) == (1, {'phase': 1}) and 'params' in parts
    assert '00000003: damaged' in bad[0] and '00000002: not a readable checkpoint' in bad[1]
    tiny.tamper(tiny.largest(tmp_path / '00000001'))
    with pytest.raises(UserError, match='no checkpoint is whole.*00000003.*00000001.* Delete the folder'):
        checkpoint.newest(tmp_path)


def test_check_refuses_what_is_not_ours(tmp_path):
    checkpoint.check(tmp_path / 'nothing yet')
    write(tmp_path / 'c', 1)
    (tmp_path / 'c' / 'tmp-2').mkdir()
    checkpoint.check(tmp_path / 'c')
    for name in ('notes.txt', '0000001', 'best'):
        (tmp_path / 'c' / name).mkdir()
        with pytest.raises(UserError, match=f"c: holds '{name}', which is not a checkpoint"):
            checkpoint.check(tmp_path / 'c')
        (tmp_path / 'c' / name).rmdir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file: is a file'):
        checkpoint.check(tmp_path / 'file')


def test_check_refuses_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint.os, 'access', lambda *args: False)  # root, who may run this, can write anywhere
    with pytest.raises(UserError, match=f'{tmp_path}: cannot be written to'):
        checkpoint.check(tmp_path)


def test_a_checkpoint_renamed_to_another_step_is_not_that_step(tmp_path):
    write(tmp_path, 3, 5, keep_last=2)
    (tmp_path / '00000005').rename(tmp_path / '00000008')
    step, _, _, bad = checkpoint.newest(tmp_path)
    assert step == 3 and '00000008: damaged: it is the checkpoint of step 5, and was renamed' in bad[0]
    (tmp_path / '00000008').rename(tmp_path / 'tmp-8')  # nor when it looks like one that was not renamed yet
    assert checkpoint.newest(tmp_path)[0] == 3 and checkpoint.steps(tmp_path) == [3]


def test_nothing_that_is_not_ours_is_deleted_or_followed(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'thesis.tex').write_text('x')
    for name in ('tmp-foo', 'tmp-1.tar', '0000000019', '19'):
        (tmp_path / 'c' / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"holds '{name}'"):
            checkpoint.check(tmp_path / 'c')
        (tmp_path / 'c' / name).rmdir()
    for name in ('tmp-7', '00000007'):
        (tmp_path / 'c' / name).symlink_to(tmp_path / 'elsewhere')
        with pytest.raises(UserError, match=f"holds '{name}'"):
            checkpoint.check(tmp_path / 'c')
    write(tmp_path / 'c', 9)
    assert (tmp_path / 'elsewhere' / 'thesis.tex').exists() and (tmp_path / 'c' / 'tmp-7').is_symlink()


def test_load_refuses_another_format(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, 'FORMAT', 0)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(
        UserError, match='00000001: is in format 0, written by another version of jtl; this one reads 1'
    ):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete', 'add', 'progress', 'hashes', 'other hashes'])
def test_load_refuses_what_is_not_as_written(damage, tmp_path):
    path = write(tmp_path, 1) / '00000001'
    file = tiny.largest(path / 'params')
    if damage == 'flip':
        tiny.tamper(file)
    elif damage == 'truncate':
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == 'delete':
        file.unlink()
    elif damage == 'add':
        (path / 'params' / 'more').write_text('x')
    elif damage == 'progress':
        (path / 'progress.json').write_text('{"phase": 0}')
    elif damage == 'hashes':
        (path / 'sha256.json').write_text('{"progress.json": ')
    else:
        (path / 'sha256.json').write_text('[1]')
    with pytest.raises(UserError, match='00000001: (damaged|not a readable checkpoint)'):
        checkpoint.load(tmp_path, 1)


def test_load_names_the_damaged_file(tmp_path):
    write(tmp_path, 2)
    (tmp_path / '00000002' / 'progress.json').write_text('{}')
    with pytest.raises(UserError, match=r'damaged: progress\.json is not as written'):
        checkpoint.load(tmp_path, 2)


def test_load_refuses_a_step_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match='00000009: not a readable checkpoint'):
        checkpoint.load(tmp_path, 9)


@pytest.mark.parametrize(
    'saved, message',
    [
        ({'a': np.zeros(2)}, "here: the checkpoint has no 'b'"),
        ({'a': np.zeros(2), 'b': np.zeros(4)}, r"here: 'b' is \(4,\) in the checkpoint, \(3,\) here"),
        ({'a': np.zeros(2), 'b': np.zeros(3), 'c': np.zeros(1)}, "here: the checkpoint also has 'c'"),
        ({'a': np.zeros(2), 'b': np.zeros(3, np.float16)}, "here: 'b' is float16 in the checkpoint, float64 here"),
        ({'a': np.zeros(2), 'b': 'text'}, "here: 'b' is str in the checkpoint"),
    ],
)
def test_restore_refuses_another_structure(saved, message):
    with pytest.raises(UserError, match=message):
        checkpoint.restore({'a': np.zeros(2), 'b': np.zeros(3)}, saved, 'here')


def test_restore_makes_keys_of_their_integers():
    like = jax.eval_shape(lambda: {'rng': jax.random.key(0)})
    restored = checkpoint.restore(like, {'rng': np.asarray(jax.random.key_data(jax.random.key(7)))}, 'here')
    assert jax.random.bits(restored['rng']) == jax.random.bits(jax.random.key(7))
    for wrong in (np.zeros(2, np.int32), np.zeros((1, 2), np.uint32)):
        with pytest.raises(UserError, match="here: 'rng' is"):
            checkpoint.restore(like, {'rng': wrong}, 'here')


def rehash(path):
    """What someone does who changes a checkpoint on purpose."""
    (path / 'sha256.json').write_text(json.dumps(checkpoint._hashes(path)))


@pytest.mark.parametrize(
    'text', ['[1]', '{"progress": {}}', '{"format": 1}', '{"format": 1, "progress": 7}', '{', 'null']
)
def test_load_refuses_a_progress_that_was_rewritten_with_its_hash(text, tmp_path):
    path = write(tmp_path, 1) / '00000001'
    (path / 'progress.json').write_text(text)
    rehash(path)
    with pytest.raises(checkpoint.Damaged, match=r'progress\.json is not as jtl writes it'):
        checkpoint.load(tmp_path, 1)


@pytest.mark.parametrize('text', ['{}', '{'])
def test_load_refuses_arrays_that_orbax_cannot_read(text, tmp_path):
    path = write(tmp_path, 1) / '00000001'
    (path / 'params' / '_METADATA').write_text(text)
    rehash(path)
    with pytest.raises(checkpoint.Damaged, match='00000001: cannot be read'):
        checkpoint.load(tmp_path, 1)


def test_hashes_are_written_last(tmp_path):
    path = write(tmp_path, 1) / '00000001'
    hashed = json.loads((path / 'sha256.json').read_text())
    assert set(hashed) == set(tiny.files(path)) - {'sha256.json'}


def test_save_and_load_may_go_on_at_once(tmp_path):
    # without the lock 14 of 20 such saves failed
    parts = {'params': {f'x{i}': np.ones((64, 64), np.float32) for i in range(40)}}
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, parts, {}, best=[])
    for step in range(2, 7):
        with checkpoint.Writer(tmp_path) as writer:
            writer.save(step, parts, {}, best=[1])
            checkpoint.load(tmp_path, 1)
        assert checkpoint.steps(tmp_path) == [1, step]
