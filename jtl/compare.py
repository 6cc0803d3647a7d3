"""The summary of a sweep: which method helps, from how many labels to how many, and how sure we are.

Everything is read back from the folders of plain, finished runs. The path of a run below the sweep's folder names
it, `METHOD/key=value/key=value/…`, e.g. `head/labels=5/lr=0.01/seed=3`; a run without settings, such as `pretrain`,
is a source: it is listed, not compared.

    read -> rows -> choose (validation only) -> table (test, intervals) -> words, Markdown, a picture

A *cell* is a method and everything in the path but the tuned key and the seed: `(method, ((key, value), …))`. Its
learning rate is chosen on the validation split, never on the test split. Differences to the baseline are paired:
run by run with the same seed, hence the same examples and test split, which takes the spread that the seeds share
out of the interval.
"""

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np

from jtl import metrics, report
from jtl.errors import UserError, nearest

RESERVED = ('run', 'method', 'source', 'step', 'val', 'test', 'majority', 'params', 'seconds', 'facts')
RESULT = ('step', 'val', 'test', 'params', 'seconds', 'examples_per_second', 'compile_seconds')
FACTS = ('command', 'version', 'versions', 'commit', 'git_commit', 'hardware', 'device', 'devices')  # of config.json


def read(workdir: Path | str) -> list[dict]:
    """One row for each finished run below `workdir`, in the order of their paths.

    A row is flat: 'run' (the path), 'method', 'source' (True: not compared), the settings of the path as numbers
    where they are numbers, what result.json holds, 'majority' and 'facts' (command, commit, hardware, …). A run
    without a result.json is unfinished and is left out.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f'{workdir}: no such folder; expected the --workdir of a sweep.')
    rows = [_row(path.parent, workdir) for path in sorted(workdir.rglob('result.json')) if path.parent != workdir]
    if not rows:
        raise UserError(f'{workdir}: no finished run below it (METHOD/key=value/…/result.json).')
    return rows


def _row(run: Path, workdir: Path) -> dict:
    parts = run.relative_to(workdir).parts
    settings = {k: _number(v) for k, _, v in (part.partition('=') for part in parts if '=' in part)}
    for key in settings:
        if key in RESERVED + RESULT:
            raise UserError(f'{run}: {key!r} cannot be a setting; reserved: {", ".join({*RESERVED, *RESULT})}.')
    result, config = report.read_json(run / 'result.json'), report.read_json(run / 'config.json')
    return {
        'run': '/'.join(parts),
        'method': '/'.join(part for part in parts if '=' not in part),
        'source': not settings,
        **settings,
        **{key: result[key] for key in RESULT if key in result},
        'majority': _majority(result, run / 'predictions.npz'),
        'facts': {key: config[key] for key in FACTS if key in config},
    }


def _majority(result: dict, predictions: Path) -> float | None:
    """Accuracy of always naming the most frequent class: as the run says, or of the test labels' own."""
    if 'majority' in (result.get('test') or {}):
        return result['test']['majority']
    if not predictions.exists():
        return None
    with np.load(predictions) as arrays:
        label = arrays['label'] if 'label' in arrays else np.zeros((0, 0))
    return float(np.bincount(label.astype(int)).max() / len(label)) if label.ndim == 1 and len(label) else None


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _settings(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in RESERVED + RESULT}


def _sortable(value) -> tuple:
    return (0, value, '') if isinstance(value, (int, float)) else (1, 0, str(value))


def cell(row: dict, tune: str, pair: str) -> tuple:
    """A method and its settings but for the tuned one and the seed, hashable."""
    return row['method'], tuple(sorted((k, v) for k, v in _settings(row).items() if k not in (tune, pair)))


def choose(rows: Iterable[dict], tune: str = 'lr', metric: str = 'accuracy', pair: str = 'seed') -> dict:
    """The value of `tune` with the best mean validation `metric` over seeds, for each cell.

    Only values with the most finished seeds compete: a value whose runs crashed or have not ended is not chosen by
    the luck of those that did. Of equals the middle one is taken, the smaller of two middle ones; a NaN loses. A cell
    with a single value needs no validation. Nothing here reads the test split.

    Returns:
        {cell: value}; the value is None where the runs have no such setting.
    """
    check_metric(metric)
    runs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row.get('source'):
            runs[cell(row, tune, pair)][row.get(tune)].append(row)
    return {key: _best(key, by_value, tune, metric) for key, by_value in runs.items()}


