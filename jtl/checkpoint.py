"""Checkpoints: what a run needs to go on, written whole or not at all, and verified when read.

    checkpoints/00001200/          the number of updates done
        params/ state/ …           one Orbax tree for each part of the training state
        progress.json              the format, the step, and host-side values: the phase, the best values, …
        sha256.json                the hash of every other file; written last

A folder is written under a temporary name, brought to the disk, and renamed, in a background thread, so that the
training step does not wait. Nothing in a checkpoint is executed: arrays and JSON only.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jtl import tree
from jtl.errors import UserError

PyTree = Any

FORMAT = 1  # of this layout; what is written in another one is refused
_HASHES = 'sha256.json'
_PROGRESS = 'progress.json'
_TEMPORARY = re.compile(r'tmp-(old-)?\d+')
_ORBAX = threading.Lock()


class Damaged(UserError):
    """A checkpoint is not as it was written."""


class Writer:
    """Saves into `folder`, one checkpoint at a time, and deletes old ones.

    Args:
        folder: made if need be; None is a writer that writes nothing, for all processes of a run but the first.
        keep_last: how many of the newest to keep.
    """

    def __init__(self, folder: Path | None, keep_last: int = 1):
        self.folder = folder and folder.absolute()  # Orbax takes no relative path
        self.keep_last = keep_last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._pending: Future | None = None
        for left_over in filter(_is_temporary, _inside(folder)):  # of a run that was killed while it wrote
            shutil.rmtree(left_over)

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Nothing is left half-written; of two errors the first is told."""
        try:
            self.wait()
        except UserError:
            if error is None:
                raise

    def save(self, step: int, parts: dict[str, PyTree], progress: dict, best: Iterable[int] = ()) -> None:
        """Writes the checkpoint of `step`, then deletes all but the newest and those in `best`.

        What is later than `step` is deleted too: it is of a future that this run did not reach again.
        """
        self.wait()
        if self.folder is None:
            return
        parts = {name: jax.tree.map(_numbers, part) for name, part in parts.items() if jax.tree.leaves(part)}
        for leaf in jax.tree.leaves(parts):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()  # all on their way before the first is waited for
        host = jax.tree.map(np.array, parts)  # copies, which later donation of the buffers cannot touch
        self._pending = self._pool.submit(self._write, step, host, progress, set(best))

    def wait(self) -> None:
        """Returns when the last save is on the disk; raises what went wrong with it."""
        if self._pending:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except (OSError, ValueError) as e:  # TensorStore tells of a full disk by a ValueError
                raise UserError(
                    f'{self.folder}: the checkpoint could not be written: {_reason(e)}. '
                    f'Here are those of steps {steps(self.folder) or "none"}; the same command goes on.'
                ) from e

    def _write(self, step: int, parts: dict[str, PyTree], progress: dict, best: set[int]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary, final = self.folder / f'tmp-{step}', self.folder / f'{step:08d}'
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with _alone():
                for name, part in parts.items():
                    _orbax().save(temporary / name, ocp.args.PyTreeSave(_plain(part)))
            (temporary / _PROGRESS).write_text(json.dumps({'format': FORMAT, 'step': step, 'progress': progress}))
            (temporary / _HASHES).write_text(json.dumps(_hashes(temporary)))
            _to_disk(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if final.exists():  # this very step, saved before; `_finish` knows of a kill between these renames
            self._delete(final, then=lambda: temporary.rename(final))
        else:
            temporary.rename(final)
        _sync(self.folder)
        last = [s for s in steps(self.folder) if s <= step][-self.keep_last :]
        for other in steps(self.folder):
            if other not in best.union(last):
                self._delete(self.folder / f'{other:08d}')

    def _delete(self, path: Path, then: Callable[[], Any] = lambda: None) -> None:
        """At once, by a rename, so that a kill leaves no half of a checkpoint."""
        gone = self.folder / f'tmp-old-{path.name}'
        path.rename(gone)
        then()
        shutil.rmtree(gone)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending."""
    return sorted(int(p.name) for p in filter(_is_checkpoint, _inside(folder)))


def check(folder: Path) -> None:
    """Refuses a folder that cannot be written to, or that holds what jtl did not put there.

    Raises:
        UserError: naming what.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f'{folder}: is a file; checkpoints go into a folder of this name.')
    for path in sorted(folder.iterdir()):
        if not _is_checkpoint(path) and not _is_temporary(path):
            raise UserError(f'{folder}: holds {path.name!r}, which is not a checkpoint; move it elsewhere.')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'{folder}: cannot be written to.')


