"""What an update costs here: of everything, of the head alone, of the head with cached features; and a forward pass.

Each is a run's own compiled step on a real batch, timed in turns so that what else the machine does falls on all alike,
and the median is taken. Making batches is left out: it is the same for all but the cached one, and goes on beside the
step.
"""

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jtl import files, run
from jtl.config import as_json, parse
from jtl.errors import UserError
from jtl.plan import make_plan
from jtl.probe.features import HEAD_ONLY
from jtl.step import compile_predict, compile_step
from jtl.train import start

PyTree = Any

FULL = (('.*', 1.0),)
KINDS = ('full', 'head', 'cached', 'forward')
REPEATS = 7
FORMAT = 1


def measured(values: Mapping, cache: Path, say: Callable[[str], None] = print) -> dict:
    """Seconds of one update of each of `KINDS`, from `cache` if they were measured before on this machine.

    Args:
        values: a config without rules: `data`, `init`, `batch_size`, …

    Returns:
        `{'batch_size', 'full', 'head', 'cached', 'forward', 'spread': {kind: [fastest, slowest]}, 'compile_seconds',
        'repeats', 'measured': date, 'hardware', 'versions'}`.
    """
    plan = make_plan(parse({**values, 'rules': FULL, 'steps': 1000}))
    record = run.record(as_json(plan.config), plan.data.fingerprint, None)
    decides = {
        'format': FORMAT,
        **{key: record['config'][key] for key in ('model', 'method', 'optim', 'batch_size', 'sharding')},
        'preprocess': run.model_record(record['config'], plan.data)['preprocess'],
        'classes': len(plan.data.classes),
        **{key: record[key] for key in ('hardware', 'versions')},
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    file = cache / 'cost' / f'{name}.json'
    if file.exists():
        try:
            found = files.read_json(file)
            if all(isinstance(found.get(kind), float) for kind in KINDS):
                return found
        except UserError:  # damaged: measured again
            pass
    say(f'Measures what a step costs with {values["init"]} …')
    found = measure(values) | {key: decides[key] for key in ('hardware', 'versions')}
    found['measured'] = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    file.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(file, found)
    return found


def measure(values: Mapping, repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter) -> dict:
    """As `measured`, now."""
    prepared = [_step(values, 'full'), _step(values, 'head'), _step(values, 'cached'), _forward(values)]
    compiling, seconds = {}, {kind: [] for kind in KINDS}
    for kind, once in zip(KINDS, prepared):
        before = clock()
        once()
        compiling[kind] = clock() - before
    for _ in range(repeats):
        for kind, once in zip(KINDS, prepared):
            before = clock()
            once()
            seconds[kind].append(clock() - before)
    return {
        'batch_size': parse({**values, 'steps': 1}).batch_size,
        **{kind: float(np.median(taken)) for kind, taken in seconds.items()},
        'spread': {kind: [min(taken), max(taken)] for kind, taken in seconds.items()},
        'compile_seconds': compiling,
        'repeats': repeats,
    }


def total(step: Mapping, examples: int, epochs: float, ridge_seconds: float) -> dict[str, float]:
    """Seconds of the whole: `epochs` of updates, the cached pass counted in; for the ridge the pass and the fit.

    Args:
        step: by `measure`.
        examples: to train on.
    """
    batches = examples / step['batch_size']
    once = batches * step['forward']
    return {
        'full': epochs * batches * step['full'],
        'head': epochs * batches * step['head'],
        'cached': once + epochs * batches * step['cached'],
        'ridge': once + ridge_seconds,
    }


def _step(values: Mapping, kind: str) -> Callable[[], None]:
    """One update, to be called again and again; the first call compiles."""
    rules = FULL if kind == 'full' else HEAD_ONLY
    plan = make_plan(parse({**values, 'rules': rules, 'steps': 1000}))
    batch = next(iter(plan.data.train(0, 1, plan.share)))
    ts, _ = start(plan)
    if kind == 'cached':
        features = compile_predict(plan.method, plan.layout)(ts.params, ts.state, plan.layout.batch(batch))['features']
        batch = {'label': batch['label'], 'index': batch['index'], 'embedding': np.asarray(features)}
    update = compile_step(plan.method, plan.phases[0], plan.optim, plan.layout)
    state = [ts]  # a step takes the buffers of the last one

    def once() -> None:
        state[0], _ = update(state[0], plan.layout.batch(batch), plan.rates)
        jax.block_until_ready(state[0])

    return once


def _forward(values: Mapping) -> Callable[[], None]:
    plan = make_plan(parse({**values, 'rules': HEAD_ONLY, 'steps': 1000}))
    batch = next(iter(plan.data.train(0, 1, plan.share)))
    ts, _ = start(plan)
    predict = compile_predict(plan.method, plan.layout)
    return lambda: jax.block_until_ready(predict(ts.params, ts.state, plan.layout.batch(batch)))
