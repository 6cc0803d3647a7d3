"""PyTorch checkpoints (.pth, .th, .pt, .bin) without PyTorch, and without running what is in them.

Both formats of `torch.save`: the zip archive (1.6 and later) and the pickle followed by raw storages before it. A
tensor is written there as a storage, a place in it, a shape and strides: it comes back as a NumPy view of the mapped
file, so that nothing is read before it is used and tensors that share memory still do.
"""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jtl.errors import UserError, printable, some
from jtl.pretrained.formats import archive, shards, statedict
from jtl.pretrained.formats.torch_tensors import CALLS, Storage, Tensor, storage_of, why
from jtl.pretrained.formats.unpickle import Rules, load

Stored = Callable[[str], np.ndarray]  # the bytes of a storage by its key
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how the old format begins
_ARRAY = 400  # bytes that an array takes beside its numbers
_AGAIN = 'Get the file again from where it was published.'


def read(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by their names, in their dtype, read-only views of the mapped file.

    The file must not be overwritten while they are in use; one that takes its place by being renamed does no harm.
    Like PyTorch, this does not compare the checksums that the zip format has of the numbers, which takes as long as all
    the rest; those of the pickle and of packed storages are compared.

    Args:
        path: the file, or the `….bin.index.json` of one in several files.
        key: where in the file the weights are, `state_dict` or `a.b`, if there are several networks; see
            `statedict.pick` for how they are found otherwise.

    Raises:
        UserError: not such a file, damaged, or one that asks for anything but tensors.
    """
    path = Path(path)
    if path.name.endswith('.index.json'):
        return shards.read(path, lambda shard: read(shard, key))
    data = archive.mapped(path)
    try:
        top, stored, swapped = (_zip if data[:4].tobytes() == b'PK\3\4' else _legacy)(path, data)
    except UserError as e:
        raise (e if str(e).startswith(f'{path}: ') else UserError(f'{path}: {e}.')) from None
    except ValueError as e:
        why_not = f'no checkpoint of PyTorch, or a damaged one ({printable(str(e))})'
        raise UserError(f'{path}: {why_not}; {archive.looks_like(data)}.') from None
    tensors = statedict.pick(path, top, key, Tensor)
    total = sum(math.prod(tensor.shape) * tensor.dtype.itemsize + _ARRAY for tensor in tensors.values())
    if not archive.justified(total, data.size):
        raise UserError(f'{path}: {data.size:,} bytes that claim to hold {total:,} bytes of tensors: made to do harm.')
    keys = dict.fromkeys(tensor.storage.key for tensor in tensors.values())
    storages = {key: stored(key) for key in keys}
    return {name: _array(f'{path}: {name!r}', tensor, storages, swapped) for name, tensor in tensors.items()}


def _zip(path: Path, data: np.ndarray) -> tuple[Any, Stored, bool]:
    """The value of the pickle in an archive, its storages, and whether their bytes are in the other order."""
    members = archive.members(path)
    roots = [name[: -len('data.pkl')] for name in members if name.count('/') == 1 and name.endswith('/data.pkl')]
    if len(roots) != 1:
        raise UserError(_other_zip(list(members)))
    (root,) = roots
    if any(name == f'{root}constants.pkl' or name.startswith(f'{root}code/') for name in members):
        raise UserError(
            'a TorchScript archive: a program with its weights. Save the weights alone, with PyTorch: '
            "torch.save(torch.jit.load('…').state_dict(), 'weights.pth')"
        )
    order = members[f'{root}byteorder'].read().tobytes() if f'{root}byteorder' in members else b'little'
    if order not in (b'little', b'big'):
        raise UserError(f'byteorder is {order[:20]!r}, expected little or big')

    def persistent(reference: Any) -> Storage:
        storage = storage_of(reference)
        member = members.get(f'{root}data/{storage.key}')
        if member is None or member.size != storage.size:
            there = f'has {member.size:,}' if member else 'is not there'
            raise UserError(f'storage {storage.key!r} should have {storage.size:,} bytes and {there}. {_AGAIN[:-1]}')
        return storage

    pickled = members[f'{root}data.pkl'].read()
    top = load(io.BytesIO(pickled.tobytes()), pickled.size, Rules(CALLS, persistent, why))
    return top, lambda key: members[f'{root}data/{key}'].read(check=False), order.decode() != sys.byteorder


def _other_zip(names: list[str]) -> str:
    if any(name.endswith('.npy') for name in names):
        return 'a NumPy archive: npz:PATH'
    if 'model.weights.h5' in names:
        return 'a Keras file: keras:PATH'
    return f'a zip archive without the data.pkl of torch.save; it holds {some(names, 5) or "nothing"}'


def _legacy(path: Path, data: np.ndarray) -> tuple[Any, Stored, bool]:
    """The same of the old format: magic number, protocol, system, value, keys; then each storage, its length first."""
    if data[257:262].tobytes() == b'ustar':
        raise UserError('the tar format of PyTorch 0.1, which is not read here: load and save it again with PyTorch')
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        storage = storage_of(reference)
        known = storages.setdefault(storage.key, storage)
        if (known.dtype, known.count) != (storage.dtype, storage.count):
            raise ValueError(f'storage {storage.key!r} is described in two ways')
        return storage

    with open(path, 'rb') as f:
        rules = Rules(CALLS, persistent, why)
        magic = load(f, data.size, rules)
        if type(magic) is not int or magic != _MAGIC:
            raise UserError('a pickle, but not one of torch.save: only weights that it wrote are read')
        if load(f, data.size, rules) != _PROTOCOL:
            raise ValueError('an unknown version')
        load(f, data.size, rules)  # of the system that wrote it; the storages are little-endian on any
        top = load(f, data.size, rules)
        keys = load(f, data.size, rules)
        place = f.tell()
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ValueError('the list of its storages does not fit the tensors')
    stored = {}
    for key in keys:
        begin, place = place + 8, place + 8 + storages[key].size
        if place > data.size:
            which = f'storage {len(stored) + 1} of {len(keys)}'
            raise UserError(f'cut short: {place - data.size:,} bytes are missing at {which}. {_AGAIN[:-1]}')
        if int.from_bytes(data[begin - 8 : begin].tobytes(), 'little', signed=True) != storages[key].count:
            raise ValueError(f'storage {len(stored) + 1} does not have the length that the tensors expect')
        stored[key] = data[begin:place]
    return top, stored.__getitem__, sys.byteorder == 'big'


def _array(where: str, tensor: Tensor, storages: dict[str, np.ndarray], swapped: bool) -> np.ndarray:
    """The view of its storage that a tensor is, all bounds checked."""
    if not all(tensor.shape):
        return np.zeros(tensor.shape, tensor.dtype)
    raw, itemsize = storages[tensor.storage.key][tensor.storage.begin :], tensor.dtype.itemsize
    strides = [stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.strides)]
    end = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides)) + 1
    if end * itemsize > raw.size:
        raise UserError(
            f'{where} of shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} ends at byte '
            f'{end * itemsize:,} of a storage of {raw.size:,}. {_AGAIN}'
        )
    x = np.ndarray(tensor.shape, tensor.dtype, raw, tensor.offset * itemsize, [stride * itemsize for stride in strides])
    if swapped:
        x = x.byteswap()
    if tensor.conjugate:
        x = x.conj()
    return -x if tensor.negative else x
