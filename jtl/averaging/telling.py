"""What `jtl average` says of an average and of its ingredients: a table for people, average.json, and a plot."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jtl import report
from jtl.averaging.weights import goodness, values
from jtl.paired import right, versus

CONFIDENCE = 0.95


def compared(rows: Iterable[tuple], own: Mapping | None, metric: str, classes: tuple[str, ...]) -> list[dict]:
    """Each ingredient: its share, its validation and test metric, and what the average is to it, example by example.

    `best` is the one with the best validation metric, which is whom one would have taken otherwise; by the test metric
    it would be known only afterwards.

    Args:
        rows: `(name, share, validation scalars, test outputs or None)` of each ingredient.
        own: the test outputs of the average.
    """
    told = []
    for name, share, val, seen in rows:
        found = values(seen, classes) if seen is not None else {}
        same = own is not None and seen is not None and _same(own, seen)
        told.append(
            {
                'run': name,
                'share': share,
                'val': val.get(metric),
                'test': float(found[metric]) if found else None,
                'versus': _versus(own, seen) if same else None,
            }
        )
    known = [row for row in told if row['val'] is not None]
    best = max(known, key=lambda row: goodness({metric: row['val']}, metric)) if known else None
    return [{**row, 'best': row is best} for row in told]


def _same(a: Mapping, b: Mapping) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in ('index', 'label'))


def _versus(own: Mapping, seen: Mapping) -> dict:
    """`jtl.paired.versus` of the average against one run."""
    return versus(*(right(x['logits'], own['label'])[None] for x in (own, seen)), CONFIDENCE)


def table(told: Mapping) -> list[str]:
    """A line for each ingredient and one for the average."""
    metric, number = told['metric'], lambda x: '-' if x is None else f'{x:.4f}'
    split = {name: f'{name} {metric}' for name in ('val', 'test')}
    lines = []
    if 'curve' in told:
        lines += [f'alpha   val {metric:12}val loss']
        for row in told['curve']:
            star = '  chosen' if row['alpha'] == told['alpha'] else ''
            lines.append(f'{row["alpha"]:5.1f}   {number(row["val"][metric]):16}{number(row["val"]["loss"])}{star}')
        lines.append('')
    if 'steps' in told:
        lines += [f'Checkpoints of steps {", ".join(map(str, told["steps"]))}.', '']
    rows = [('', 'share', split['val'], split['test'], 'accuracy of the average minus its, points')]
    for row in told['runs']:
        share = '-' if row['share'] is None else f'{row["share"]:.2f}'
        name = row['run'] + ' *' * row['best']
        rows.append((name, share, number(row['val']), number(row['test']), against(row['versus'])))
    rows.append((told['of'], '', *(number((told[name] or {}).get(metric)) for name in split), ''))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines += ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if any(row['best'] for row in told['runs']) and len(told['runs']) > 1:
        lines.append('* the best single run by validation')
    if told.get('statistics'):
        lines.append(f'Statistics of BatchNorm: {told["statistics"]}.')
    return lines


def against(found: Mapping | None) -> str:
    """`+1.2 [-0.3, 2.7], p 0.13`."""
    if found is None:
        return '-'
    p = f', McNemar p {found["mcnemar"][0]:.2g}' if found['mcnemar'] else ''
    return f'{100 * found["difference"]:+.1f} [{100 * found["low"]:.1f}, {100 * found["high"]:.1f}]{p}'


def closing(told: Mapping, folder: Path) -> str:
    if told['how'] == 'ensemble':
        return f'{folder}: predictions.npz and average.json; an ensemble has no weights, so this is no run.'
    return f'{folder}: a run that jtl eval, jtl predict and config.init take.'


def plot(told: Mapping, path: Path) -> None:
    """The validation metric along the line, and the test metric of the ends and of what was chosen."""
    metric, value = told['metric'], lambda row: np.nan if row[metric] is None else row[metric]
    alphas = [row['alpha'] for row in told['curve']]
    figure = Figure(figsize=(5.5, 3.6), layout='constrained')
    ax = figure.subplots()
    ax.plot(alphas, [value(row['val']) for row in told['curve']], 'o-', ms=4, lw=1.8, color='#2563eb', label='val')
    ax.axvline(told['alpha'], color=report.GREY, lw=0.9, ls=':', label='chosen by val')
    if told['test'] is not None:
        first, last = (np.nan if row['test'] is None else row['test'] for row in told['runs'])
        ax.plot([0, told['alpha'], 1], [first, value(told['test']), last], 'D', ms=6, color='#d97706', label='test')
    report.tidy(ax, f'{metric} between two runs', 'α: 0 is the first, 1 is the second')
    ax.legend(frameon=False, fontsize=8)
    report.save(figure, path)
