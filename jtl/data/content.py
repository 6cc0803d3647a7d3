"""A hash of all that a data set is read from, so that what was computed from it can be told from what was not."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jtl.errors import UserError


def content(files: Sequence[str], memory: Path | None = None) -> str:
    """A hash of the names, below the folder they share, and the bytes of files.

    Args:
        memory: a folder in which it is remembered, by the path, size, inode and times of every file, so that a large
            set is read once and not each time.

    Raises:
        UserError: a file cannot be read.
    """
    files = sorted(files)
    try:
        now = stamp(files)
        known = memory and memory / f'{now}.txt'
        with contextlib.suppress(OSError):
            if known and (found := _believed(known.read_bytes(), now)):
                return found
        found = _read(files)
    except OSError as e:
        raise UserError(f'{e.filename}: cannot be read: {e.strerror}.') from e
    if known:
        with contextlib.suppress(OSError):  # then it is not remembered
            memory.mkdir(parents=True, exist_ok=True)
            temporary = known.with_suffix(f'.{os.getpid()}')
            temporary.write_text(f'{found} {_seal(now, found)}')
            temporary.replace(known)
    return found


def _believed(text: bytes, now: str) -> str | None:
    """The hash in a memory, unless it is damaged."""
    found, _, seal = text.decode('ascii', 'replace').partition(' ')
    return found if seal == _seal(now, found) else None


def _seal(now: str, found: str) -> str:
    return hashlib.sha256(f'{now} {found}'.encode()).hexdigest()


def examples(of: Iterable[Mapping[str, np.ndarray]]) -> str:
    """The same of examples as they are decoded, which takes longer."""
    digest = hashlib.sha256()
    for example in of:
        for name, value in sorted(example.items()):
            digest.update(f'{name} {value.shape} {value.dtype}'.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def stamp(files: Sequence[str]) -> str:
    """Changes when a file does, without reading it."""
    digest = hashlib.sha256()
    for file in files:
        stat = os.stat(file)
        seen = (os.path.abspath(file), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(repr(seen).encode())
    return digest.hexdigest()


def _read(files: Sequence[str]) -> str:
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    digest = hashlib.sha256()
    for file in files:
        name = os.path.relpath(os.path.abspath(file), shared).encode('utf-8', 'surrogateescape')
        with open(file, 'rb') as f:
            digest.update(hashlib.sha256(name).digest() + hashlib.file_digest(f, 'sha256').digest())
    return digest.hexdigest()
