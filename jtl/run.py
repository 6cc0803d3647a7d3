"""A run's folder: what is written at the start and the end, and how a finished run is read back.

config.json       the config with every default, version, commit, hardware, hashes of data and weights
params.txt        a row a parameter: shape, multiplier, weight decay, where its value came from
metrics.jsonl     a row a measurement
result.json       the end
checkpoints/      the newest ones and the best
lock              while a process works in the folder: which one
predictions.npz   index, label and logits of the test split
model/            architecture, class names, preprocessing, tokenizer: with a checkpoint, all that prediction needs
report.html       the page, and its pictures as PNG
guard/            with config.guard: the baselines, runs of their own; guard.json says how they compare
probe.json        of jtl probe: every head that was tried
average.json      of jtl average: what was averaged, and how each did; wise.png is the line between two runs
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jtl
from jtl import checkpoint, metrics, tree
from jtl.config import differences, essential
from jtl.data.pipeline import Preprocess
from jtl.errors import UserError, check_kwargs, check_type
from jtl.files import expanded, locked, read_small
from jtl.pretrained.hub import TOKENIZER

PyTree = Any

STARTED = ('lock', 'model', 'params.txt', 'config.tmp')  # what a run leaves that was killed before it wrote config.json


class Run(NamedTuple):
    """A finished run, read back."""

    path: Path
    model: dict  # the `model` section of its config
    method: dict  # the `method` section
    classes: tuple[str, ...]
    multi_label: bool
    preprocess: dict  # fields of `jtl.data.Preprocess`
    config: dict
    tokenizer: dict[str, bytes]  # its files by name; {} of a model of pictures
    params: PyTree  # of the selected checkpoint, averaged if the run averaged; nested dicts of host arrays
    state: PyTree


def read(path: str | Path) -> Run:
    """Reads a finished run and verifies its selected checkpoint.

    Raises:
        UserError: not a run's folder, not finished, without checkpoints, or damaged.
    """
    path = finished(path)
    config, result, model = (_json(path / file) for file in ('config.json', 'result.json', 'model/model.json'))
    try:
        step, options = result['step'], config['config']
        there = [name for name in TOKENIZER if (path / 'model' / name).exists()]
        files = {name: read_small(path / 'model' / name, path) for name in there}
        for key, kind in (('model', dict), ('method', dict), ('preprocess', dict), ('classes', tuple[str, ...])):
            check_type(f'model/model.json: {key}', model[key], kind)
        check_type('model/model.json: model.name', model['model']['name'], str)
        check_kwargs(Preprocess, model['preprocess'], 'model/model.json: preprocess', ignore=('tokenizer',))
        model['classes'] = tuple(model['classes'])
        run = Run(path, **model, config=options, tokenizer=files, params=None, state=None)
    except (KeyError, TypeError, AttributeError, UserError) as e:
        raise UserError(f'{path}: config.json, result.json or model/model.json is not as it was written ({e}).') from e
    if step not in checkpoint.steps(path / 'checkpoints'):
        raise UserError(
            f'{path}: this run kept no checkpoint of step {step} (config.checkpoint_every = 0 writes none).'
        )
    parts, _ = checkpoint.load(path / 'checkpoints', step, ('params', 'state', 'ema'))
    params = tree.unflatten({**tree.flatten(parts['params']), **tree.flatten(parts['ema'])})
    return run._replace(params=params, state=parts['state'])


def finished(path: str | Path) -> Path:
    """The folder of a finished run, of which nothing is read.

    Raises:
        UserError: not a run's folder, or not finished.
    """
    path = expanded(path)
    if not (path / 'config.json').is_file():
        raise UserError(f'{path}: not the folder of a run: it has no config.json.{_runs_nearby(path)}')
    if not (path / 'result.json').is_file():
        raise UserError(f'{path}: this run has not finished; the command that started it goes on with it.')
    return path


def _runs_nearby(path: Path) -> str:
    found = sorted(p.parent for p in path.glob('*/result.json')) if path.is_dir() else []
    return f' Runs in it: {", ".join(map(str, found[:5]))}.' if found else ''


def _json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f'{path}: cannot be read ({e}).') from e


def result(workdir: Path) -> dict | None:
    """What a finished run came to; None of one that is not."""
    path = workdir / 'result.json'
    if not path.exists():
        return None
    found = _json(path)
    if missing := {'step', 'seconds', 'examples_per_second', 'params'} - found.keys():
        raise UserError(f'{path}: is not as it was written: it has no {", ".join(sorted(missing))}.')
    return found


def record(config: dict, fingerprint: str, weights: str | None, files: tuple[str, ...] = ()) -> dict:
    """What `config.json` says: the config, and what else the outcome depends on."""
    return {
        'config': config,
        'data': fingerprint,
        'weights': weights,
        'weights_from': list(files),
        'command': shlex.join(['python', '-m', 'jtl.main', *sys.argv[1 + (sys.argv[1:2] == ['train']) :]]),
        'version': jtl.__version__,
        'commit': _commit(),
        **_machine(),
    }


def identity(record: dict) -> str:
    """A hash of all that decides what a run computes."""
    decides = [essential(record['config']), record['data'], record['weights']]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _machine() -> dict:
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'numpy', 'flax', 'optax')}
    hardware = f'{jax.device_count()} × {device.device_kind}, {os.cpu_count()} cores {platform.machine()}'
    return {'versions': {'python': platform.python_version(), **versions}, 'hardware': hardware}


@functools.cache
def _commit() -> str | None:
    """The commit of the source tree that jtl runs from; None for an installed copy."""

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(['git', '-C', str(Path(jtl.__file__).parent), *args], capture_output=True, text=True)

    try:
        if git('ls-files', '--error-unmatch', '__init__.py').returncode:
            return None
        return git('rev-parse', 'HEAD').stdout.strip() + ('-dirty' if git('status', '--porcelain').stdout else '')
    except OSError:
        return None


def check(workdir: Path, new: dict) -> None:
    """Refuses a folder that is not this run's.

    Raises:
        UserError: it holds a run of another config or of other data, naming what differs, or files that are no run's,
            or cannot be written to.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f'--workdir {workdir}: is a file, not a folder.')
    if not (workdir / 'config.json').exists():
        if any(p.name not in STARTED for p in workdir.iterdir()):
            raise UserError(f'--workdir {workdir}: is not empty and not the folder of a run; name a new one.')
        return
    old = _json(workdir / 'config.json')
    if not isinstance(old.get('config'), dict):
        raise UserError(f'{workdir / "config.json"}: is not as it was written: it has no config.')
    changed = differences(essential(old['config']), essential(new['config']))
    changed += [f'the {key} behind it' for key in ('data', 'weights') if old.get(key) != new[key]]
    if changed:
        raise UserError(
            f'--workdir {workdir}: holds a run with another config; it differs in {"; ".join(changed)}. '
            'Name another --workdir, or delete this one.'
        )
    if not (workdir / 'result.json').exists():
        checkpoint.check(workdir / 'checkpoints')


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it; a kill ends that too.

    Whoever fails before anything is written leaves no folder behind.

    Raises:
        UserError: another process works in it, or it cannot be written to.
    """
    made = [p for p in (workdir, *workdir.parents) if not p.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = locked(workdir / 'lock')
    except BlockingIOError as e:
        holder = 'just started'
        with contextlib.suppress(OSError):
            holder = (workdir / 'lock').read_text().strip() or holder
        raise UserError(f'--workdir {workdir}: another process works in it ({holder}).') from e
    except OSError as e:
        raise UserError(f'--workdir {workdir}: cannot be written to: {e.strerror}.') from e
    with file:
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        try:
            yield
        finally:
            (workdir / 'lock').unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: there is a run in it
                for path in made:
                    path.rmdir()


def note_change(workdir: Path, now: dict) -> str | None:
    """What of the versions is not as it was when the run began, so that its numbers may come out otherwise."""
    before = _json(workdir / 'config.json').get('versions')
    before = before if isinstance(before, dict) else {}
    changed = [f'{k} {before.get(k)} -> {v}' for k, v in now['versions'].items() if before.get(k) != v]
    if not changed:
        return None
    return f'Note: begun with other versions ({", ".join(changed)}); numbers may be rounded otherwise from here on.'


def write_start(workdir: Path, record: dict, model: dict, params_table: str, tokenizer: Mapping[str, bytes]) -> None:
    """The files that a run starts with; `config.json` last, since it makes the folder a run's."""
    (workdir / 'model').mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.items():
        (workdir / 'model' / name).write_bytes(content)
    write_json(workdir / 'model' / 'model.json', model)
    (workdir / 'params.txt').write_text(params_table)
    write_json(workdir / 'config.json', record)


