"""HDF5 files, as far as weights need them: groups, attributes, and arrays that are stored whole or in chunks.

Format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html. Read are superblocks 0 to 3, object headers
1 and 2, groups as symbol tables and as links, whole ("contiguous") and compact arrays, chunks under a version 1 B-tree
with gzip, shuffle and checksum, and numbers, opaque bytes and text of fixed and variable length. That is everything
that h5py writes unless it is asked for `libver='latest'` or another compressor; the rest is refused by name.

Why not a library? A checkpoint is untrusted. libhdf5 (h5py) is C with a history of memory errors on damaged files;
pyfive, in Python, ran for ever on 4 of 1,500 mutated files (its B-trees and heaps may point back at themselves), and
installs 38 MB of compressors. Here every byte goes through `take`, which checks the range and draws on a budget of
work in proportion to the file, so that no structure can be followed in a circle; and every array draws on a budget of
bytes in proportion to the file, before anything is allocated. An array that is stored whole is a view of the file.
"""

import math
import struct
from typing import Any, NamedTuple

import numpy as np

from jtl.pretrained.formats.hdf5_bytes import NOWHERE, File, expect, guard, opened, refuse, take

MAGIC = b'\x89HDF\r\n\x1a\n'
LONGEST = 512  # bytes of a name or a path
TEXT = np.dtype(object)  # text of variable length, which is stored in a heap


class Array(NamedTuple):
    """An array that `hdf5_array.read` can read; `dtype` is None if it is not made of numbers or bytes."""

    file: File
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    layout: bytes
    filters: bytes
    attributes: dict[str, Any]


class Contents(NamedTuple):
    """What is in a file: attributes of each group and the arrays, by path; '' is the root."""

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, Array]


def read(data: np.ndarray, name: str) -> Contents:
    """The groups and arrays of the HDF5 file whose bytes are `data`, uint8 [N]; arrays are not read yet.

    Text attributes are `str` or lists of `str`, others arrays; attributes of other kinds are left out.

    Raises:
        UserError: no HDF5 file, a damaged one, or one that uses what is not read here; `name` is how it is called.
    """
    file = opened(data, name)
    return guard(file, lambda: _read_file(file))


def _read_file(file: File) -> Contents:
    expect(take(file, 0, 8), MAGIC)
    version = int(take(file, 8, 1)[0])
    if version > 3:
        refuse(file, f'superblock version {version} is not known')
    sizes, at = (13, 24 + 4 * version) if version < 2 else (9, 12)
    if (found := tuple(take(file, sizes, 2))) != (8, 8):
        raise ValueError(f'offsets and lengths of {found} bytes')
    base, _, end, last = struct.unpack('<4Q', take(file, at, 32))
    root = last if version >= 2 else struct.unpack('<Q', take(file, at + 40, 8))[0]
    if base:
        refuse(file, 'it starts with a user block')
    if end > len(file.data):
        raise ValueError(f'truncated: it should have {end:,} bytes and has {len(file.data):,}')
    contents = Contents({}, {})
    _walk(file, root, '', contents)
    if '' not in contents.groups:
        raise ValueError('its root is not a group')
    return contents


def _walk(file: File, address: int, path: str, contents: Contents) -> None:
    """Adds the object at an address, and all that is below, to `contents`."""
    messages = _messages(file, address)
    kinds = dict(reversed(messages))  # the first of each kind
    if 7 in kinds:
        refuse(file, f'the numbers of {path!r} are in another file (external storage), which is never opened')
    if 21 in kinds and struct.unpack('<Q', kinds[21][4 if kinds[21][1] & 1 else 2 :][:8])[0] != NOWHERE:
        refuse(file, f'the attributes of {path!r} are in a "dense" heap (libver="latest")')
    attributes = dict(found for kind, body in messages if kind == 12 and (found := _attribute(file, body)))
    if 8 in kinds:
        if 1 not in kinds or 3 not in kinds:
            raise ValueError(f'{path!r} has no shape or no type')
        shape, dtype = _shape(kinds[1]), _dtype(kinds[3])  # if None, refused when somebody asks for it
        contents.arrays[path] = Array(file, path, shape, dtype, kinds[8], kinds.get(11, b''), attributes)
        return
    contents.groups[path] = attributes
    if path.count('/') > 30:
        raise ValueError('groups more than 30 deep')
    for name, child in _members(file, path, kinds, messages):
        below = f'{path}/{name}' if path else name
        taken = below in contents.groups or below in contents.arrays
        if not name.isprintable() or name in ('', '.') or '/' in name or taken or len(below) > LONGEST:
            raise ValueError(f'a member called {name[:100]!r}')
        _walk(file, child, below, contents)


