"""`jtl advise --check`: was the advice right? The top sources, trained; the test split is read once, at the end.

    ridge   the advised layer and λ, fitted to all of train and val, and asked about the test split
    head    a plain run of a linear head on cached features, in WORKDIR/check/SOURCE/head
    full    a plain run of everything, the backbone at a tenth of the head's rate, in WORKDIR/check/SOURCE/full

Runs go on where they were cut short. In `advice.json`:

    check   budget, runs: [{source, method, accuracy {x}, predicted {x} or null, within: whether accuracy is in it,
            seconds}], ranking: by method, first minus second, paired by example, and whether the order held; said:
            sentences

Legend: M test examples.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jtl import paired
from jtl.config import override
from jtl.errors import UserError
from jtl.probe import measure, ranking
from jtl.probe.features import HEAD_ONLY, features, labels
from jtl.train import train

METHODS = ('ridge', 'head', 'full')
RULES = {'head': HEAD_ONLY, 'full': (('head/.*', 1.0), ('.*', 0.1))}
OPTIM = {'name': 'adamw', 'lr': 3e-3, 'weight_decay': 0.01, 'clip': 1.0}
HELD = {paired.HELPED: 'held', paired.HURT: 'did not hold', paired.OPEN: 'cannot be told'}


def check(
    found: Mapping,
    tops: Sequence[Any],
    values: Mapping,
    workdir: Path,
    budget: Mapping,
    pool: str,
    say: Callable[[str], None] = print,
) -> dict:
    """Trains, and compares with what was advised.

    Args:
        found: `advice.json`.
        tops: the first sources of its ranking, as `advise.Opened`.
        values: a config without rules and length.
        budget: `{'steps': …}` or `{'epochs': …}`, of each run.
    """
    confidence, runs, hits = found['confidence'], [], {}
    for place, one in enumerate(tops, 1):
        advised = found['sources'][one.uri]
        for method in METHODS:
            before = time.perf_counter()
            if method == 'ridge':
                right, seconds = _ridge(one, advised, pool, values.get('cache', {}).get('folder'), say), None
            else:
                folder = workdir / f'{place}-{_folder(one.name)}' / method
                say(f'{folder} …')
                config = settings(one.values, method, budget, one.plan)
                seconds = train(config, folder, quiet=True)['seconds']
                right = _predicted(folder)
            predicted = {'ridge': advised['ridge'], 'full': advised['predicted'], 'head': None}[method]
            predicted = None if predicted is None or predicted.get('value') is None else predicted
            accuracy = measure.accuracy(right, confidence)
            runs.append({'source': one.uri, 'method': method, 'accuracy': accuracy, 'predicted': predicted})
            runs[-1]['within'] = predicted and bool(predicted['low'] <= accuracy['value'] <= predicted['high'])
            runs[-1]['seconds'] = time.perf_counter() - before if seconds is None else seconds
            hits[one.uri, method] = right
    checked = {'budget': dict(budget), 'examples': len(right), 'runs': runs, 'ranking': {}}
    if len(tops) > 1:
        for method in METHODS:
            versus = ranking.difference(hits[tops[0].uri, method], hits[tops[1].uri, method], confidence)
            checked['ranking'][method] = versus | {'held': HELD[versus['verdict']]}
    return checked | {'said': sentences(checked, [one.name for one in tops])}


def settings(values: Mapping, method: str, budget: Mapping, plan: Any) -> dict:
    """The config of a plain run: what `--set` says, and else a recipe for any backbone."""
    size = plan.config.batch_size
    steps = budget.get('steps') or max(round(budget['epochs'] * plan.data.sizes['train'] / size), 1)
    config = override(values, {'rules': RULES[method], 'steps': int(steps), 'report': False})
    config['optim'] = {**OPTIM, 'warmup': int(steps) // 20, **values.get('optim', {})}
    if method == 'head':
        config['data'] = {**config['data'], 'augment': ()}  # so that its features come from the cache
    return config


def sentences(checked: Mapping, names: Sequence[str]) -> list[str]:
    """What came of the advice, in words."""
    said = []
    for method, versus in checked['ranking'].items():
        points = f'{100 * versus["difference"]:+.1f} points [{100 * versus["low"]:.1f}, {100 * versus["high"]:.1f}]'
        outcome = {'held': 'held', 'did not hold': 'did not hold', 'cannot be told': 'whether it held cannot be told'}
        order = f'{names[0]} before {names[1]} by {method}'
        said.append(f'{order}: {outcome[versus["held"]]} ({points} on {checked["examples"]} test examples).')
    judged = [one for one in checked['runs'] if one['predicted']]
    if judged:
        inside = sum(one['within'] for one in judged)
        said.append(f'{inside} of {len(judged)} predictions have the test accuracy in their interval.')
    return said


def table(found: Mapping) -> str:
    """A row a source and method: predicted, real, seconds."""
    lines = [('source', 'method', 'predicted', 'test accuracy', 'seconds')]
    for one in found['check']['runs']:
        predicted = '–' if one['predicted'] is None else ranking.between(one['predicted'])
        name = found['sources'][one['source']]['name']
        lines.append((name, one['method'], predicted, ranking.between(one['accuracy']), f'{one["seconds"]:.1f}'))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def _ridge(one: Any, advised: Mapping, pool: str, folder: str | None, say: Callable) -> np.ndarray:
    """How right the advised head is on each test example, [M]."""
    data, layer = one.plan.data, advised['best']
    row = next(row for row in advised['layers'] if row['name'] == layer)
    splits = [split for split in ('train', 'val', 'test') if split in data.sizes]
    x = features(one.frozen, (layer,), splits=splits, pool=pool, folder=folder, say=say, quiet=True)
    known = splits[:-1]
    seen, y = (np.concatenate(parts) for parts in ([x[s][layer] for s in known], [labels(data, s) for s in known]))
    chosen = row['ridge']['chosen']
    return measure.right_on(seen, y, x['test'][layer], labels(data, 'test'), len(data.classes), chosen)


def _predicted(folder: Path) -> np.ndarray:
    """How right a finished run is on each test example, in the order of the split: [M]."""
    try:
        with np.load(folder / 'predictions.npz') as arrays:
            return paired.right(arrays['logits'], arrays['label'])
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f'{folder}/predictions.npz: cannot be read ({e}).') from e


def _folder(name: str) -> str:
    return ''.join(c if c.isalnum() or c in '._-' else '_' for c in name)[:60]
