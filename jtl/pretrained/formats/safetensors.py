"""safetensors files: a length, a JSON header with dtype, shape and place of each tensor, then the numbers.

The header is checked here before it is believed, and the tensors are views of the mapped file.
Format: https://huggingface.co/docs/safetensors
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jtl.errors import UserError, nearest
from jtl.files import parse_json
from jtl.pretrained.formats import archive, shards

DTYPES = {
    **{'F64': np.dtype('<f8'), 'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BOOL': np.dtype('bool')},
    **{'I64': np.dtype('<i8'), 'I32': np.dtype('<i4'), 'I16': np.dtype('<i2'), 'I8': np.dtype('i1')},
    **{'U64': np.dtype('<u8'), 'U32': np.dtype('<u4'), 'U16': np.dtype('<u2'), 'U8': np.dtype('u1')},
    **{'C64': np.dtype('<c8'), 'BF16': np.dtype(ml_dtypes.bfloat16)},
    **{'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn), 'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2)},
    'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
}
_HEADER = 100_000_000  # bytes, the most that the format allows
_DAMAGED = 'the file is damaged or made to do harm.'


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their names, in their dtype, read-only views of the mapped file.

    Args:
        path: the file, or the `….safetensors.index.json` of one in several files.

    Raises:
        UserError: not such a file, cut short, or one whose header lies.
    """
    path = Path(path)
    if path.name.endswith('.index.json'):
        return shards.read(path, read)
    data = archive.mapped(path)
    header, _, numbers = _header(path, data)
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(f'{path}: {name[:100]!r}', name, entry, numbers.size)
        spans.append((begin, end, name))
        tensors[name] = np.ndarray(shape, dtype, numbers[begin:end]) if end > begin else np.zeros(shape, dtype)
    place = 0
    for begin, end, name in sorted(spans):
        if begin != place:
            how = (
                'overlaps the tensor before it' if begin < place else f'leaves {begin - place:,} unused bytes before it'
            )
            raise UserError(f'{path}: {name[:100]!r} {how}; {_DAMAGED}')
        place = end
    if place != numbers.size:
        raise UserError(f'{path}: {numbers.size - place:,} bytes behind the last tensor belong to none; {_DAMAGED}')
    return tensors


def notes(path: Path) -> dict[str, str]:
    """What a file says beside its tensors, its `__metadata__`.

    Raises:
        UserError: as for `read`.
    """
    return _header(Path(path), archive.mapped(Path(path)))[1]


def _header(path: Path, data: np.ndarray) -> tuple[dict, dict[str, str], np.ndarray]:
    """The entries of the tensors, the file's notes, and the bytes that the entries refer to."""
    size = int.from_bytes(data[:8].tobytes(), 'little')
    if data.size < 10 or data[8] != ord('{') or not 2 <= size <= _HEADER:
        raise UserError(f'{path}: no safetensors file; {archive.looks_like(data)}.')
    if size > data.size - 8:
        raise UserError(f'{path}: cut short within its header, which has {size:,} bytes. Download it again.')
    header = parse_json(data[8 : 8 + size].tobytes(), f'{path}: its header')
    said = header.pop('__metadata__', {})
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise UserError(f'{path}: __metadata__ is no mapping of text to text; {_DAMAGED}')
    return header, said, data[8 + size :]


def _entry(where: str, name: str, entry: Any, size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, begin and end of a tensor, checked; `size` bytes are there."""
    if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
        raise UserError(f'{where}: expected its dtype, shape and data_offsets; {_DAMAGED}')
    if not name.isprintable() or len(name) > 1000:
        raise UserError(f'{where} is no name for a tensor.')
    kind, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UserError(f'{where}: dtype {str(kind)[:40]!r} is not read here: {nearest(str(kind)[:40], DTYPES)}')
    if not _sizes(shape) or len(shape) > 32 or math.prod(n for n in shape if n) >= 2**48:
        raise UserError(f'{where}: a shape should be whole numbers, each 0 or more, is {str(shape)[:80]}; {_DAMAGED}')
    if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise UserError(f'{where}: data_offsets should be begin and end, are {str(offsets)[:80]}; {_DAMAGED}')
    if offsets[1] > size:
        raise UserError(f'{where} ends at byte {offsets[1]:,} of {size:,}: the file is cut short. Download it again.')
    if math.prod(shape) * DTYPES[kind].itemsize != offsets[1] - offsets[0]:
        has = f'{offsets[1] - offsets[0]:,} bytes for the shape {tuple(shape)} of {kind}'
        raise UserError(f'{where} has {has}; {_DAMAGED}')
    return DTYPES[kind], tuple(shape), *offsets


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**48 for n in values)


def write(path: Path, tensors: Mapping[str, np.ndarray], said: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file that other libraries read; the file is there at once and whole, or not at all.

    Args:
        said: notes for it; see `notes`.

    Raises:
        UserError: a dtype that the format does not have, or a folder that does not exist.
    """
    import safetensors.numpy  # only who exports needs it

    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f'{path}: the folder {path.parent} does not exist.')
    for name, x in tensors.items():
        if x.dtype.newbyteorder('=') not in DTYPES.values():
            known = nearest(str(x.dtype), map(str, DTYPES.values()))
            raise UserError(f'{name!r} has dtype {x.dtype}, which safetensors files do not have: {known}')
    whole = {name: np.asarray(x, order='C') for name, x in tensors.items()}
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        said = {'format': 'pt', **(said or {})}  # without this note transformers refuses the file
        safetensors.numpy.save_file(whole, temporary, said)
        with open(temporary, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