# Object headers: a list of messages, each a kind and its bytes.


def _messages(file: File, address: int) -> list[tuple[int, bytes]]:
    start = take(file, address, 16)
    if start[:4] != b'OHDR':
        if start[0] != 1:
            raise ValueError(f'an object header of version {start[0]}')
        return _blocks(file, address + 16, struct.unpack('<I', start[8:12])[0], '<HHB3x', 0)
    flags = start[5]
    at = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(take(file, at, width), 'little')
    return _blocks(file, at + width, size, '<BHB2x' if flags & 4 else '<BHB', 4)


def _blocks(file: File, start: int, size: int, header: str, seal: int) -> list[tuple[int, bytes]]:
    """The messages of a chain of blocks; those after the first have a signature and a checksum of `seal` bytes each."""
    messages, blocks, step = [], [(start, size)], struct.calcsize(header)
    for start, size in blocks:
        body, at = take(file, start, size), 0
        while at + step <= size:
            kind, length, flags = struct.unpack_from(header, body, at)
            at += step
            message = body[at : at + length]
            if len(message) < length:
                raise ValueError('a message longer than its block')
            at += length
            if flags & 2 and kind in (1, 3, 8, 11, 12):
                refuse(file, 'it has shared ("committed") types')
            if kind == 16:
                where, long = struct.unpack('<QQ', message[:16])
                if seal:
                    expect(take(file, where, 4), b'OCHK')
                blocks.append((where + seal, long - 2 * seal))
                if long < 2 * seal:
                    raise ValueError('an empty block')
            messages.append((kind, message))
    return messages


# Groups.


def _members(file: File, path: str, kinds: dict, messages: list):
    """`(name, address)` of what is in a group."""
    if 17 in kinds:
        tree, heap = struct.unpack('<QQ', kinds[17][:16])
        start = take(file, heap, 32)
        expect(start, b'HEAP')
        size, _, address = struct.unpack('<QQQ', start[8:32])
        yield from _symbols(file, path, tree, take(file, address, size))
    for kind, body in messages:
        if kind == 2 and struct.unpack('<Q', body[10 if body[1] & 1 else 2 :][:8])[0] != NOWHERE:
            refuse(file, f'the group {path!r} keeps its links in a "dense" heap (track_order or libver="latest")')
        if kind == 6:
            yield _link(file, path, body)


def _symbols(file: File, path: str, tree: int, names: bytes):
    for _, node in leaves(file, tree, 0, 8):
        start = take(file, node, 8)
        expect(start, b'SNOD\x01')
        entries = take(file, node + 8, 40 * struct.unpack('<H', start[6:8])[0])
        for name, address, cached, _ in struct.iter_unpack('<QQI4x16s', entries):
            name = names[name : names.index(b'\0', name, name + LONGEST)].decode()
            if cached == 2:
                refuse(file, f'{name!r} in {path!r} is a soft link, which is not followed')
            yield name, address


def _link(file: File, path: str, body: bytes) -> tuple[str, int]:
    flags = body[1]
    kind, at = (body[2], 3) if flags & 8 else (0, 2)
    at += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], 'little')
    if length > LONGEST:
        raise ValueError(f'a name of {length:,} bytes')
    name = body[at + width : at + width + length].decode()
    if kind:
        known = {1: 'a soft link, which is not followed', 64: 'a link into another file, which is never opened'}
        refuse(file, f'{name!r} in {path!r} is {known.get(kind, f"a link of kind {kind}")}')
    return name, struct.unpack('<Q', body[at + width + length :][:8])[0]


