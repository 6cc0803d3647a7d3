"""Was advice right? Scores of `jtl advise` beside the accuracy that fine-tuning really came to.

    python experiments/advice.py --runs RUNS --advice ADVICE ADVICE… [--calibration jtl/probe/calibration.json]
    python experiments/advice.py --runs RUNS --advice ADVICE… --readme        # the table, into README.md

RUNS holds plain, finished runs, RUNS/DATA/SOURCE/all/…; only those below a folder `all` are read, so that others may
lie beside. ADVICE is the `--workdir` of `jtl advise`, or a folder of several. A run belongs to a data set and a source
by what its config says: the name of the data, and the hash of the weights. Of several learning rates the one with the
best mean validation accuracy over seeds is taken; its test accuracies are averaged over seeds.

What is printed for each score: how well it orders the sources of a data set, Spearman's ρ and Kendall's τ-b with the
real accuracy, on each data set, and over all: ρ of ranks within data sets, τ-b of pairs within data sets. Intervals,
95 %, are over test examples, and over all also over data sets; not over the choice of sources.

Legend: S sources, M test examples, B resamples.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from jtl import paired
from jtl.errors import UserError
from jtl.probe import calibration

sys.path.insert(0, str(Path(__file__).parent))
import readme  # noqa: E402

SCORES = {  # title: a source of advice.json -> its score, or None
    'ridge, best block': lambda one: one['ridge'],
    'ridge, features': lambda one: one['layers'][-1]['ridge'],
    'k-NN, best block': lambda one: one['knn'],
    'LogME': lambda one: one['scores']['logme'],
    'LogME, best block': lambda one: {'value': max(layer['logme'] for layer in one['layers'])},
    'H-score': lambda one: one['scores']['h_score'],
    'H-score, regularised': lambda one: one['scores']['h_score_regularised'],
    'LEEP': lambda one: one['scores']['leep'],
    'NCE': lambda one: one['scores']['nce'],
}
RESAMPLES = 1000


class Case(NamedTuple):
    """A data set: its sources' scores, and what fine-tuning came to.

    Attributes:
        names: S, of sources.
        scores: by title, [S], NaN where a source has none.
        right: [S, M], how right each source's runs were on each test example, means over seeds.
        rows: S rows for `calibration.fit`.
    """

    data: str
    names: tuple[str, ...]
    scores: dict[str, np.ndarray]
    right: np.ndarray
    rows: list[dict]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=Path, required=True, metavar='DIR')
    parser.add_argument('--advice', type=Path, required=True, nargs='+', metavar='DIR')
    parser.add_argument('--method', default='all', help='the folder of fine-tuned runs (default: all)')
    parser.add_argument('--calibration', type=Path, metavar='FILE', help='write the calibration of predictions here')
    parser.add_argument('--readme', action='store_true', help='put the table into README.md')
    args = parser.parse_args(argv)
    try:
        cases = read(args.runs, args.advice, args.method)
        text = table(cases)
        print(text)
        if args.calibration:
            args.calibration.write_text(json.dumps(calibrated(cases), indent=1, ensure_ascii=False) + '\n')
            print(f'\n{args.calibration}: written.')
        if args.readme:
            file = readme.ROOT / 'README.md'
            file.write_text(readme.between(file.read_text(encoding='utf-8'), 'advice', text), encoding='utf-8')
    except UserError as e:
        print(f'advice: {e}', file=sys.stderr)
        return 2
    return 0


# Reading.


def read(runs: Path, advice: Sequence[Path], method: str = 'all') -> list[Case]:
    """A case for each advice with two finished sources or more; what does not match is said on stderr."""
    truth, cases = real(runs, method), []
    files = [
        file for folder in advice for file in sorted({*folder.glob('advice.json'), *folder.rglob('*/advice.json')})
    ]
    for file in files:
        found = readme.read(file)
        data = named(found['asked']['set']['data'])
        here = {uri: truth.get((data, one['weights'])) for uri, one in found['sources'].items()}
        for uri in (uri for uri, right in here.items() if right is None):
            print(f'{file}: no finished run of {uri} on {data}; left out.', file=sys.stderr)
        kept = [uri for uri, right in here.items() if right is not None]
        if len(kept) < 2:
            print(f'{file}: fewer than two sources with finished runs; left out.', file=sys.stderr)
            continue
        if len({here[uri].shape for uri in kept}) > 1:
            raise UserError(f'{file}: the runs of its sources were tested on different examples.')
        cases.append(case(data, found, kept, np.stack([here[uri] for uri in kept])))
    if not cases:
        raise UserError(f'no advice with two finished runs of `{method}` below {runs}.')
    return cases


def real(runs: Path, method: str) -> dict[tuple[str, str], np.ndarray]:
    """`{(data, hash of weights): [M]}`, at the learning rate that validation chose."""
    found = defaultdict(lambda: defaultdict(list))
    for file in sorted(runs.rglob('result.json')):
        if method not in file.parent.relative_to(runs).parts:
            continue
        record, result = readme.read(file.parent / 'config.json'), readme.read(file)
        if not record.get('weights') or 'test' not in result:
            continue
        config = record['config']
        with np.load(file.parent / 'predictions.npz') as arrays:
            right = paired.right(arrays['logits'], arrays['label'])
        key = named(config['data']), record['weights']
        value = (result.get('val') or {}).get('accuracy')
        found[key][config['optim'].get('lr')].append((value, right))
    return {key: _chosen(key, by_rate) for key, by_rate in found.items()}


def named(data: Mapping) -> str:
    """A data set: the end of its URI, and how many labels of it."""
    few = data.get('labels_per_class')
    return readme.last(data['name']) + (f', {few} a class' if few else '')


def _chosen(key: tuple, by_rate: Mapping[float, list]) -> np.ndarray:
    if len(by_rate) > 1 and any(value is None for runs in by_rate.values() for value, _ in runs):
        raise UserError(f'{key[0]}: several learning rates, and no validation accuracy to choose one by.')
    best = max(by_rate, key=lambda lr: np.mean([value for value, _ in by_rate[lr]]) if len(by_rate) > 1 else 0)
    return np.mean([right for _, right in by_rate[best]], 0)


def case(data: str, found: Mapping, kept: Sequence[str], right: np.ndarray) -> Case:
    sources = [found['sources'][uri] for uri in kept]
    number = lambda x: float('nan') if x is None else round(x['value'], 9)  # equals but for rounding are equals
    scores = {title: np.array([number(of(one)) for one in sources]) for title, of in SCORES.items()}
    about = {'data': data, 'examples': found['data']['examples'], 'classes': len(found['data']['classes'])}
    rows = [
        about
        | {'source': one['name'], 'ridge': one['ridge']['value'], 'accuracy': float(r.mean()), 'kind': one['kind']}
        for one, r in zip(sources, right)
    ]
    return Case(data, tuple(one['name'] for one in sources), scores, right, rows)


# Correlations.


def spearman(score: np.ndarray, truth: np.ndarray) -> float:
    """ρ: Pearson's correlation of ranks, of equals the mean rank; NaN where all are equal."""
    return pooled_spearman([score], [truth])


