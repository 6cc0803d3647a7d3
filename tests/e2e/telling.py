"""One of several processes that check what they tell each other, for test_many_hosts.py; status 0 if all of it holds.

    python telling.py [--start=SECONDS] [--late=SECONDS]

--start is how long to wait for the others at the start; --late, how long the first is busy before it says a word.
"""

import argparse
import struct
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument('--start', type=int, default=60)
parser.add_argument('--late', type=int, default=0)
args = parser.parse_args()

from jtl import launch  # noqa: E402

launch.START = args.start


def check():
    import jax
    import ml_dtypes
    import numpy as np

    from jtl import hosts
    from jtl.checkpoint import Damaged
    from jtl.errors import UserError

    first = jax.process_index() == 0
    assert hosts.is_first() == first and jax.process_count() == 2
    if first:
        time.sleep(args.late)

    # Bits: what a sum with zeros, or a passage through float32, would change.
    quiet, signalling = 0x7FF8DEADBEEF0001, 0x7FF0000000000001  # NaNs
    values = {
        'float64': np.frombuffer(struct.pack('<5Q', quiet, signalling, 1 << 63, 1, 1 << 52), np.float64),
        'float32': np.frombuffer(struct.pack('<4I', 0x7FC0BEEF, 0x7F800001, 1 << 31, 1), np.float32),
        'bfloat16': np.array([0x7FC1, 0x8000, 1, 0xFF80], np.uint16).view(ml_dtypes.bfloat16),
        'int64': np.array([-(1 << 63), (1 << 63) - 1, (1 << 53) + 1]),
        'empty': np.zeros((0, 3), np.int8),
        'scalar': np.float32(-0.0),
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    calls = []
    told = hosts.told(lambda: calls.append(1) or (values if first else None))
    assert len(calls) == first
    for name, value in values.items():
        bits = lambda x: (x.dtype, x.shape, x.tobytes())
        assert bits(told[name]) == bits(value), name
    others = (None, True, -1, 'é\n', {'a': (1, [2.5])}, 1 << 80, b'')
    assert hosts.told(lambda: others if first else None) == others

    # In pieces: none, a part of one, one, one and a bit, two.
    hosts.CHUNK = 1000
    for size in (0, 999, 1000, 1001, 2000):
        data = bytes(i % 251 for i in range(size))
        assert hosts._broadcast(data if first else b'') == data, size

    # Errors are everyone's, in their own kind.
    for kind in (UserError, Damaged):
        try:
            hosts.told(lambda kind=kind: fail(kind('said by the first')) if first else None)
        except kind as e:
            assert type(e) is kind and str(e) == 'said by the first'
        else:
            raise AssertionError(kind)

    # Agreement.
    hosts.agreed('It', {'a': float('nan'), 'b': (1, None)})
    try:
        hosts.agreed('The number', first)
    except UserError as e:
        assert str(e) == 'The number differs between the processes of this run: 1 and 0 do not agree.', e
    else:
        raise AssertionError

    # A wish to stop, of one process alone, is heard by both at the same question: the one after.
    for who in (0, 1):
        questions = iter([False, False, True, True, True, True])
        asked = hosts.asked_anywhere(lambda: next(questions) and jax.process_index() == who)  # noqa: B023
        assert [asked() for _ in range(6)] == [False, False, False, True, True, True]
    return 0


def fail(error):
    raise error


if __name__ == '__main__':
    sys.exit(launch.together(check))