def newest(folder: Path) -> tuple[int, dict[str, PyTree], dict, list[str]] | None:
    """`(step, parts, progress, what is wrong with later ones)` of the newest whole checkpoint; None if there is none.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    _finish(folder)
    bad = []
    for step in reversed(steps(folder)):
        try:
            return step, *load(folder, step), bad
        except Damaged as e:
            bad.append(str(e))
    if bad:
        raise UserError(
            f'{folder}: no checkpoint is whole. {" ".join(bad)} Delete the folder to train again from the start.'
        )
    return None


def damaged(folder: Path, of: Iterable[int]) -> dict[int, str]:
    """What is wrong with which of the checkpoints of some steps."""
    found = {}
    for step in of:
        try:
            _verify(folder.absolute() / f'{step:08d}', step)
        except Damaged as e:
            found[step] = str(e)
    return found


def _finish(folder: Path) -> None:
    """Renames a checkpoint that was written whole when its writer was killed, where it is the only one of its step."""
    for temporary in filter(_is_temporary, _inside(folder)):
        step = temporary.name.removeprefix('tmp-')
        if step.isdecimal() and not (folder / f'{int(step):08d}').exists():
            with contextlib.suppress(Damaged):
                _verify(temporary, int(step))
                temporary.rename(folder / f'{int(step):08d}')


def load(folder: Path, step: int, names: Iterable[str] | None = None) -> tuple[dict[str, PyTree], dict]:
    """`({part: nested dict of host arrays}, progress)` of one checkpoint, after checking every file's hash.

    Args:
        names: the parts wanted; None is all. A part that was empty when saved comes back as an empty dict.

    Raises:
        Damaged: a file is missing, truncated or changed.
        UserError: written by a version of jtl that does it in another way.
    """
    path = folder.absolute() / f'{step:08d}'
    told = _verify(path, step)
    if told['format'] != FORMAT:
        raise UserError(
            f'{path}: is in format {told["format"]}, written by another version of jtl; this one reads {FORMAT}.'
        )
    saved = [p.name for p in path.iterdir() if (p / '_METADATA').is_file()]
    names = saved if names is None else list(names)
    try:
        with _alone():
            parts = {name: _orbax().restore(path / name) if name in saved else {} for name in names}
    except Exception as e:  # whatever Orbax makes of files that are as they were written, but not by Orbax
        raise Damaged(f'{path}: cannot be read ({type(e).__name__}: {_reason(e)}).') from e
    return parts, told['progress']


def _verify(path: Path, step: int) -> dict:
    """What `progress.json` says, after checking every file."""
    try:
        expected = dict(json.loads((path / _HASHES).read_text()))
        found = _hashes(path)
    except (OSError, ValueError, TypeError) as e:
        raise Damaged(f'{path}: not a readable checkpoint ({e}).') from e
    bad = sorted(file for file in {*expected, *found} if expected.get(file) != found.get(file))
    if bad:
        raise Damaged(f'{path}: damaged: {", ".join(bad[:3])} {"is" if len(bad) == 1 else "are"} not as written.')
    try:
        told = dict(json.loads((path / _PROGRESS).read_text()))
        is_of, _ = told['step'], dict(told['progress'], format=told['format'])
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise Damaged(f'{path}: {_PROGRESS} is not as jtl writes it ({e}).') from e
    if is_of != step:
        raise Damaged(f'{path}: damaged: it is the checkpoint of step {is_of}, and was renamed.')
    return told


def restore(like: PyTree, saved: PyTree, what: str) -> PyTree:
    """`saved`, nested dicts, poured into the structure of `like`; every path, shape and type must agree.

    A typed key in `like` is made from its integers.
    """
    have, want = tree.flatten(saved), tree.flatten(like)
    another = 'it is of another model, optimiser or version'
    for path, leaf in want.items():
        if path not in have:
            raise UserError(f'{what}: the checkpoint has no {path!r}: {another}.')
        stored = jax.eval_shape(jax.random.key_data, leaf) if tree.is_key(leaf) else leaf
        for kind in ('shape', 'dtype'):
            there, here = getattr(have[path], kind, type(have[path]).__name__), getattr(stored, kind)
            if there != here:
                raise UserError(f'{what}: {path!r} is {there} in the checkpoint, {here} here: {another}.')
        if tree.is_key(leaf):
            have[path] = jax.random.wrap_key_data(have[path])
    extra = sorted(set(have) - set(want))
    if extra:
        raise UserError(f'{what}: the checkpoint also has {extra[0]!r}: {another}.')
    return jax.tree.unflatten(jax.tree.structure(like), [have[path] for path in want])


def _orbax() -> ocp.Checkpointer:
    """Reads and writes a tree in this process alone.

    Orbax v1 cannot: it broadcasts over all devices before it writes, whichever processes are said to be active, and
    does so in the thread that saves, beside the collectives of the training step (measured, 0.12.8).
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix='jtl'
    )
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One thread at a time: a load while another saves makes most of the saves fail (measured, Orbax 0.12.8).

    And quiet: what goes wrong is told once, by the exception.
    """
    log = logging.getLogger('absl')
    with _ORBAX:
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


def _plain(part: PyTree) -> dict:
    """Nested dicts of host arrays by path, whatever the pytree's own types."""
    return tree.unflatten(tree.flatten(part))


def _numbers(leaf: jax.Array) -> jax.Array:
    """A typed key as its integers; all else as it is."""
    return jax.random.key_data(leaf) if tree.is_key(leaf) else leaf


def _inside(folder: Path | None) -> list[Path]:
    return list(folder.iterdir()) if folder and folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    named = path.name.isdecimal() and path.name == f'{int(path.name):08d}'
    return named and path.is_dir() and not path.is_symlink()


def _is_temporary(path: Path) -> bool:
    return bool(_TEMPORARY.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _hashes(path: Path) -> dict[str, str]:
    """Path below `path` -> sha256, of all files there but the one that holds these."""
    files = sorted(p for p in path.rglob('*') if p.is_file() and p != path / _HASHES)
    return {str(p.relative_to(path)): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _to_disk(path: Path) -> None:
    """Everything below a folder, so that not even a power cut leaves a renamed folder of empty files."""
    for p in [*path.rglob('*'), path]:
        _sync(p)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError:
        if not path.is_dir():  # some network file systems do not sync folders
            raise
    finally:
        os.close(file)


def _reason(error: Exception) -> str:
    """`No space left on device`, from the operating system or from TensorStore, whose own account is a page long."""
    text = getattr(error, 'strerror', None) or str(error)
    return text.split(' [')[0].rsplit(': ', 1)[-1].rstrip('.')
