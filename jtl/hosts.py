"""Several processes that train one model together, one or more on each host.

Each runs the same program on the same config. The first (process 0) alone reads and writes the run's folder and tells
the others what it found; every process reads its own share of the data. With one process all of this does nothing.
"""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jtl.errors import UserError

T = TypeVar('T')

CHUNK = 64 << 20  # bytes sent at once


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return jax.process_index() == 0


def meet() -> None:
    """Connects all processes, while they start together: Gloo waits 30 s for others to connect, and later for as long
    as they take (700 s, measured; JAX 0.10.2), to open their data for instance.
    """
    told(lambda: None)  # among the first device of each process, the second, …
    asked = asked_anywhere(lambda: False)  # and among all
    asked(), asked()  # the second waits for the first


def told(fn: Callable[[], T]) -> T:
    """What `fn()` gives in the first process, the only one to call it, in all of them; a UserError of it too.

    The value travels as bytes (pickled, between processes of one run), so that arrays keep their bits: a sum with
    zeros, as broadcasts do, would turn -0.0 into 0.0.
    """
    if jax.process_count() == 1:
        return fn()
    said = b''
    if is_first():
        try:
            said = pickle.dumps((fn(), None), protocol=5)
        except UserError as e:
            said = pickle.dumps((None, e))
    value, error = pickle.loads(_broadcast(said))
    if error is not None:
        raise error
    return value


def agreed(what: str, value: Any) -> None:
    """Refuses to go on if `value`, as text, differs between processes.

    Raises:
        UserError: naming `what`, and the processes in which it is another than in the first.
    """
    if jax.process_count() == 1:
        return
    first = told(lambda: repr(value))
    same = multihost_utils.process_allgather(np.array(repr(value) == first))
    if not np.all(same):
        others = ', '.join(map(str, np.flatnonzero(~same)))
        raise UserError(f'{what} differs between the processes of this run: {others} and 0 do not agree.')


def asked_anywhere(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop`, answered alike by all processes: whether any of them was asked, as of the call before.

    Processes hear of a signal at different moments, and would otherwise wait for each other at different steps. The
    answer is that of the call before so that no step has to wait for it.
    """
    if jax.process_count() == 1:
        return stop
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('devices',))
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (('devices',), ()))
    largest = jax.jit(lambda x: x.max(), out_shardings=whole)
    before = None

    def asked() -> bool:
        nonlocal before
        flags = np.full(jax.local_device_count(), stop())
        before, last = largest(jax.make_array_from_process_local_data(split, flags)), before
        return last is not None and bool(last)

    return asked


def _broadcast(data: bytes) -> bytes:
    size = int.from_bytes(_spread(len(data).to_bytes(8)))
    return b''.join(_spread(data[start : start + CHUNK], min(CHUNK, size - start)) for start in range(0, size, CHUNK))


def _spread(data: bytes, size: int = 8) -> bytes:
    part = np.zeros(size, np.uint8)
    if is_first():
        part[:] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(part).tobytes()