def leaves(file: File, address: int, kind: int, key: int, level: int | None = None):
    """`(key, address)` of the children at the bottom of a version 1 B-tree."""
    start = take(file, address, 24)
    expect(start, b'TREE' + bytes([kind]))
    height, used = struct.unpack('<BH', start[5:8])
    if level is not None and height != level:
        raise ValueError(f'a B-tree with a node of level {height} below one of {level + 1}')
    entries = take(file, address + 24, used * (key + 8))
    for at in range(0, len(entries), key + 8):
        child = struct.unpack_from('<Q', entries, at + key)[0]
        if height:
            yield from leaves(file, child, kind, key, height - 1)
        else:
            yield entries[at : at + key], child


# Types, shapes and attributes.


def _shape(body: bytes) -> tuple[int, ...]:
    version, rank, flags = body[:3]
    if version not in (1, 2) or rank > 32:
        raise ValueError(f'a shape of version {version} with {rank} axes')
    if version == 2 and body[3] == 2:  # "null": no value at all
        return (0,)
    return struct.unpack_from(f'<{rank}Q', body, 8 if version == 1 else 4)


def _dtype(body: bytes) -> np.dtype | None:
    """The type of an element, or None for a kind that is not read."""
    kind, bits, size = body[0] & 15, int.from_bytes(body[1:4], 'little'), struct.unpack('<I', body[4:8])[0]
    order = '>' if bits & 1 else '<'
    if kind == 0 and size in (1, 2, 4, 8) and struct.unpack('<HH', body[8:12]) == (0, 8 * size):
        return np.dtype(f'{order}{"i" if bits & 8 else "u"}{size}')
    if kind == 1 and (size, body[13], body[15]) in ((2, 5, 10), (4, 8, 23), (8, 11, 52)):
        return np.dtype(f'{order}f{size}')
    if kind in (3, 5) and 0 < size < 2**16:
        return np.dtype(f'{"S" if kind == 3 else "V"}{size}')
    if kind == 8 and body[8] & 15 == 0:  # an enumeration, such as h5py's bool
        return _dtype(body[8:])
    if kind == 9 and bits & 15 == 1:
        return TEXT
    return None


def _attribute(file: File, body: bytes) -> tuple[str, Any] | None:
    """`(name, value)`, or None if the value is of a kind that is not read."""
    version, flags, *sizes = struct.unpack('<BBHHH', body[:8])
    if version not in (1, 2, 3):
        raise ValueError(f'an attribute of version {version}')
    if version > 1 and flags & 3:
        refuse(file, 'it has shared ("committed") types')
    at, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    name, dtype, shape = parts[0].rstrip(b'\0').decode(), _dtype(parts[1]), _shape(parts[2])
    if dtype is None:
        return None
    count, size = math.prod(shape), 16 if dtype == TEXT else dtype.itemsize
    if count * size > len(body) - at:
        raise ValueError(f'the attribute {name[:100]!r} has no room for its {count} values')
    if dtype == TEXT:
        texts = [_from_heap(file, *struct.unpack_from('<IQI', body, at + 16 * i)) for i in range(count)]
    elif dtype.kind == 'S':
        texts = [body[at + i * size : at + (i + 1) * size] for i in range(count)]
    else:
        return name, np.frombuffer(body, dtype, count, at).reshape(shape)
    texts = [text.rstrip(b'\0').decode() for text in texts]
    return name, texts if shape else texts[0]


def _from_heap(file: File, length: int, address: int, index: int) -> bytes:
    """A text of the global heap."""
    if not length:
        return b''
    if address not in file.heaps:
        start = take(file, address, 16)
        expect(start, b'GCOL\x01')
        at, end, found = address + 16, address + struct.unpack('<Q', start[8:16])[0], {}
        while at + 16 <= end:
            number, size = struct.unpack('<H6xQ', take(file, at, 16))
            if number == 0:  # what follows is free
                break
            found[number] = (at + 16, size)
            at += 16 + -(-size // 8) * 8
        file.heaps[address] = found
    start, size = file.heaps[address].get(index, (0, 0))
    if length > size:
        raise ValueError(f'no text {index} of {length} bytes in the heap at {address}')
    return take(file, start, length)