def _best(key: tuple, by_value: dict, tune: str, metric: str):
    if len(by_value) == 1:
        return next(iter(by_value))
    most = max(map(len, by_value.values()))
    means = {}
    for value in sorted((v for v in by_value if len(by_value[v]) == most), key=_sortable):
        values = [_metric(row, 'val', metric) for row in by_value[value]]
        if None in values:
            raise UserError(f'cannot choose {tune} of {_name(key)}: a run has no validation {metric!r} in result.json.')
        means[value] = -np.inf if np.isnan(values).any() else np.mean(values)
    best = [v for v in means if means[v] >= max(means.values()) - 1e-12]
    return best[(len(best) - 1) // 2]


def _metric(row: dict, split: str, metric: str) -> float | None:
    """The metric as a number (NaN for null), or None if the run does not have it."""
    values = row.get(split) or {}
    return None if metric not in values else float('nan') if values[metric] is None else float(values[metric])


def check_metric(metric: str) -> None:
    """Refuses one of which less is better."""
    if metric in metrics.LOWER_IS_BETTER:
        raise UserError(f'cannot compare by {metric!r}: lower is better there. Take accuracy, f1_macro, auroc or map.')


def _name(key: tuple, without: str = '') -> str:
    method, settings = key
    return ', '.join([method] + [f'{k}={v}' for k, v in settings if k != without])


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval by Student's t: t(0.975, n - 1) s / √n; NaN for fewer than two values."""
    from scipy import stats

    values = np.asarray(list(values), np.float64)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float('nan'), float('nan')
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def table(rows, baseline='scratch', across='labels', pair='seed', metric='accuracy', tune='lr') -> list[dict]:
    """A row for each cell with a test result, by `across` and then the baseline first.

    Each has 'method' (with the settings that are not `across`), 'across', the chosen 'tuned' value, 'edge' (it is the
    smallest or largest of several tried), 'n' seeds, 'mean' and 'half' of its 95 % interval, and against the
    baseline: 'pairs', 'difference', 'low', 'high' and 'verdict': 'helps' (the interval lies above 0), 'hurts'
    (below) or 'open' (it contains 0), None where fewer than two pairs are finished or one gave NaN.

    A cell's baseline has the same settings; a baseline that lacks the ones beside `across` serves all cells.
    """
    rows = [row for row in rows if not row.get('source')]
    methods = {row['method'] for row in rows}
    if baseline not in methods:
        raise UserError(f'no finished run of the baseline {baseline!r}: {nearest(baseline, methods)}')
    if missing := [row for row in rows if across not in row]:
        raise UserError(f'{missing[0]["run"]} has no setting {across!r}: {nearest(across, _settings(missing[0]))}')
    chosen, tried, cells = choose(rows, tune, metric, pair), defaultdict(set), defaultdict(dict)
    for row in rows:
        key = cell(row, tune, pair)
        tried[key].add(row.get(tune))
        if row.get(tune) == chosen[key] and (value := _metric(row, 'test', metric)) is not None:
            cells[key][row.get(pair)] = value  # {cell: {seed: test metric}}
    lines = []
    for key, values in cells.items():
        x = dict(key[1])[across]
        reference = cells.get((baseline, key[1])) or cells.get((baseline, ((across, x),))) or {}
        mean, half = interval(values.values())
        edge = len(tried[key]) > 1 and chosen[key] in (min(tried[key], key=_sortable), max(tried[key], key=_sortable))
        line = {'method': _name(key, across), 'across': x, 'tuned': chosen[key], 'edge': edge, 'n': len(values)}
        versus = {} if key[0] == baseline else _versus(values, reference)
        lines.append(line | {'mean': mean, 'half': half} | versus)
    return sorted(lines, key=lambda x: (_sortable(x['across']), 'verdict' in x, x['method']))


def _versus(values: dict, reference: dict) -> dict:
    """The paired difference to the baseline over the seeds that both have."""
    difference, half = interval(values[seed] - reference[seed] for seed in values if seed in reference)
    low, high = difference - half, difference + half
    verdict = None if np.isnan(half) else 'helps' if low > 0 else 'hurts' if high < 0 else 'open'
    pairs = len(values.keys() & reference.keys())
    return {'pairs': pairs, 'difference': difference, 'low': low, 'high': high, 'verdict': verdict}


def write(
    workdir: Path | str,
    *,
    baseline: str = 'scratch',
    across: str = 'labels',
    tune: str = 'lr',
    pair: str = 'seed',
    metric: str = 'accuracy',
    unit: str = 'labels a class',
    title: str = '',
) -> str:
    """Save results.jsonl, RESULTS.md and results.png in `workdir`; return the text for a terminal."""
    workdir, rows = Path(workdir), read(workdir)
    lines = table(rows, baseline, across, pair, metric, tune)
    found = [row['majority'] for row in rows if not row.get('source') and row['majority'] is not None]
    majority = float(np.mean(found)) if found and metric == 'accuracy' else None
    head, *body = grid(lines, baseline, tune, pair, metric, unit)
    said, noted = sentences(lines, baseline, unit), notes(workdir, rows, lines, baseline, tune, pair, metric, majority)
    (workdir / 'results.jsonl').write_text(''.join(json.dumps(metrics.finite(row)) + '\n' for row in rows))
    marked = ['| ' + ' | '.join(line) + ' |' for line in (head, ['---'] * len(head), *body)]
    blocks = [f'# {title or "Comparison"}', *said, '![](results.png)', '\n'.join(marked)]
    blocks.append('\n'.join(f'- {note}' for note in noted) + '\n')
    (workdir / 'RESULTS.md').write_text('\n\n'.join(blocks), encoding='utf-8')
    report.save(report.comparison(lines, f'test {metric}, %', unit, majority, title), workdir / 'results.png')
    widths = [max(map(len, column)) for column in zip(head, *body)]
    aligned = ['  '.join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in (head, *body)]
    alone = ['No interval (±) where fewer than two seeds are finished.'] if any(x['n'] < 2 for x in lines) else []
    said = [textwrap.fill(x, 100, subsequent_indent='  ') for x in (*said, *alone)]
    return '\n'.join([*([title, ''] if title else []), *aligned, '', *said])


def grid(lines: list[dict], baseline: str, tune: str, pair: str, metric: str, unit: str) -> list[list[str]]:
    """The table as text, a heading and a row for each cell: percent, percent points, [95 % interval]."""
    text = [[unit, 'method', f'test {metric}, %', f'minus {baseline}, points', tune, f'{pair}s']]
    for before, line in zip([None, *lines], lines):
        again = before is not None and before['across'] == line['across']
        mean = f'{100 * line["mean"]:.1f}' + ('' if np.isnan(line['half']) else f' ± {100 * line["half"]:.1f}')
        versus = '' if 'verdict' not in line else f'{100 * line["difference"]:+.1f}' if line['pairs'] else '–'
        if line.get('verdict'):
            versus += f' [{100 * line["low"]:.1f}, {100 * line["high"]:.1f}]'
        tuned = '–' if line['tuned'] is None else f'{line["tuned"]}' + '*' * line['edge']
        text.append(['' if again else str(line['across']), line['method'], mean, versus, tuned, str(line['n'])])
    return text


def sentences(lines: list[dict], baseline: str, unit: str) -> list[str]:
    """For each method, in words made of the verdicts: from where to where it helps, hurts, or cannot be told."""
    xs = sorted({line['across'] for line in lines}, key=_sortable)
    cells = defaultdict(dict)
    for line in lines:
        if 'verdict' in line:
            cells[line['method']][line['across']] = line
    said = []
    for method, at in cells.items():
        parts = []
        for verdict, span in groupby(xs, lambda x, at=at: at.get(x, {}).get('verdict')):
            span = list(span)
            where = f'from {span[0]} to {span[-1]}' if len(span) > 1 else f'at {span[0]}'
            if not parts:  # '1 label a class', then '5 labels a class', then numbers alone
                noun, _, rest = unit.partition(' ')
                where += f' {noun.removesuffix("s") if span[-1] == 1 else noun} {rest}'.rstrip()
            if verdict in ('helps', 'hurts'):
                first, *last = [f'{100 * at[x]["difference"]:+.1f}' for x in dict.fromkeys((span[0], span[-1]))]
                ends = ''.join(f', {points} at {span[-1]}' for points in last)
                parts.append(f'{verdict} {where} ({first} points at {span[0]}{ends})')
            elif verdict == 'open':
                parts.append(f'{where} it cannot be told from {baseline}')
            else:
                parts.append(f'{where} too few paired runs are finished (or one gave NaN) to say')
        said.append(f'{method}: {"; ".join(parts)}.')
    return said


def notes(workdir, rows, lines, baseline, tune, pair, metric, majority) -> list[str]:
    """How the numbers came about: what a reader has to know to believe them, or to doubt them."""
    compared, sources = [r for r in rows if not r.get('source')], [r['run'] for r in rows if r.get('source')]
    unfinished = [p for p in workdir.glob('*/**/config.json') if not p.with_name('result.json').exists()]
    said = [
        f"± and [low, high]: 95 % intervals by Student's t over {pair}s; differences to {baseline} are paired. "
        'They are not corrected for the number of comparisons; without one, fewer than two runs are finished.',
        f'{tune} has the best mean validation {metric} over {pair}s, by method and setting (of equals the middle, then '
        'the smaller); the test split played no part. *: at the edge of the values tried, a better one may lie beyond.',
        f'{len(compared)} runs compared, {sum(r.get("seconds") or 0 for r in rows):.0f} s in all; {len(unfinished)} '
        f"unfinished. Sources: {', '.join(sources) or 'none'}. Each run: its folder's config.json and results.jsonl.",
    ]
    if majority is not None:
        said.append(f'Always naming the most frequent class: {100 * majority:.1f} %.')
    return said + facts(row['facts'] for row in rows)


def facts(of: Iterable[dict]) -> list[str]:
    """A sentence for each of FACTS: what it was in all runs, or the few things, or how many."""
    of, said = list(of), []
    for fact in FACTS:
        values = {json.dumps(x[fact], sort_keys=True, ensure_ascii=False).strip('"') for x in of if fact in x}
        if values:
            said.append(
                f'{fact}: ' + ('; '.join(sorted(values)) if len(values) < 4 else f'{len(values)} different ones')
            )
    return said
