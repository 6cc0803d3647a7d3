"""What a checkpoint costs the training step: the same steps with and without a save, alternately, in one process.

    python benchmarks/save.py [--model=resnet50] [--size=224] [--batch=16] [--steps=5] [--rounds=4] [--run=1000]

A round is STEPS steps, with one save started after the first or without; the next save, and so the wait for the one
before it, falls into a later round. Printed are the seconds that a save adds to a round, the part of it for which the
step is held up, and the share of a run of RUN steps at the default interval, a twentieth of the run.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jtl import checkpoint, optim
from jtl.plan import make_method
from jtl.step import TrainState, compile_init, compile_slots, compile_step


def parts(ts: TrainState) -> dict:
    return {'params': ts.params, 'state': ts.state, 'opt_state': ts.opt_state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--run', type=int, default=1000)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    batch = {
        'image': rng.normal(size=(args.batch, args.size, args.size, 3)).astype(np.float32),
        'label': rng.integers(0, 1000, args.batch).astype(np.int32),
    }
    method = make_method(json.dumps({'name': args.model}), '{"name": "supervised"}', 1000)
    params, state = compile_init(method)(jax.random.key(0), {name: value[:1] for name, value in batch.items()})
    static, rates = optim.optimiser(args.run, name='sgd', lr=1e-3, momentum=0.9)
    (phase,) = optim.make_phases(params, ((None, (('.*', 1.0),)),), static.decay_rules)
    update = compile_step(method, phase, static)
    ts = TrainState(jnp.int32(0), jax.random.key(1), params, state, *compile_slots(phase, static)(params))
    ts, _ = update(ts, batch, rates)
    jax.block_until_ready(ts)

    seconds, held = {True: [], False: []}, []
    with tempfile.TemporaryDirectory() as folder, checkpoint.Writer(Path(folder) / 'checkpoints', 2) as writer:
        for k in range(2 * args.rounds):
            saving = k % 2 == 1
            began = time.perf_counter()
            for step in range(args.steps):
                ts, _ = update(ts, batch, rates)
                jax.block_until_ready(ts)
                if saving and step == 0:
                    before = time.perf_counter()
                    writer.save(k, parts(ts), {})
                    held.append(time.perf_counter() - before)
            seconds[saving].append(time.perf_counter() - began)
            if saving:
                writer.wait()
        size = sum(p.stat().st_size for p in next(Path(folder).glob('checkpoints/*')).rglob('*') if p.is_file())
        before = time.perf_counter()
        writer.save(10**6, parts(ts), {})
        writer.wait()
        written = time.perf_counter() - before
    plain, with_save = statistics.median(seconds[False]), statistics.median(seconds[True])
    spread = max(seconds[False]) - min(seconds[False])
    interval = args.run // 20
    share = (with_save - plain) / (interval * plain / args.steps)
    device = jax.devices()[0].device_kind
    print(f'{args.model}, {args.size} px, batch {args.batch}, sgd with momentum; checkpoint of {size / 2**20:.0f} MiB')
    print(f'{device}, {os.cpu_count()} cores {platform.machine()}, jax {jax.__version__}')
    print(f'{args.steps} steps {plain:.2f} s (spread {spread:.2f}), with a save {with_save:.2f} s')
    print(f'the step is held up {statistics.median(held):.3f} s; a save alone takes {written:.2f} s')
    bound = (statistics.median(held) + written) / (interval * plain / args.steps)
    print(f'every {interval} steps, as by default in a run of {args.run}: {100 * share:.2f} % of the step time;')
    print(f'{100 * bound:.2f} % if the step stood still while a save is made and written')


if __name__ == '__main__':
    main()
