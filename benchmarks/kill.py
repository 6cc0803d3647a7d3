"""Kills a real training process again and again, and compares where it ends with one that was left alone: bit by bit.

    python benchmarks/kill.py [--kills=60] [--steps=8000] [--seed=0] [--folder=DIR]

The run has all that resuming could lose: BatchNorm, augmentation, dropout, mixup, two phases, accumulation, an average
of parameters, early stopping, metrics averaged over windows that checkpoints cut. A third of the kills come at any time
since the process started, a third at any time in training, a third while a checkpoint is being written. This file is
also the config of the run. Exit status 0 if nothing differs.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jtl import checkpoint, tree

TIMES = ('seconds', 'examples_per_second', 'compile_seconds')
KINDS = ('anywhere', 'training', 'writing')
HEAD, ALL = (('head/.*', 1.0), ('.*', None)), (('.*', 1.0),)


def get_config(arg: str | None = None) -> ConfigDict:
    """`--config=benchmarks/kill.py:STEPS`."""
    steps = int(arg or 8000)
    return ConfigDict(
        {
            'data': {'name': 'digits', 'labels_per_class': 20, 'augment': (('pad_crop', 1), 'flip')},
            'model': {'name': 'resnet', 'stages': (1, 1), 'width': 8, 'head': {'dropout': 0.3}},
            'batch_size': 32,
            'steps': steps,
            'eval_every': 70,
            'log_every': 30,
            'checkpoint_every': 50,
            'patience': 10**6,
            'select': 'loss',
            'method': {'name': 'supervised', 'mixup': 0.3, 'class_weights': 'balanced', 'label_smoothing': 0.1},
            'phases': ((steps // 4 + 7, HEAD), (None, ALL)),
            'optim': {'name': 'adamw', 'lr': 1e-2, 'warmup': 20, 'ema': 0.99, 'accumulate': 2, 'clip': 1.0},
            'report': False,
        }
    )


def outcome(run: Path) -> dict:
    """All of a finished run that should not depend on how often it was cut short.

    Arrays of every checkpoint, bit by bit; the host's account of the newest (an earlier one may have been saved before
    its evaluation was made); the record; the result; the predictions.
    """
    steps = checkpoint.steps(run / 'checkpoints')
    saved = {step: checkpoint.load(run / 'checkpoints', step) for step in steps}
    timeless = lambda row: {k: v for k, v in row.items() if k not in TIMES}
    progress = timeless(saved[steps[-1]][1])
    progress['window'] = [timeless(row) for row in progress['window']]
    with np.load(run / 'predictions.npz') as predictions:
        logits = predictions['logits'].tobytes()
    return {
        'checkpoints': {
            (step, path): (value.shape, str(value.dtype), value.tobytes())
            for step, (parts, _) in saved.items()
            for path, value in tree.flatten(parts).items()
        },
        'progress': progress,
        'metrics': [timeless(json.loads(line)) for line in (run / 'metrics.jsonl').read_text().splitlines()],
        'result': timeless(json.loads((run / 'result.json').read_text())),
        'params': (run / 'params.txt').read_text(),
        'logits': logits,
    }


def start(run: Path, steps: int, log: Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'jtl.main', f'--config={__file__}:{steps}', f'--workdir={run}']
    with log.open('a') as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def wait(process: subprocess.Popen, kind: str, run: Path, startup: float) -> None:
    """Until the moment to kill, or until the process has ended."""
    until = time.monotonic() + random.uniform(0, startup if kind == 'anywhere' else 120)
    record, fewest = run / 'metrics.jsonl', math.inf

    def trains() -> bool:
        """Whether rows have been added: a session first cuts off what it will write again, then compiles."""
        nonlocal fewest
        rows = record.read_text().count('\n') if record.exists() else 0
        fewest = min(fewest, rows)
        return rows > fewest

    writes = lambda: trains() and any((run / 'checkpoints').glob('tmp-*'))
    happens = {'anywhere': lambda: False, 'training': trains, 'writing': writes}[kind]
    while process.poll() is None and time.monotonic() < until and not happens():
        time.sleep(0.001)
    time.sleep(random.uniform(0, {'anywhere': 0, 'training': 2.0, 'writing': 0.06}[kind]))


def account(run: Path, log: Path, kills: Counter, seconds: float) -> str:
    resumed = [int(step) for step in re.findall(r'going on from step (\d+)', log.read_text())]
    return (
        f'{sum(kills.values())} kills ({", ".join(f"{n} {kind}" for kind, n in kills.items())}), '
        f'{len(resumed)} resumptions from {len(set(resumed))} different steps, {seconds:.0f} s'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=60)
    parser.add_argument('--steps', type=int, default=8000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path)
    args = parser.parse_args()
    random.seed(args.seed)
    folder = args.folder or Path(tempfile.mkdtemp(prefix='jtl-kill-'))
    folder.mkdir(parents=True, exist_ok=True)

    began = time.monotonic()
    if start(folder / 'whole', args.steps, folder / 'whole.log').wait():
        print((folder / 'whole.log').read_text())
        return 1
    print(f'left alone: {args.steps} steps in {time.monotonic() - began:.0f} s', flush=True)

    began, kills, left, startup = time.monotonic(), Counter(), [], 8.0
    while sum(kills.values()) < args.kills:
        process = start(folder / 'killed', args.steps, folder / 'killed.log')
        kind = random.choice(KINDS)
        wait(process, kind, folder / 'killed', startup)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills[kind] += 1
        left += [p.name for p in (folder / 'killed' / 'checkpoints').glob('tmp-*')]
    print(account(folder / 'killed', folder / 'killed.log', kills, time.monotonic() - began))
    print(f'{len(left)} of them left a checkpoint half-written')
    if sum(kills.values()) < args.kills:
        print(f'the run ended before {args.kills} kills: give it more --steps')
        return 1
    if start(folder / 'killed', args.steps, folder / 'killed.log').wait():
        print((folder / 'killed.log').read_text()[-2000:])
        return 1
    whole, killed = outcome(folder / 'whole'), outcome(folder / 'killed')
    different = [part for part in whole if whole[part] != killed[part]]
    print(f'{len(whole["checkpoints"])} arrays and {len(whole["metrics"])} rows of metrics compared: ', end='')
    print(f'different: {", ".join(different)}; see {folder}' if different else 'the same bits')
    return 1 if different else 0


if __name__ == '__main__':
    sys.exit(main())
