"""Damages files in many ways; sees that a reader answers with arrays or a UserError, soon and in little memory."""

import signal
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jtl.errors import UserError

SECONDS = 5  # for one file, on a busy machine
FIELDS = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


def mutate(rng: np.random.Generator, data: bytes, hot: tuple[int, int] | None = None) -> bytes:
    """One to three changes: bits, bytes, lengths, blocks moved, inserted, left out or repeated, the end cut off.

    Args:
        hot: the part of the data, begin and end, where three of four changes begin.
    """
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        begin, end = hot if hot and rng.random() < 0.75 else (0, len(changed))
        at = int(rng.integers(min(begin, len(changed)), max(min(end, len(changed)), begin + 1)))
        other, size = int(rng.integers(len(changed) + 1)), int(rng.integers(1, 17))
        kind = rng.integers(9)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at : at + 1] = rng.bytes(1)
        elif kind == 2:
            width = int(rng.choice([2, 4, 8]))
            value = int(FIELDS[rng.integers(len(FIELDS))]) % 2 ** (8 * width)
            changed[at : at + width] = value.to_bytes(width, 'little')
        elif kind == 3:
            here, there = changed[at : at + size], changed[other : other + size]
            changed[at : at + size], changed[other : other + size] = there, here
        elif kind == 4:
            changed[at:at] = rng.bytes(size)
        elif kind == 5:
            del changed[at : at + size]
        elif kind == 6:
            changed[at:at] = changed[at : at + size] * int(rng.integers(1, 50))
        elif kind == 7:
            changed[at : at + size] = changed[other : other + size]
        elif rng.random() < 0.3:
            del changed[at:]
        changed = changed or bytearray(1)
    return bytes(changed)


def survive(read: Callable[[Path], dict], path: Path, files: Iterable[bytes], memory: int) -> dict[str, int]:
    """Reads each of the files, written to `path`; how many were read and how many refused.

    Args:
        memory: bytes that may be allocated beside 16 times the file.
    """

    def late(*_):
        raise AssertionError(f'still reading after {SECONDS} seconds: {path}')

    counts = {'read': 0, 'refused': 0}
    before = signal.signal(signal.SIGALRM, late)
    tracemalloc.start()
    try:
        for data in files:
            path.write_bytes(data)
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            signal.alarm(SECONDS)
            try:
                tensors = read(path)
                assert all(isinstance(x, np.ndarray) and x.tobytes() is not None for x in tensors.values())
                assert all(isinstance(name, str) and name.isprintable() for name in tensors)
                counts['read'] += 1
            except UserError as e:
                assert str(path) in str(e) and len(str(e)) < 10_000
                counts['refused'] += 1
            finally:
                signal.alarm(0)
            peak = tracemalloc.get_traced_memory()[1] - held
            assert peak < 16 * len(data) + memory, f'{peak:,} bytes for a file of {len(data):,}: {path}'
    finally:
        tracemalloc.stop()
        signal.signal(signal.SIGALRM, before)
    return counts
