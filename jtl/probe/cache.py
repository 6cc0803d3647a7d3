"""Features on disk: one row an example, computed once.

An entry is a folder for one function from examples to features: these weights, this preprocessing, these files, this
view. It holds an array for each layer, `LAYER.npy` [N, …], to be read where it lies (`numpy.memmap`), and beside it
`LAYER.sum`, a checksum of each row. **A row counts if its checksum says so**: rows that were never computed, whose
process was killed, whose disk was full, or that were damaged since, are all the same case, and are computed again.
So a pass may be interrupted at any moment, a few rows can be had without the others, and a second layer, split or view
needs no pass over what is there.

Legend: N examples of a split of the source.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl import files
from jtl.errors import UserError, nearest

DONE = 1 << 32  # beside the CRC-32 of a row, so that 0 is a row that nobody wrote
FORMAT = 1
USES = ('auto', 'always', 'never')


class Unusable(UserError):
    """The cache cannot be written to, or is full."""


class Spoilt(UserError):
    """What a pass has computed is not to be kept."""


class Caching(NamedTuple):
    """The `cache` section of a config."""

    use: str
    views: int | None
    folder: str | None


def caching(*, use: str = 'auto', views: int | None = None, folder: str | None = None) -> Caching:
    """Checks the `cache` section of a config.

    Args:
        use: `auto` keeps the features of a backbone that is frozen throughout and sees nothing random; `always` refuses
            a run where that is not so; `never` does not.
        views: of augmented pictures, keep the first so many epochs; later ones see them again.
        folder: where; None is $JTL_CACHE, or ~/.cache/jtl.
    """
    if use not in USES:
        raise UserError(f'config.cache.use: {use!r}; {nearest(use, USES)}')
    if views is not None and views < 1:
        raise UserError(f'config.cache.views: {views} should be at least 1.')
    return Caching(use, views, folder)


class Entry(NamedTuple):
    """Where features of one kind are kept, and what they are.

    Attributes:
        folder: made when something is written.
        what: all that decides the numbers; its hash names the folder.
        size: N.
        shapes: by layer, the shape of a row.
    """

    folder: Path
    what: dict
    size: int
    shapes: dict[str, tuple[int, ...]]

    def file(self, layer: str, suffix: str = '.npy') -> Path:
        return self.folder / (layer.replace('/', '.') + suffix)

    def read(self, layer: str) -> np.ndarray:
        """float32 [N, …], not in memory until it is touched; only rows that `ensure` was asked for mean anything."""
        return np.load(self.file(layer), mmap_mode='r')


class Counted(NamedTuple):
    """How rows were come by."""

    read: int
    computed: int
    damaged: int  # of the computed ones, those that had been there


def root(folder: str | None = None) -> Path:
    """The cache: `folder`, or $JTL_CACHE, or ~/.cache/jtl."""
    return files.expanded(folder or os.environ.get('JTL_CACHE') or '~/.cache/jtl')


def entry(cache: Path, what: Mapping, size: int, shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    """The entry for `what`, a mapping that JSON can hold. `what['from']` says where things were found, and is not part
    of its name."""
    decides = {key: value for key, value in what.items() if key != 'from'}
    name = hashlib.sha256(json.dumps([FORMAT, decides], sort_keys=True).encode()).hexdigest()[:24]
    return Entry(cache / 'features' / name, dict(what), size, dict(shapes))


def ensure(
    entry: Entry,
    rows: np.ndarray,
    compute: Callable[[np.ndarray], Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]],
    say: Callable[[str], None] = print,
    pulse: Callable[[], None] = lambda: None,
) -> Counted:
    """All of `rows` of all layers are there and whole; those that are not are computed.

    Of several processes that ask for the same, one computes, and the others wait and read.

    Args:
        rows: numbers of examples, ascending.
        compute: those that are to be computed -> pieces `(rows [B], {layer: [B, …]})`.
        say: is told of waiting and of damage.
        pulse: called now and then; what it raises ends the wait, or the pass.

    Raises:
        Unusable: the disk is full, or cannot be written to; what was computed is kept.
    """
    there, _ = _look(entry, rows)
    if there.all():  # nothing to write, nobody to wait for
        return Counted(len(rows), 0, 0)
    with contextlib.ExitStack() as held:
        with _telling(entry.folder):
            held.enter_context(_alone(entry, say, pulse))
            for layer in entry.shapes:
                _make(entry, layer)
            there, damaged = _look(entry, rows)
            opened = _open(entry, held)
        if damaged.any():
            say(f'{entry.folder}: {damaged.sum()} of {len(rows)} rows are damaged; they are computed again.')
        wanted = rows[~there]
        try:
            for part, values in compute(wanted) if len(wanted) else ():
                with _telling(entry.folder):
                    _write(opened, part, values)
                pulse()
        except Spoilt:
            _forget(opened, wanted)
            raise
        return Counted(int(there.sum()), len(wanted), int(damaged.sum()))


def others(cache: Path, entry: Entry) -> list[str]:
    """Parts of `what` in which entries made from the same places differ from this one: what has changed since."""
    changed = []
    for file in (cache / 'features').glob('*/entry.json'):
        with contextlib.suppress(UserError):  # not ours to judge
            what = files.read_json(file)
            differs = [key for key in entry.what if key != 'from' and what.get(key) != entry.what[key]]
            if what.get('from') == entry.what.get('from') and len(differs) == 1 and differs[0] in ('data', 'weights'):
                changed += differs
    return sorted(set(changed))


@contextlib.contextmanager
def _telling(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            what = 'the disk is full. The rows that were computed are kept; with more room, the same command goes on'
        elif e.filename is None and e.errno is None:
            raise
        else:
            what = f'cannot be written to: {e.strerror or e}'
        raise Unusable(f'{folder}: {what}. $JTL_CACHE or config.cache.folder names another place.') from e


@contextlib.contextmanager
def _alone(entry: Entry, say: Callable[[str], None], pulse: Callable[[], None]) -> Iterator[None]:
    """The entry is this process's until the end; its folder is made."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        try:
            lock = files.locked(entry.folder / 'lock')
            break
        except BlockingIOError:
            if not waiting:
                say(f'{entry.folder}: waits for another process, which computes features of the same kind.')
            waiting = True
            pulse()
            time.sleep(0.1)
    with lock:
        if not (entry.folder / 'entry.json').exists():
            temporary = entry.folder / 'entry.tmp'
            temporary.write_text(json.dumps(entry.what, indent=1))
            temporary.replace(entry.folder / 'entry.json')
        yield


