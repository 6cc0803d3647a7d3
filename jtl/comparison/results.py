"""What the runs of a comparison show: chosen on validation, told on test, paired with the baseline.

The main interval is Student's t over the paired differences of the seeds, as in `jtl.compare`: a seed stands for the
labels drawn, the initialisation and the order, it serves any metric, and few seeds make it wide. It holds the test
examples fixed. For accuracy, a second one resamples seeds and examples (`jtl.paired.bootstrap_difference`).

Shapes: S seeds, N examples, K classes.
"""

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jtl import compare, files, report
from jtl.comparison import work
from jtl.comparison.layout import Request, Run, points, settings
from jtl.errors import UserError
from jtl.paired import right, versus

CONFIDENCE = 0.95
RESULT = ('val', 'test', 'params', 'seconds', 'compile_seconds')  # of result.json


def rows(runs: Iterable[Run], workdir: Path, metric: str) -> list[dict]:
    """One for each run that ended, as `jtl.compare` takes them; one that diverged has NaN."""
    found = []
    for each in runs:
        folder = workdir / each.name
        row = {'run': each.name, 'method': each.method, 'labels': each.labels, 'point': each.point, 'seed': each.seed}
        if (folder / 'result.json').exists():
            result = files.read_json(folder / 'result.json')
            if lacking := [key for key in ('test', 'params', 'seconds') if not result.get(key)]:
                raise UserError(
                    f'{folder / "result.json"}: is not as it was written: it has no {", ".join(lacking)}. Delete the '
                    'folder of that run to have it done again.'
                )
            found.append(row | {key: result.get(key) for key in RESULT})
        elif (folder / work.DIVERGED).exists():
            found.append(row | {split: {metric: float('nan')} for split in ('val', 'test')})
    return found


def choose(rows: Iterable[Mapping], metric: str) -> dict[tuple, int]:
    """The point of the grid with the best mean validation metric over seeds, by `(method, labels)`.

    The test split is not among what is passed on, so it cannot be looked at.
    """
    blind = [{key: value for key, value in row.items() if key != 'test'} for row in rows]
    chosen = compare.choose(blind, tune='point', metric=metric)
    return {(method, dict(key)['labels']): point for (method, key), point in chosen.items()}


def table(
    request: Request, first: list[Run], rest: list[Run], chosen: Mapping[tuple, int], workdir: Path
) -> list[dict]:
    """A line for each method and number of labels: what results.jsonl holds.

    Beside the keys of `jtl.compare.table`: 'settings' that were chosen, of 'grid' (each point with its mean validation
    metric and how many runs 'diverged'), 'by_seed' {seed: test metric}, 'trained' and 'total' parameters, 'bytes' and
    'flops' of a step, the median of 'seconds' without
    compiling, and for accuracy 'resampled', the interval over seeds and examples.
    """
    tried = rows(first, workdir, request.metric)
    at = {each.name: each for each in (*first, *rest) if chosen[each.method, each.labels] == each.point}
    told = rows(at.values(), workdir, request.metric)
    lines = compare.table(told, request.baseline, 'labels', 'seed', request.metric, 'point')
    hits = _hits(told, workdir) if request.metric == 'accuracy' else {}
    for line in lines:
        cell = line['method'], line['across']
        runs = [row for row in told if (row['method'], row['labels']) == cell]
        grid = points(request.methods[line['method']], request.config)
        line['settings'] = ', '.join(settings(grid[chosen[cell]]))
        line['grid'] = [_point(i, point, tried, cell, request.metric) for i, point in enumerate(grid)]
        line['edge'] = _at_edge(grid, chosen[cell])
        line['by_seed'] = {row['seed']: row['test'][request.metric] for row in runs}
        line['diverged'] = sum(row.get('params') is None for row in runs)
        ended = [row for row in runs if row.get('params')]
        params = ended[0]['params'] if ended else {}
        line |= {'trained': params.get('trainable'), 'total': params.get('total')}
        stepping = [row['seconds'] - (row['compile_seconds'] or 0) for row in ended]
        line['seconds'] = float(np.median(stepping)) if ended else None
        step = files.read_json(workdir / step_file(request, at[runs[0]['run']]))
        line |= {key: step.get(key) for key in ('bytes', 'flops')}
        line['resampled'] = _resampled(hits.get(cell), hits.get((request.baseline, line['across'])), line)
        del line['tuned']
    return lines


def step_file(request: Request, each: Run) -> str:
    """Where what a step of this run needs is kept: the same for all rates, seeds and numbers of labels."""
    point = points(request.methods[each.method], request.config)[each.point]
    own = settings({key: value for key, value in point.items() if key != 'optim.lr'})
    return '/'.join([each.method, *own, work.STEP])


def facts(runs: Iterable[Run], workdir: Path) -> list[dict]:
    """The command, and of config.json of every run: commit, hardware, versions."""
    command = {'command': report.read_json(workdir / 'comparison.json').get('command')}
    configs = [report.read_json(workdir / each.name / 'config.json') for each in runs]
    return [{key: config[key] for key in compare.FACTS if key in config} | command for config in configs]


def _point(i: int, point: Mapping, tried: list[dict], cell: tuple, metric: str) -> dict:
    runs = [row for row in tried if (row['method'], row['labels'], row['point']) == (*cell, i)]
    values = [(row.get('val') or {}).get(metric) for row in runs]
    mean = None if not values or None in values else float(np.mean(values))
    diverged = sum(row.get('params') is None for row in runs)
    return {'settings': ', '.join(settings(point)), 'val': mean, 'seeds': len(runs), 'diverged': diverged}


def _at_edge(grid: list[dict], chosen: int) -> bool:
    """Whether the rate is the smallest or largest of several."""
    rates = [point['optim.lr'] for point in grid]
    return len(set(rates)) > 1 and rates[chosen] in (min(rates), max(rates))


def _hits(told: list[dict], workdir: Path) -> dict[tuple, dict]:
    """How right each finished run was on each example, `{cell: {seed: [N]}}`.

    Raises:
        UserError: two runs were not tested on the same examples.
    """
    hits, first = defaultdict(dict), None
    for row in told:
        if not row.get('params'):
            continue
        path = workdir / row['run'] / 'predictions.npz'
        try:
            with np.load(path) as found:
                index, label = found['index'], found['label']
                hit = right(found['logits'], label)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise UserError(
                f'{path}: cannot be read ({e}). Delete the folder of that run to have it done again.'
            ) from e
        first = first or (index, label)
        if not (np.array_equal(index, first[0]) and np.array_equal(label, first[1])):
            raise UserError(f'{path}: this run was not tested on the examples of the others.')
        hits[row['method'], row['labels']][row['seed']] = hit
    return hits


def _resampled(a: Mapping | None, b: Mapping | None, line: Mapping) -> dict | None:
    """The difference over seeds and examples, of the seeds that both have; None of the baseline itself."""
    if 'verdict' not in line or not a or not b or line['diverged']:
        return None
    seeds = sorted(a.keys() & b.keys())
    return versus(np.stack([a[s] for s in seeds]), np.stack([b[s] for s in seeds]), CONFIDENCE) if seeds else None
