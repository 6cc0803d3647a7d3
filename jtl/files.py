"""Files: what people name and nobody vouches for, paths and JSON; and locks."""

import collections
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from jtl.errors import UserError, printable

MOST = 100_000_000  # bytes of a description, as safetensors allows for a header


def expanded(path: str | Path) -> Path:
    """A path as people write it: `~` is the home, `~name` that of somebody else."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:  # nobody of this name
        raise UserError(f'{path}: {e}') from e


def read_json(path: Path, kinds: tuple[type, ...] = (dict,)) -> Any:
    """The value of a JSON file; see `parse_json`.

    Raises:
        UserError: there is no such file, too.
    """
    return parse_json(read_small(path), str(path), kinds)


def read_small(path: Path, root: Path | None = None) -> bytes:
    """All of a file that should be small.

    Args:
        root: a folder that a link may not lead out of, where the content is passed on with other things.

    Raises:
        UserError: it is large, not there, outside of `root`, or no file: a pipe or a device may never end.
    """
    if not path.is_file():
        raise UserError(f'{path}: no such file.')
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f'{path}: is a link to {path.resolve()}, outside of {root}; put a copy there if it is meant.')
    with open(path, 'rb') as f:
        data = f.read(MOST + 1)
    if len(data) > MOST:
        raise UserError(f'{path} has more than the {MOST:,} bytes that any description needs.')
    return data


def parse_json(data: bytes, where: str, kinds: tuple[type, ...] = (dict,)) -> Any:
    """The value of a JSON text in UTF-8: an object, or what else is allowed; the keys of each object come once.

    Args:
        where: how the message names it.
        kinds: what it may be, of `dict` and `list`.

    Raises:
        UserError: it is too large, not JSON, or of another kind.
    """
    if not data:
        raise UserError(f'{where} is empty.')
    if len(data) > MOST:
        raise UserError(f'{where} has more than the {MOST:,} bytes that any description needs.')
    try:
        value = json.loads(data.decode('utf-8-sig'), object_pairs_hook=_once)
    except (ValueError, RecursionError) as e:
        raise UserError(f'{where} is not JSON: {printable(str(e))}.') from None
    if not isinstance(value, kinds):
        expected = ' or '.join({dict: 'an object', list: 'a list'}[kind] for kind in kinds)
        raise UserError(f'{where} holds a {type(value).__name__}, expected {expected}.')
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'{twice[:60]!r} is there twice')
    return found


def locked(path: Path) -> IO[str]:
    """The file, made if need be, open and locked until it is closed; the end of the process closes it, too.

    Raises:
        BlockingIOError: another process has it.
    """
    while True:
        file = path.open('a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError as e:
            if e.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                print(f'Note: {path.parent} is on a file system without locks; start no second process in it.')
                return file
            file.close()
            raise
        file.close()  # whoever had the lock before has deleted it meanwhile