def pooled_spearman(scores: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The correlation of ranks within each data set, centred there, and of length 1 between the worst and the best."""
    scaled = lambda x: (stats.rankdata(x) - (len(x) + 1) / 2) / max(len(x) - 1, 1)
    a, b = (np.concatenate([scaled(x) for x in some]) for some in (scores, truths))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float('nan')


def pooled_kendall(scores: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """τ-b over pairs of sources of the same data set: (agree - differ) / √(pairs not tied in one · in the other)."""
    product, a, b = 0.0, 0.0, 0.0
    for score, truth in zip(scores, truths):
        x, y = (np.sign(v[:, None] - v[None]) for v in (score, truth))
        product, a, b = product + (x * y).sum(), a + (x * x).sum(), b + (y * y).sum()
    return float(product / np.sqrt(a * b)) if a * b > 0 else float('nan')


def intervals(cases: Sequence[Case], title: str, seed: int = 0) -> dict[str, dict]:
    """`{data set: {'spearman': (value, low, high), 'kendall': …}}`, and of all of them under `all`."""
    cases = [one for one in cases if np.isfinite(one.scores[title]).sum() > 1]
    rng, scores, truth, drawn, found = np.random.default_rng(seed), [], [], [], {}
    for one in cases:
        has = np.isfinite(one.scores[title])
        right, M = one.right[has], one.right.shape[1]
        scores.append(one.scores[title][has])
        truth.append(right.mean(1))
        drawn.append(rng.multinomial(M, np.full(M, 1 / M), RESAMPLES) @ right.T / M)  # [B, S]
    for measure, of in (('spearman', pooled_spearman), ('kendall', pooled_kendall)):
        for i, one in enumerate(cases):
            resampled = [of([scores[i]], [row]) for row in drawn[i]]
            found.setdefault(one.data, {})[measure] = of([scores[i]], [truth[i]]), *_ends(resampled)
        if len(cases) > 1:
            resampled = []
            for b in range(RESAMPLES):
                some = rng.integers(len(cases), size=len(cases))
                resampled.append(of([scores[i] for i in some], [drawn[i][b] for i in some]))
            found.setdefault('all', {})[measure] = of(scores, truth), *_ends(resampled)
    return found


def _ends(values: Sequence[float]) -> tuple[float, float]:
    values = np.asarray(values)[np.isfinite(values)]
    return tuple(map(float, np.quantile(values, [0.025, 0.975]))) if len(values) else (float('nan'),) * 2


# Writing.


def table(cases: Sequence[Case]) -> str:
    """Markdown: what came out by data set and source, then a row a score."""
    rows = [['data', 'classes', 'examples', 'source', 'ridge, %', 'fine-tuned, test, %']]
    for one in cases:
        for row in sorted(one.rows, key=lambda row: -row['accuracy']):
            cells = [row['data'], str(row['classes']), f'{row["examples"]:,}', row['source']]
            rows.append([*cells, f'{100 * row["ridge"]:.1f}', f'{100 * row["accuracy"]:.1f}'])
    names = [one.data for one in cases]
    head = ['score', *(f'{name}: ρ' for name in names)]
    head += ['all: ρ [95 %]', 'all: τ-b [95 %]'] if len(cases) > 1 else [f'{names[0]}: τ-b']
    lines = [head]
    for title in SCORES:
        found = intervals(cases, title)
        cells = [_cell(found.get(name, {}).get('spearman')) for name in names]
        last = 'all' if len(cases) > 1 else names[0]
        wide = [_cell(found.get(last, {}).get(m)) for m in (('spearman', 'kendall') if last == 'all' else ('kendall',))]
        fewer = [str(int(np.isfinite(one.scores[title]).sum())) for one in cases]
        whole = all(np.isfinite(one.scores[title]).all() for one in cases)
        lines.append([title if whole else f'{title} (of {", ".join(dict.fromkeys(fewer))} sources)', *cells, *wide])
    said = (
        'ρ: Spearman, τ-b: Kendall, of a score with the test accuracy of full fine-tuning, over the sources of a data '
        'set; all: within data sets. Intervals are by bootstrap over test examples, and over data sets for all; they '
        f'say nothing about other sources. Sources a data set: {", ".join(str(len(one.names)) for one in cases)}.'
    )
    return '\n\n'.join([_markdown(rows), _markdown(lines), said])


def calibrated(cases: Sequence[Case]) -> dict:
    """What `jtl/probe/calibration.json` says."""
    kinds = {row['kind'] for one in cases for row in one.rows}
    if len(kinds) > 1:
        raise UserError(f'calibration: examples of several kinds ({", ".join(sorted(kinds))}); give --advice of one.')
    rows = [row for one in cases for row in one.rows]
    return calibration.fit(rows) | {'kind': kinds.pop(), 'rows': rows}


def _cell(x: tuple[float, float, float] | None) -> str:
    if x is None or not np.isfinite(x[0]):
        return '–'
    return f'{x[0]:+.2f} [{x[1]:+.2f}, {x[2]:+.2f}]'


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[readme.escape(cell) for cell in row] for row in rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (head, ['---'] * len(head), *body))


if __name__ == '__main__':
    sys.exit(main())