def _make(entry: Entry, layer: str) -> None:
    """Both files of a layer, of the right length; holes where nothing is written yet."""
    for path, header, length in _expected(entry, layer):
        with open(path, 'r+b' if path.exists() else 'w+b') as f:
            if f.read(len(header)) != header:
                f.seek(0)
                f.write(header)
            if os.fstat(f.fileno()).st_size != length:
                f.truncate(length)


def _expected(entry: Entry, layer: str) -> Iterator[tuple[Path, bytes, int]]:
    """`(path, header, length)` of both files of a layer."""
    for suffix, dtype, shape in (('.npy', '<f4', entry.shapes[layer]), ('.sum', '<u8', ())):
        header = _header(dtype, (entry.size, *shape))
        yield entry.file(layer, suffix), header, len(header) + entry.size * math.prod(shape) * int(dtype[-1])


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """As NumPy writes it."""
    text = repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).encode()
    padded = text + b' ' * (-(len(text) + 11) % 64) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(padded).to_bytes(2, 'little') + padded


def _look(entry: Entry, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(whole, damaged)`: which rows are as they were written in all layers, and which are no longer in some."""
    whole, damaged = np.ones(len(rows), bool), np.zeros(len(rows), bool)
    for layer in entry.shapes:
        fine, written = _check(entry, layer, rows)
        whole, damaged = whole & fine, damaged | written & ~fine
    return whole, damaged


def _check(entry: Entry, layer: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(whole, written)`, by the checksums; nothing counts in files that are not as `_make` leaves them."""
    whole, shape = np.zeros(len(rows), bool), entry.shapes[layer]
    try:
        for path, header, length in _expected(entry, layer):
            with open(path, 'rb') as f:
                if f.read(len(header)) != header or os.fstat(f.fileno()).st_size != length:
                    return whole, whole
        sums = np.load(entry.file(layer, '.sum'))[rows]
        start, length = len(_header('<f4', (entry.size, *shape))), 4 * math.prod(shape)
        with open(entry.file(layer), 'rb', buffering=0) as f:
            for i in np.flatnonzero(sums):
                whole[i] = sums[i] == _sum(os.pread(f.fileno(), length, start + int(rows[i]) * length))
    except (FileNotFoundError, NotADirectoryError):
        return whole, whole
    return whole, sums != 0


def _sum(row: np.ndarray | bytes) -> int:
    return zlib.crc32(row) | DONE


def _open(entry: Entry, opened: contextlib.ExitStack) -> dict[str, tuple]:
    """By layer: descriptors of both files, the lengths of their headers, and the shape of a row."""
    found = {}
    for layer, shape in entry.shapes.items():
        data, sums = (os.open(entry.file(layer, suffix), os.O_RDWR) for suffix in ('.npy', '.sum'))
        opened.callback(os.close, data)
        opened.callback(os.close, sums)
        starts = [len(_header('<f4', (entry.size, *shape))), len(_header('<u8', (entry.size,)))]
        found[layer] = (data, sums, *starts, shape)
    return found


def _write(opened: Mapping[str, tuple], rows: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """By `pwrite`, not through a memory map: a full disk is then an error, and not the end of the process."""
    for layer, (data, sums, data_start, sums_start, shape) in opened.items():
        block = np.ascontiguousarray(values[layer], '<f4')
        if block.shape != (len(rows), *shape):
            raise ValueError(f'{layer}: {block.shape} for {len(rows)} rows of {shape}')
        checks = np.array([_sum(row) for row in block], '<u8')
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        for a, b in zip(edges, edges[1:]):  # runs of neighbours
            _pwrite(data, block[a:b], data_start + int(rows[a]) * block[0].nbytes)
            _pwrite(sums, checks[a:b], sums_start + int(rows[a]) * 8)


def _pwrite(file: int, array: np.ndarray, offset: int) -> None:
    data = memoryview(array).cast('B')
    while data:
        done = os.pwrite(file, data, offset)
        data, offset = data[done:], offset + done


def _forget(opened: Mapping[str, tuple], rows: np.ndarray) -> None:
    """Rows count no longer."""
    for _, sums, _, start, _ in opened.values():
        for row in rows:
            _pwrite(sums, np.zeros(1, '<u8'), start + int(row) * 8)
