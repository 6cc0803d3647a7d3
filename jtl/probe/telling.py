"""What `jtl probe` says of the heads that it tried: a table for people, and `probe.json`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jtl.metrics import finite
from jtl.models.layers import FEATURES
from jtl.probe import choose
from jtl.probe.choose import Candidate
from jtl.probe.features import Frozen

if TYPE_CHECKING:
    from jtl.probe.fit import Found


def record(of: Frozen, found: 'Found', metric: str) -> dict:
    """What `probe.json` says."""
    told = lambda c: {key: value for key, value in c._asdict().items() if value != ''}
    return finite(
        {
            'data': of.where[0],
            'init': of.where[1],
            'classes': len(of.data.classes),
            'sizes': of.data.sizes,
            'majority': of.data.majority,
            'metric': metric,
            'judged_by': found.judged_by,
            'joined': found.joined,
            'chosen': {**told(found.chosen.candidate), 'test': found.test},
            'written': {**told(found.written.candidate), 'test': found.written_test},
            'seconds': found.seconds,
            'candidates': [told(c) for c in found.candidates],
        }
    )


def table(found: 'Found', metric: str) -> list[str]:
    """The best of each kind and of each layer, and the chosen one on the test split."""
    fine = [c for c in found.candidates if not np.isnan(c.value)]
    lines = [f'{metric} by {found.judged_by}; the best setting of each:']
    for name in ('head', 'layer'):
        keys = list(dict.fromkeys(getattr(c, name) for c in found.candidates))
        tops = {key: [c for c in fine if getattr(c, name) == key] for key in keys}
        rows = [(key, max(tops[key], key=lambda c: c.value)) for key in keys if tops[key]]
        other = 'layer' if name == 'head' else 'head'
        lines += ['', f'{name:18}{metric:>10}  {other:18}setting']
        lines += [f'{key:18}{c.value:10.4f}  {getattr(c, other):18}{setting(c)}' for key, c in rows]
    skipped = {(c.head, c.reason): c for c in found.candidates if c.reason and not c.reason.startswith('the same as')}
    lines += ['', *(f'Not tried: {c.head} on {c.layer}: {c.reason}' for c in skipped.values())] if skipped else ['']
    best = f'{metric} {found.chosen.candidate.value:.4f}, the best of {len(fine)} and so rather too high'
    lines.append(f'Chosen: {said(found.chosen.candidate)}: {best}.')
    lines += [f'  test {line}' for line in intervals(found.test)]
    return lines


def closing(of: Frozen, found: 'Found', folder: Path) -> list[str]:
    """Where the chosen layer can be cut, what was written, and how long it took."""
    chosen, written, lines = found.chosen.candidate, found.written.candidate, []
    if chosen.layer == choose.JOINED:
        lines.append(f'joined is {", ".join(found.joined)} together: no run can hold it.')
    elif chosen.layer != FEATURES:
        last = max((c.value for c in found.candidates if c.layer == FEATURES and not np.isnan(c.value)), default=0)
        ahead = f'{100 * (chosen.value - last):+.1f} points to the best on the features, which may be chance'
        lines.append(f'{chosen.layer} is not the last layer ({ahead}): {cut(of, chosen.layer)}')
    fitted = 'fitted to the training split alone'
    lines.append(f'{folder}: a run with {said(written)}, {fitted}: {written.value:.4f}.')
    if written != chosen:
        lines += [f'  test {line}' for line in intervals(found.written_test)]
    lines.append(f'Seconds: features {found.seconds["features"]:.1f}, heads {found.seconds["heads"]:.1f}.')
    return lines


def cut(of: Frozen, layer: str) -> str:
    """How a model ends at a layer, if it can."""
    block = re.fullmatch(r'(?:stage(\d+)/)?block(\d+)', layer)
    if not block or not hasattr(of.model.backbone, 'depth'):
        return 'this model cannot be cut there.'
    stage, depth = block[1], int(block[2]) + 1
    if not stage:
        return f'--set model.depth={depth} cuts the model there.'
    last = depth == of.model.backbone.stages[int(stage) - 1]
    return f'--set model.depth={stage} cuts the model {"there" if last else "after the whole of its stage"}.'


def said(c: Candidate) -> str:
    return f'{c.head} ({setting(c)}) on {c.layer}'


def setting(c: Candidate) -> str:
    return ', '.join(
        f'{key} {value:g}' if isinstance(value, float) else f'{key} {value}' for key, value in c.setting.items()
    )


def intervals(test: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [f'{name:13}{v["value"]:.4f} [{v["low"]:.4f}, {v["high"]:.4f}]' for name, v in test.items()]
