"""The bytes of an HDF5 file, and the budgets that keep a hostile one from taking for ever or exhausting memory."""

import struct
import zlib
from typing import NamedTuple

import numpy as np

from jtl.errors import UserError

NOWHERE = 2**64 - 1  # the address of what was never written
EXPANSION = 16  # at most so many bytes of unpacked chunks per byte of the file: trained weights hardly compress at all
SLACK = 2**20  # for tiny files
WORK = 2**25  # bytes of structures, at most: 20,000 variables, or some seconds


class File(NamedTuple):
    """The bytes, what may still be drawn from them, and the text heaps that have been read.

    `left` holds three budgets in bytes: `work` for structures, `stored` for the numbers as they are in the file (which
    do not overlap, so that together they are no larger), `unpacked` for arrays that are put together from chunks.
    """

    data: np.ndarray
    name: str
    left: dict[str, int]
    heaps: dict[int, dict[int, tuple[int, int]]]


def opened(data: np.ndarray, name: str) -> File:
    """A file with full budgets; `data` is uint8 [N]."""
    left = {'work': min(len(data), WORK) + SLACK // 2, 'stored': len(data), 'unpacked': EXPANSION * len(data) + SLACK}
    return File(data, name, left, {})


def guard(file: File, work):
    """What `work()` returns; whatever does not make sense in the file becomes a UserError."""
    try:
        return work()
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, TypeError, zlib.error) as e:
        raise UserError(f'{file.name} is damaged (HDF5: {e}); fetch or save it again.') from e


def refuse(file: File, what: str):
    """Says that the file is sound, but not for us."""
    raise UserError(f'{file.name}: {what}; open it with h5py and save its arrays plainly, or as .npz.')


def take(file: File, start: int, size: int) -> bytes:
    """Some bytes of structure, within the file and the budget of work."""
    file.left['work'] -= size + 16
    if file.left['work'] < 0:
        raise ValueError('its structures point at one another in circles')
    return view(file, start, size).tobytes()


def view(file: File, start: int, size: int) -> np.ndarray:
    """Some bytes within the file, uint8 [size]."""
    if not 0 <= start <= start + size <= len(file.data):
        raise ValueError(f'truncated: bytes {start:,} to {start + size:,} of {len(file.data):,} are asked for')
    return file.data[start : start + size]


def draw(file: File, budget: str, size: int, what: str) -> None:
    """Takes the bytes of an array from what the file may come to, before they are allocated."""
    file.left[budget] -= size
    if file.left[budget] < 0:
        raise UserError(
            f'{file.name}: {what} would take {size:,} bytes, which is out of proportion to the file of '
            f'{len(file.data):,}; it is damaged or made to exhaust memory.'
        )


def expect(found: bytes, magic: bytes) -> None:
    """A signature that has to be there."""
    if not found.startswith(magic):
        raise ValueError(f'{magic!r} was expected, not {found[: len(magic)]!r}')