def write_finished(
    workdir: Path,
    record: dict,
    model: dict,
    params_table: str,
    tokenizer: Mapping[str, bytes],
    params: PyTree,
    state: PyTree,
    result: Mapping,
    predictions: Mapping[str, np.ndarray] | None = None,
) -> None:
    """The folder of a run that no loop made; the caller holds its lock. `result.json` last: with it, it has finished.

    Args:
        record, model: see `record` and `model_record`.
        result: with `step`, that of its only checkpoint.
        predictions: `index`, `label` and `logits` of the test split.
    """
    write_start(workdir, record, model, params_table, tokenizer)
    with checkpoint.Writer(workdir / 'checkpoints') as writer:
        writer.save(result['step'], {'params': params, 'state': state}, {})
    if predictions is not None:
        np.savez(workdir / 'predictions.npz', **{name: predictions[name] for name in ('index', 'label', 'logits')})
    write_json(workdir / 'result.json', metrics.finite(result))


def write_json(path: Path, value: Mapping) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n')
    temporary.replace(path)


def model_record(config: Mapping, data: Any) -> dict:
    """What `model/model.json` says."""
    preprocess = dataclasses.asdict(data.preprocess)
    del preprocess['tokenizer']  # files beside this one
    return {
        'model': config['model'],
        'method': config['method'],
        'classes': data.classes,
        'multi_label': data.multi_label,
        'preprocess': preprocess,
    }
