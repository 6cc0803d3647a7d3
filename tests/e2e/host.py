"""`python -m jtl.main` for test_many_hosts.py: in float64 where JAX is, and with an accident where one is asked for.

ACCIDENT=SIGKILL:10:RUN has the process send itself the signal while it makes the twelfth batch of the run in the folder
RUN, once a checkpoint of step 10 or later is there to go on from.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

if jax.config.jax_enable_x64:
    jnp.float32 = jnp.float64  # before Flax, optax and jtl are imported, who ask for it by this name

from jtl import checkpoint, main, models
from jtl.data.pipeline import TrainBatch

models.DTYPES = (*models.DTYPES, 'float64')


def accident(make, name, step, run):
    def made(self, batch):
        if batch == int(step) + 1 and Path(run).exists():
            until = time.monotonic() + 60
            while not any(s >= int(step) for s in checkpoint.steps(Path(run) / 'checkpoints')):
                assert time.monotonic() < until, 'no checkpoint'
                time.sleep(0.01)
            os.kill(os.getpid(), getattr(signal, name))
        return make(self, batch)

    return made


if 'ACCIDENT' in os.environ:
    TrainBatch.__call__ = accident(TrainBatch.__call__, *os.environ['ACCIDENT'].split(':', 2))

if __name__ == '__main__':
    sys.exit(main.main())
