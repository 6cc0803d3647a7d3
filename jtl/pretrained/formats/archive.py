"""Bytes of files that nobody vouches for: mapped into memory, zip members within bounds, what a wrong file looks like.

Nothing is ever extracted to disk, and no size that a file declares is believed before it is compared with the file.
"""

import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtl.errors import UserError, printable

_WHY_ZIP = (
    'so it is damaged or made to do harm. Get it again from where it was published and compare its sha256 with theirs.'
)


def justified(size: int, file_size: int) -> bool:
    """Whether a file of `file_size` bytes may ask for `size` bytes of memory."""
    return size <= 16 * file_size + 2**20


def mapped(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 [N], read-only and memory-mapped: read when they are used, and shared.

    Raises:
        UserError: the file is missing, a directory or empty.
    """
    if not path.is_file():
        raise UserError(f'{path}: {"a directory, expected a file" if path.is_dir() else "no such file"}.')
    if not path.stat().st_size:
        raise UserError(f'{path}: the file is empty.')
    with open(path, 'rb') as f:
        return np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class Member(NamedTuple):
    """A file within a zip archive.

    Attributes:
        where: how a message names it.
        size: bytes once unpacked.
        packed: uint8 [M], the bytes as they lie in the archive, memory-mapped.
        deflated: packed with deflate, or stored as they are.
        crc: CRC-32 of the unpacked bytes; 0 if it was not recorded (PyTorch has such an option).
    """

    where: str
    size: int
    packed: np.ndarray
    deflated: bool
    crc: int

    def read(self, check: bool = True) -> np.ndarray:
        """The unpacked bytes, uint8 [size], read-only: memory-mapped if stored.

        Args:
            check: compare the checksum of a stored one too, for which every byte is read.

        Raises:
            UserError: the bytes are damaged, or more or fewer than declared.
        """
        found = self.packed
        if self.deflated:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                found = np.frombuffer(unpacker.decompress(self.packed, self.size + 1), np.uint8)  # never all of a bomb
            except zlib.error as e:
                raise UserError(f'{self.where} cannot be unpacked ({e}): the archive is damaged.') from None
            if found.size != self.size or not unpacker.eof:
                raise UserError(f'{self.where} does not have the {self.size:,} bytes that it declares, {_WHY_ZIP}')
        if (check or self.deflated) and self.crc and zlib.crc32(found) != self.crc:
            raise UserError(f'{self.where} does not agree with its checksum: the archive is damaged.')
        return found


def members(path: Path) -> dict[str, Member]:
    """The files within a zip archive by their names; nothing is unpacked yet.

    Raises:
        UserError: not a zip archive, or damaged; names that are absolute or contain `..`, or come twice; encrypted
            members, or ones packed with anything but deflate; members that overlap or lie outside of the file; sizes
            that are out of proportion to the file.
    """
    data = mapped(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries, directory = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as e:
        raise UserError(f'{path}: not a readable zip archive ({printable(str(e))}): {looks_like(data)}.') from None
    if not justified(sum(entry.file_size for entry in entries), data.size):
        raise UserError(
            f'{path}: {data.size:,} bytes that claim to unpack to {sum(e.file_size for e in entries):,}, {_WHY_ZIP}'
        )
    found, spans = {}, []
    for entry in entries:
        start = _checked(path, data, entry)
        spans.append((entry.header_offset, start + entry.compress_size, entry.filename))
        if entry.is_dir():
            continue
        if entry.filename in found:
            raise UserError(f'{path}: {entry.filename!r} is in the archive twice, {_WHY_ZIP}')
        packed = data[start : start + entry.compress_size]
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        found[entry.filename] = Member(f'{path}: {entry.filename!r}', entry.file_size, packed, deflated, entry.CRC)
    spans.sort()
    for (_, end, name), (start, _, after) in zip(spans, [*spans[1:], (directory, 0, 'the table of contents')]):
        if end > start:
            raise UserError(f'{path}: {name!r} overlaps {after!r}, {_WHY_ZIP}')
    return found


def _checked(path: Path, data: np.ndarray, entry: zipfile.ZipInfo) -> int:
    """Refuses an entry that no honest archive of weights has; where its bytes begin."""
    where = f'{path}: {entry.filename!r}'
    parts = entry.filename.replace('\\', '/').split('/')
    if not entry.filename:
        raise UserError(f'{path}: a file without a name is in the archive, {_WHY_ZIP}')
    if entry.filename.startswith(('/', '\\')) or '..' in parts or ':' in parts[0] or '\0' in entry.orig_filename:
        raise UserError(f'{where} points out of the archive; nothing was unpacked.')
    if entry.flag_bits & 1:
        raise UserError(f'{where} is encrypted: unpack it with its password and pack it again.')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f'{where} is packed with method {entry.compress_type}; stored or deflated ones are read.')
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise UserError(f'{where} is stored, but its two sizes differ, {_WHY_ZIP}')
    head = entry.header_offset
    if head < 0 or head + 30 > data.size or data[head : head + 4].tobytes() != b'PK\3\4':
        raise UserError(f'{where} is not where the table of contents has it, {_WHY_ZIP}')
    name_size, extra_size = struct.unpack('<HH', data[head + 26 : head + 30])
    start = head + 30 + name_size + extra_size
    if start + entry.compress_size > data.size:
        raise UserError(f'{where} ends behind the end of the file: the file is cut short.')
    return start


def fresh(x: np.ndarray) -> np.ndarray:
    """A C-contiguous float32 copy of `x`; the pages of its file are let go of.

    So converting a mapped file one array after the other takes the memory of the copies, not of the file as well.
    """
    with np.errstate(over='ignore'):  # infinite then, which the caller sees
        copy = np.array(x, np.float32, order='C')
    base = x
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
        begin, end = (
            a - np.frombuffer(base, np.uint8).__array_interface__['data'][0] for a in np.lib.array_utils.byte_bounds(x)
        )
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: others may still need the rest
        if end - begin >= mmap.PAGESIZE:
            base.madvise(mmap.MADV_DONTNEED, begin, (end - begin) // mmap.PAGESIZE * mmap.PAGESIZE)
    return copy


_MAGIC = (
    (b'version https://git-lfs', 'a Git LFS pointer, not the file itself: run `git lfs pull`, or download the file'),
    (b'PK\3\4', 'a zip archive'),
    (b'PK\5\6', 'an empty zip archive'),
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file, as Keras writes it: keras:PATH'),
    (b'\x93NUMPY', 'a single NumPy array (.npy)'),
    (b'\x1f\x8b', 'packed with gzip: unpack it first'),
    (b'BZh', 'packed with bzip2: unpack it first'),
    (b'\xfd7zXZ', 'packed with xz: unpack it first'),
    (b'\x28\xb5\x2f\xfd', 'packed with zstandard: unpack it first'),
    (b'\x89PNG', 'a PNG picture'),
    (b'\xff\xd8\xff', 'a JPEG picture'),
    (b'%PDF', 'a PDF document'),
    (b'GGUF', 'a GGUF file, which is not read here'),
    (b'\x7fELF', 'a program'),
)


def looks_like(data: np.ndarray) -> str:
    """What a file appears to be by its first bytes, for a message: `it looks like …`."""
    head = data[:512].tobytes()
    text = head.lstrip().lower()
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return f'it looks like {what}'
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        return 'it looks like a web page, perhaps the error page of a failed download: open it in a browser'
    if head[257:262] == b'ustar':
        return 'it looks like a tar archive'
    if head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] <= max(data.size, 2**27):
        return 'it looks like a safetensors file: safetensors:PATH'
    if not any(head):
        return 'it begins with zeros, as a download does that was broken off'
    if head[:1] == b'\x80' and len(head) > 1 and head[1] <= 5:
        return 'it looks like a Python pickle'
    if text.startswith((b'{', b'[')):
        return 'it looks like a JSON file'
    if all(32 <= c < 127 or c in b'\t\r\n' for c in head):
        return f'it looks like a text file that begins with {head[:40].decode()!r}'
    return f'it begins with the bytes {head[:8].hex(" ")}, which say nothing'
