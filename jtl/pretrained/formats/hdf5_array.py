"""The numbers of an array in an HDF5 file: stored whole, which are views of the file, or in chunks, which are copied.

See `hdf5` for what is read and `hdf5_bytes` for the budgets that keep a hostile file from exhausting memory.
"""

import math
import struct
import zlib

import numpy as np

from jtl.pretrained.formats.hdf5 import Array, leaves
from jtl.pretrained.formats.hdf5_bytes import NOWHERE, File, draw, guard, refuse, view

FILTERS = {4: 'szip', 5: 'nbit', 6: 'scaleoffset', 32000: 'lzf', 32001: 'blosc', 32004: 'lz4', 32015: 'zstd'}


def read(array: Array) -> np.ndarray:
    """The numbers in the machine's byte order; an array is read once.

    Raises:
        UserError: damaged, out of proportion to the file, or stored in a way that is not read.
    """
    return guard(array.file, lambda: _read(array))


def _read(array: Array) -> np.ndarray:
    file, layout = array.file, array.layout
    if array.dtype is None or array.dtype.hasobject:
        refuse(file, f'{array.path!r} is not made of numbers')
    size = math.prod(array.shape) * array.dtype.itemsize
    version, kind = layout[:2]
    draw(file, 'unpacked' if kind == 2 else 'stored', size, repr(array.path))
    if version not in (3, 4) or kind > 2 or (kind == 2 and version == 4):
        refuse(file, f'{array.path!r} is stored in a way that is not read (layout {version}.{kind}, libver="latest")')
    if kind == 0:
        length = struct.unpack('<H', layout[2:4])[0]
        raw = np.frombuffer(layout[4 : 4 + length], np.uint8)
    elif kind == 1:
        address, length = struct.unpack('<QQ', layout[2:18])
        raw = view(file, address, length) if address != NOWHERE else np.empty(0, np.uint8)
    else:
        return _native(_chunks(array))
    if len(raw) != size:
        raise ValueError(f'{array.path!r} has {len(raw):,} bytes stored, its shape {array.shape} needs {size:,}')
    return _native(raw.view(array.dtype).reshape(array.shape))


def _native(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder('='))


def _chunks(array: Array) -> np.ndarray:
    """An array put together from its chunks, every one of which must be there."""
    file, rank, item = array.file, len(array.shape), array.dtype.itemsize
    address = struct.unpack('<Q', array.layout[3:11])[0]
    *chunk, width = struct.unpack_from(f'<{array.layout[2]}I', array.layout, 11)
    if len(chunk) != rank or width != item or 0 in chunk:
        raise ValueError(f'{array.path!r} of shape {array.shape} has chunks of {chunk}')
    grid = [-(-n // c) for n, c in zip(array.shape, chunk)]
    size, filters = math.prod(chunk) * item, _filters(array)
    found = {} if address == NOWHERE else dict(leaves(file, address, 1, 16 + 8 * rank))
    if len(found) != math.prod(grid):
        raise ValueError(f'{array.path!r} has {len(found)} of {math.prod(grid)} chunks')
    out, seen = np.empty(array.shape, array.dtype), set()
    for key, where in found.items():
        stored, skip, *offset = struct.unpack(f'<II{rank}Q8x', key)
        if any(o % c or o >= n for o, c, n in zip(offset, chunk, array.shape)) or tuple(offset) in seen:
            raise ValueError(f'{array.path!r} has a chunk at {offset}')
        seen.add(tuple(offset))
        draw(file, 'unpacked', size, repr(array.path))
        draw(file, 'stored', stored, repr(array.path))
        raw = view(file, where, stored).tobytes()
        for i in reversed(range(len(filters))):
            raw = raw if skip >> i & 1 else _undo(file, filters[i], raw, size, item)
        if len(raw) != size:
            raise ValueError(f'{array.path!r} has a chunk of {len(raw):,} bytes, expected {size:,}')
        here = tuple(slice(o, o + c) for o, c in zip(offset, chunk))
        part = out[here]
        part[...] = np.frombuffer(raw, array.dtype).reshape(chunk)[tuple(slice(n) for n in part.shape)]
    return out


def _filters(array: Array) -> list[int]:
    """What was done to each chunk, in the order in which it was done."""
    body, filters = array.filters, []
    if not body:
        return []
    version, count = body[:2]
    at = 8 if version == 1 else 2
    for _ in range(count):
        filters.append(struct.unpack_from('<H', body, at)[0])
        if version == 1 or filters[-1] >= 256:
            length, _, values = struct.unpack_from('<HHH', body, at + 2)
            at += 8 + (-(-length // 8) * 8 if version == 1 else length) + 4 * values
            at += 4 * (values % 2) if version == 1 else 0
        else:
            at += 6 + 4 * struct.unpack_from('<H', body, at + 4)[0]
    for filter in filters:
        if filter not in (1, 2, 3):
            refuse(array.file, f'{array.path!r} is compressed by {FILTERS.get(filter, f"filter {filter}")}')
    return filters


def _undo(file: File, filter: int, raw: bytes, size: int, item: int) -> bytes:
    if filter == 1:
        return zlib.decompressobj().decompress(raw, size + 4)  # with a checksum inside
    if filter == 3:
        return raw[:-4]
    return np.frombuffer(raw, np.uint8).reshape(item, -1).T.tobytes()  # [item, n] -> [n, item]
