"""Checkpoints: what a run needs to go on, written whole or not at all, and verified when read.

    checkpoints/00001200/          the number of updates done
        params/ state/ …           one Orbax checkpointable for each part of the training state
        progress.json              host-side values: the phase, the best value, …
        sha256.json                the hash of every other file; written last

A folder is written under a temporary name and renamed, in a background thread, so the training step does not wait.
Nothing in a checkpoint is executed: arrays and JSON only.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jtl import tree
from jtl.errors import UserError

PyTree = Any

_ORBAX = threading.Lock()  # a load while another thread saves makes most of the saves fail (measured, Orbax 0.12.8)
_HASHES = 'sha256.json'
_PROGRESS = 'progress.json'


class Writer:
    """Saves into `folder`, one checkpoint at a time, keeping the newest and the named best."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()  # Orbax takes no relative path
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._pending: Future | None = None
        for left_over in folder.glob('tmp-*'):  # of a run that was killed while it wrote
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

    def save(self, step: int, parts: dict[str, PyTree], progress: dict, keep: Iterable[int]) -> None:
        """Writes the checkpoint of `step`, then deletes those that are neither it nor in `keep`."""
        self.wait()
        host = jax.tree.map(_to_host, {name: part for name, part in parts.items() if jax.tree.leaves(part)})
        self._pending = self._pool.submit(self._write, step, host, progress, {step, *keep})

    def wait(self) -> None:
        """Returns when the last save is on the disk; raises what went wrong with it."""
        if self._pending:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except OSError as e:
                raise UserError(f'{self.folder}: the checkpoint could not be written: {e.strerror or e}.') from e

    def _write(self, step: int, parts: dict[str, PyTree], progress: dict, keep: set[int]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary, final = self.folder / f'tmp-{step}', self.folder / f'{step:08d}'
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with _ORBAX:
                ocp.save_checkpointables(temporary, {name: _plain(part) for name, part in parts.items()})
            (temporary / _PROGRESS).write_text(json.dumps(progress))
            (temporary / _HASHES).write_text(json.dumps(_hashes(temporary)))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if final.exists():  # this very step, saved before
            final.rename(self.folder / f'tmp-old-{step}')
        temporary.rename(final)
        shutil.rmtree(self.folder / f'tmp-old-{step}', ignore_errors=True)
        for other in steps(self.folder):
            if other not in keep:
                shutil.rmtree(self.folder / f'{other:08d}')


def steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    return sorted(int(p.name) for p in folder.glob('[0-9]*') if p.name.isdigit() and (p / _HASHES).is_file())


def load(folder: Path, step: int, names: Iterable[str] | None = None) -> tuple[dict[str, PyTree], dict]:
    """`({part: nested dict of host arrays}, progress)` of one checkpoint, after checking every file's hash.

    Args:
        names: the parts wanted; None is all. A part that was empty when saved comes back as an empty dict.

    Raises:
        UserError: a file is missing, truncated or changed.
    """
    path = folder.absolute() / f'{step:08d}'
    try:
        expected = dict(json.loads((path / _HASHES).read_text()))
        found = _hashes(path)
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f'{path}: not a readable checkpoint ({e}).') from e
    bad = sorted(file for file in {*expected, *found} if expected.get(file) != found.get(file))
    if bad:
        raise UserError(
            f'{path}: damaged: {", ".join(bad[:3])} {"is" if len(bad) == 1 else "are"} not as written. '
            f'Delete this folder to go on from an earlier checkpoint; here are {steps(folder)}.'
        )
    progress = json.loads((path / _PROGRESS).read_text())
    saved = [p.name for p in path.iterdir() if (p / '_METADATA').is_file()]
    wanted = saved if names is None else [name for name in names if name in saved]
    with _ORBAX:
        parts = ocp.load_checkpointables(path, dict.fromkeys(wanted)) if wanted else {}
    return {name: parts.get(name, {}) for name in (saved if names is None else names)}, progress


def restore(like: PyTree, saved: PyTree, what: str) -> PyTree:
    """`saved`, nested dicts, poured into the structure of `like`; every path and shape must agree."""
    have, want = tree.flatten(saved), tree.flatten(like)
    for path in want:
        if path not in have:
            raise UserError(f'{what}: the checkpoint has no {path!r}: it is of another model, optimiser or version.')
        if have[path].shape != want[path].shape:
            raise UserError(f'{what}: {path!r} is {have[path].shape} in the checkpoint, {want[path].shape} here.')
    extra = sorted(set(have) - set(want))
    if extra:
        raise UserError(f'{what}: the checkpoint also has {extra[0]!r}: it is of another model, optimiser or version.')
    return jax.tree.unflatten(jax.tree.structure(like), [have[path] for path in want])


def _plain(part: PyTree) -> dict:
    """Nested dicts of host arrays by path, whatever the pytree's own types."""
    return tree.unflatten(tree.flatten(part))


def _to_host(leaf: jax.Array) -> np.ndarray:
    """A copy that later donation of the buffer cannot touch; a typed key as its integers."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def _hashes(path: Path) -> dict[str, str]:
    files = sorted(p for p in path.rglob('*') if p.is_file() and p.name != _HASHES)
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
