"""RESULTS.md, results.png and results.jsonl of a comparison, and the text for a terminal."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator

from jtl import compare, metrics, report
from jtl.comparison.layout import ALL, Request

COSTS = {'trained': 'trained parameters', 'bytes': 'memory of a step, MB', 'seconds': 'seconds a run'}
SCALE = {'bytes': 1e6}
CHARACTER, LINE = 4.6, 10.0  # points that a letter of a label is wide, and a line high


def write(workdir: Path, request: Request, lines: list[dict], facts: list[dict], title: str, workers: int) -> str:
    """Saves the three files in `workdir`; returns the text for a terminal.

    Args:
        lines: by `jtl.comparison.results.table`.
        facts: what each run says of its hardware, commit and versions.
    """
    unit = 'labels' if request.labels == (ALL,) else 'labels a class'
    title = title or 'Ways to fine-tune'
    head, *body = grid(lines, request, unit)
    said, noted = compare.sentences(lines, request.baseline, unit), notes(lines, request, workers)
    (workdir / 'results.jsonl').write_text(''.join(json.dumps(metrics.finite(line)) + '\n' for line in lines))
    marked = ['| ' + ' | '.join(line) + ' |' for line in (head, ['---'] * len(head), *body)]
    blocks = [f'# {title}', *said, '![](results.png)', '\n'.join(marked)]
    report.save(costs(lines, f'test {request.metric}, %', unit), workdir / 'results.png')
    if len(request.labels) > 1:
        report.save(report.comparison(lines, f'test {request.metric}, %', unit, None, title), workdir / 'labels.png')
        blocks.insert(-1, '![](labels.png)')
    blocks.append('\n'.join(f'- {note}' for note in noted + compare.facts(facts)) + '\n')
    (workdir / 'RESULTS.md').write_text('\n\n'.join(blocks), encoding='utf-8')
    widths = [max(map(len, column)) for column in zip(head, *body)]
    aligned = ['  '.join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in (head, *body)]
    said = [textwrap.fill(x, 100, subsequent_indent='  ') for x in said]
    return '\n'.join([*aligned, '', *said, '', str(workdir / 'RESULTS.md')])


def grid(lines: list[dict], request: Request, unit: str) -> list[list[str]]:
    """The table as text, a heading and a row for each method and number of labels."""
    accuracy = request.metric == 'accuracy'
    text = [
        [unit, 'method', f'test {request.metric}, %', f'minus {request.baseline}, points']
        + ['other examples too'] * accuracy
        + ['chosen', 'of', 'trained', 'MB a step', 'GFLOP a step', 'seconds', 'seeds']
    ]
    for before, line in zip([None, *lines], lines):
        again = before is not None and before['across'] == line['across']
        row = ['' if again else str(line['across']), line['method'], _mean(line), _difference(line)]
        row += [_span(line['resampled'])] * accuracy
        row += [line['settings'] + '*' * line['edge'], str(len(line['grid'])), _number(line['trained'], 1)]
        row += [_number(line[key], scale) for key, scale in (('bytes', 1e6), ('flops', 1e9), ('seconds', 1))]
        text.append([*row, f'{line["n"]}' + f', {line["diverged"]} diverged' * bool(line['diverged'])])
    return text


def _mean(line: dict) -> str:
    if np.isnan(line['mean']):
        return 'diverged' if line['diverged'] else '–'
    return f'{100 * line["mean"]:.1f}' + ('' if np.isnan(line['half']) else f' ± {100 * line["half"]:.1f}')


def _difference(line: dict) -> str:
    if not line.get('pairs') or np.isnan(line['difference']):
        return ''
    return f'{100 * line["difference"]:+.1f}' + (f' {_span(line)}' if line['verdict'] else '')


def _span(line: dict | None) -> str:
    return f'[{100 * line["low"]:.1f}, {100 * line["high"]:.1f}]' if line else ''


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return '–'
    value /= scale
    return f'{value:,.0f}' if value >= 100 or scale == 1 and value == int(value) else f'{value:.3g}'


def notes(lines: list[dict], request: Request, workers: int) -> list[str]:
    """How the numbers came about: what a reader has to know to believe them, or to doubt them."""
    seeds = request.grid_seeds
    base = request.baseline
    over = 'all seeds' if seeds == request.seeds else 'the first seed' if seeds == 1 else f'the first {seeds} seeds'
    sizes = sorted({len(line['grid']) for line in lines})
    own = [name for name, recipe in request.methods.items()
           if any(key.startswith('data.') for key in (*recipe.overrides, *recipe.grid))]  # fmt: skip
    but = f' ({", ".join(own)}: sampled or augmented otherwise)' * bool(own)
    many = 'one at a time' if workers == 1 else f'{workers} at a time, which shared the machine'
    said = [
        f"± and [low, high]: 95 % intervals by Student's t over the seeds, which draw the labels, what is initialised "
        f'and the order; differences to {base} are paired by seed, and the words above follow them. All seeds are '
        'tested on the same examples. Nothing is corrected for the number of comparisons.',
        f'Equal budget: the same steps, batches, labels, order and augmentation by seed{but}. A method has '
        f'{" or ".join(map(str, sizes))} points in its grid (column "of"); that with the best mean validation '
        f'{request.metric} over {over} is '
        'taken (of equals the middle, then the smaller), and the test split played no part. *: the rate is at the edge '
        'of those tried, a better one may lie beyond.',
        'MB a step: what one training step holds as compiled: arguments (parameters, state, optimiser slots, batch), '
        'temporaries and outputs of their own, by `memory_analysis`, in the phase that trains the most. GFLOP: by '
        "`cost_analysis`, which counts a loop's body once.",
        'seconds: of a run at the chosen point from its first step to its last, with evaluations and without compiling '
        f'steps; the median over seeds. Runs were made {many}.',
    ]
    if not request.config.get('init'):
        said.append('config.init names no weights, so every method starts from random parameters.')
    if request.metric == 'accuracy':
        said.insert(1, (
            'other examples too: the same difference by resampling seeds and test examples alike '
            '(`jtl.paired.bootstrap_difference`); with few seeds it is rather narrow.'
        ))  # fmt: skip
    lost = [f'{line["method"]} ({line["across"]}) at {point["settings"]}' for line in lines
            for point in line['grid'] if point['diverged']]  # fmt: skip
    if lost:
        said.append(f'Diverged, and so not chosen where something else was to be had: {"; ".join(lost)}.')
    return said


# The picture.


def costs(lines: list[dict], label: str, unit: str) -> Figure:
    """The metric against trained parameters, memory and seconds: a column each, a row for each number of labels."""
    xs = list(dict.fromkeys(line['across'] for line in lines))
    methods = list(dict.fromkeys(line['method'] for line in lines))
    figure = Figure(figsize=(13.5, 4.4 * len(xs)), layout='constrained')
    axes = figure.subplots(len(xs), len(COSTS), squeeze=False, sharey='row', sharex='col')
    for row, x in zip(axes, xs):
        here = [line for line in lines if line['across'] == x and not np.isnan(line['mean'])]
        for ax, (key, what) in zip(row, COSTS.items()):
            _panel(ax, [line for line in here if line[key]], key, methods, _limits(lines, key))
            title = 'all labels' if x == ALL else f'{x} {unit}'
            report.tidy(ax, title if xs != [ALL] and key == 'trained' else '', what)
        row[0].set_ylabel(label, color=report.GREY)
        low, high = row[0].get_ylim()
        row[0].set_ylim(max(low, -2), min(high, 102))
    figure.draw_without_rendering()  # places the axes, which the labels' places depend on
    for ax in axes.flat:
        _label(ax)
    return figure


def _limits(lines: list[dict], key: str) -> tuple[float, float]:
    """Of an axis, with room for labels on both sides."""
    values = np.log([line[key] / SCALE.get(key, 1) for line in lines if line[key]] or [1.0])
    room = 0.25 * np.ptp(values) + 0.4
    return float(np.exp(values.min() - room)), float(np.exp(values.max() + room))


def _panel(ax, lines: list[dict], key: str, methods: list[str], limits: tuple[float, float]) -> None:
    ax.set_xscale('log')
    ax.set_xlim(*limits)
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if limits[1] > 100 * limits[0] else (1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep='') if key == 'trained' else lambda x, _: f'{x:g}')
    ax.minorticks_off()
    for line in lines:
        x, y, half = line[key] / SCALE.get(key, 1), 100 * line['mean'], 100 * np.nan_to_num(line['half'])
        color = f'C{methods.index(line["method"]) % 10}'
        ax.errorbar([x], [y], [half], fmt='o', markersize=5, lw=1.2, color=color, label=line['method'])
    ax.margins(y=0.1)


def _label(ax) -> None:
    """Writes each point's method beside it: of the places near by the first where it covers no other label or point."""
    handles, names = ax.get_legend_handles_labels()
    ends = [container.lines[0].get_xydata()[0] for container in handles]
    scale = 72 / ax.figure.dpi  # pixels -> points
    points = [ax.transData.transform(end) * scale for end in ends]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for end, (x, y), name, container in sorted(zip(ends, points, names, handles), key=lambda item: -item[1][1]):
        name = report.plain_text(name)
        dx, dy = next(_places(x, y, CHARACTER * len(name), taken), (6, -3))
        left = x + dx
        taken.append((left, y + dy - 2, left + CHARACTER * len(name), y + dy + LINE - 2))
        color = container.lines[0].get_color()
        thin = {'arrowstyle': '-', 'color': color, 'lw': 0.5, 'alpha': 0.6, 'shrinkA': 0, 'shrinkB': 3}
        far = abs(dy + 3) > LINE
        ax.annotate(
            name, end, (dx, dy), textcoords='offset points', fontsize=8, color=color, arrowprops=thin if far else None
        )


def _places(x: float, y: float, width: float, taken: Iterable[tuple]) -> Iterable[tuple[float, float]]:
    """Offsets of a label's lower left corner that are free: right of the point, left of it, then higher and lower."""
    for away in range(12):
        for dy in (-3 + away * LINE * 0.7, -3 - away * LINE * 0.7):
            for dx in (7, -7 - width):
                box = (x + dx, y + dy - 2, x + dx + width, y + dy + LINE - 2)
                if not any(_overlap(box, other) for other in taken):
                    yield dx, dy


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
