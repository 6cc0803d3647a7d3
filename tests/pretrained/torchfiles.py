"""Writes the files of torch.save by hand, honest ones and others, without PyTorch."""

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KINDS = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}


class Raw(NamedTuple):
    """Instructions as they are."""

    code: bytes


def name(module: str, attribute: str) -> Raw:
    return Raw(f'c{module}\n{attribute}\n'.encode())


def call(function: Raw, *arguments: Any) -> Raw:
    return Raw(function.code + code(arguments) + b'R')


def code(value: Any) -> bytes:
    """The instructions that build a value, protocol 2, nothing shared."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, dict):
        return b'}(' + b''.join(code(k) + code(v) for k, v in value.items()) + b'u'
    if isinstance(value, tuple):
        return b'(' + b''.join(map(code, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(code, value)) + b'e'
    if isinstance(value, str):
        return b'X' + struct.pack('<I', len(value.encode())) + value.encode()
    if isinstance(value, bool) or value is None:
        return {True: b'\x88', False: b'\x89', None: b'N'}[value]
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if -(2**31) <= value < 2**31:
        return b'J' + struct.pack('<i', value)
    return b'\x8a\x20' + value.to_bytes(32, 'little', signed=True)


def pickled(value: Any) -> bytes:
    return b'\x80\x02' + code(value) + b'.'


def tensor(
    key: str,
    shape: tuple,
    count: int | None = None,
    offset: int = 0,
    strides: tuple | None = None,
    kind: str = 'FloatStorage',
    view: tuple = (),
) -> Raw:
    """A tensor of the storage `key`, which has `count` numbers; contiguous unless told otherwise."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    count = math.prod(shape) if count is None else count
    storage = Raw(code(('storage', name('torch', kind), key, 'cpu', count, *view)) + b'Q')
    hooks = call(name('collections', 'OrderedDict'))
    return call(name('torch._utils', '_rebuild_tensor_v2'), storage, offset, shape, strides, False, hooks)


def write_zip(path: Path, top: Any, storages: dict[str, np.ndarray], root: str = 'archive', **extra: bytes) -> Path:
    """The format of PyTorch 1.6; `extra` are more files, such as byteorder."""
    return write_members(
        path,
        {f'{root}/data.pkl': pickled(top)}
        | {f'{root}/{name}': data for name, data in extra.items()}
        | {f'{root}/data/{key}': x.tobytes() for key, x in storages.items()},
    )


def write_members(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, 'w', method) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data, method)
    return path


def legacy(top: Any, storages: dict[str, np.ndarray]) -> bytes:
    """The format before that."""
    out = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {'protocol_version': 1001, 'little_endian': True}, top, list(storages)):
        out.write(pickled(value))
    for x in storages.values():
        out.write(struct.pack('<q', x.size) + x.tobytes())
    return out.getvalue()


def write_legacy(path: Path, top: Any, storages: dict[str, np.ndarray]) -> Path:
    path.write_bytes(legacy(top, storages))
    return path


WRITERS = {'zip': write_zip, 'legacy': write_legacy}
