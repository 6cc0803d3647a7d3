"""NumPy archives (.npz): google-research ViT, BiT and big_vision, Keras names, and whatever people saved with np.savez.

Headers are read by a pattern, not by Python's parser, pickles are never opened, and what a header declares must be what
its member holds before anything is made of it. Stored members are views of the file.

JAX saves bfloat16 as `V2`, two bytes without a meaning, since NumPy has no word for it: `V2` is read as bfloat16.
"""

import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np

from jtl.errors import UserError
from jtl.pretrained.formats import archive

MAGIC = b'\x93NUMPY'
LONGEST = 10_000  # bytes of a header; NumPy reads no more either
_ITEM = re.compile(
    r"""\s*['"](?P<key>descr|fortran_order|shape)['"]\s*:\s*"""
    r"""(?:['"](?P<descr>[^'"]{1,32})['"]|(?P<fortran_order>True|False)|\((?P<shape>(?:\s*\d{1,19}L?\s*(?:,|(?=\))))*)\s*\))"""
    r"""\s*(?:,|(?=\}))"""
)
_DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)')  # what every machine has


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz by their names, in the machine's byte order; read-only, memory-mapped if stored.

    A big_vision checkpoint holds a whole training state: of that `params/…` is returned, without the prefix, and the
    optimiser's `opt/…` is left out.

    Raises:
        UserError: not a .npz, damaged, or with members that are not arrays of numbers.
    """
    data = archive.mapped(path)
    if data[:6].tobytes() == MAGIC:
        raise UserError(
            f'{path} is a single array without a name (.npy); put the arrays into a .npz by their names: '
            "np.savez('weights.npz', **{'conv1/kernel': kernel, …})."
        )
    found, members = {}, archive.members(path)
    if not members:
        raise UserError(f'{path} is an archive without any array in it.')
    for name, member in members.items():
        if not name.endswith('.npy'):
            raise UserError(
                f'{member.where} is not an array: a .npz holds NAME.npy only, as np.savez writes it'
                f'{", and this looks like a Keras model: keras:PATH" if name == "model.weights.h5" else ""}.'
            )
        if not name.isprintable():
            raise UserError(f'{member.where[:500]} has a name that cannot be printed: the archive is damaged.')
        found[name.removesuffix('.npy')] = _array(member.where, member.read())
    return _params(path, found)


def _params(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a training state; anything else as it is."""
    if not any(name.startswith('params/') for name in tensors):
        return tensors
    kept = {}
    for name, x in tensors.items():
        short = name.removeprefix('params/')
        if name.startswith('opt/'):
            continue
        if short in kept:
            raise UserError(f'{path} has both {short!r} and {"params/" + short!r}; expected one of them.')
        kept[short] = x
    return kept


def _array(where: str, raw: np.ndarray) -> np.ndarray:
    """The array of an .npy file, uint8 [N]: a view."""
    dtype, fortran, shape, start = _header(where, raw)
    count = math.prod(shape)
    if count * dtype.itemsize != len(raw) - start:
        raise UserError(
            f'{where} declares {dtype} {shape}, {count * dtype.itemsize:,} bytes, and holds {len(raw) - start:,}: '
            'it is truncated or damaged.'
        )
    try:
        x = raw[start:].view(dtype).reshape(shape, order='F' if fortran else 'C')
    except ValueError as e:  # more axes, or longer empty ones, than NumPy has
        raise UserError(f'{where} declares the shape {shape}: {e}.') from None
    return x if dtype.isnative else x.astype(dtype.newbyteorder('='))


def _header(where: str, raw: np.ndarray) -> tuple[np.dtype, bool, tuple[int, ...], int]:
    """`(dtype, Fortran order, shape, where the numbers begin)`."""
    start = raw[:12].tobytes()
    if len(start) < 12 or start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise UserError(f'{where} is not an .npy array: {archive.looks_like(raw)}.')
    at, width = (10, 2) if start[6] == 1 else (12, 4)
    end = at + int.from_bytes(start[8 : 8 + width], 'little')
    if end - at > LONGEST or end > len(raw):
        raise UserError(f'{where} has a header of {end - at:,} bytes, expected at most {LONGEST:,}: it is damaged.')
    text = raw[at:end].tobytes().decode('latin1').strip()
    if re.search(r"""['"]descr['"]\s*:\s*\[""", text):
        raise UserError(f'{where} is a table with named columns (a structured array); save each as an array.')
    said, left = {}, text[1:]
    while item := _ITEM.match(left):
        said[item['key']] = item[item['key']]
        left = left[item.end() :]
    if text[:1] != '{' or left.strip() != '}' or len(said) != 3 or None in said.values():
        raise UserError(f'{where} has a header that is not understood: {text[:80]!r}.')
    shape = tuple(map(int, re.findall(r'\d+', said['shape'])))
    return _dtype(where, said['descr']), said['fortran_order'] == 'True', shape, end


def _dtype(where: str, text: str) -> np.dtype:
    if text.lstrip('<>|=') == 'V2':
        return np.dtype(ml_dtypes.bfloat16)
    if text.lstrip('<>|=').startswith('O'):
        raise UserError(
            f'{where} holds Python objects (a pickle), which can run code and are never opened; if you trust it, load '
            'it with np.load(allow_pickle=True) and save its arrays one by one with np.savez.'
        )
    if not _DTYPE.fullmatch(text):
        raise UserError(
            f'{where} holds {text!r}; numbers are read (i1 … i8, u1 … u8, f2, f4, f8, c8, c16, bool, bfloat16).'
        )
    return np.dtype(text)
