"""From numbers to a ranking: which source comes first, by how much, and why. Pure: no data, no weights, no clock.

A choice that is made and judged on the same examples looks better than it is. So hyperparameters and layers are chosen
for each tenth of the examples on the other nine (`nested`), and what is compared between sources is how right each
example came out, pair by pair.

Legend: N examples, C candidates (layers × hyperparameters), S sources.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jtl import paired

FOLDS = 10
SCORES = {  # as people write them; all of them are better when higher
    'knn': 'k-NN',
    'logme': 'LogME',
    'h_score': 'H-score',
    'h_score_regularised': 'regularised H-score',
    'leep': 'LEEP',
    'nce': 'NCE',
}


CHOICES = {
    'fine-tuning': 'more than the ridge',
    'probe': 'less than the ridge',
    'either': 'which the ridge may match',
}


def folds(N: int, seed: int) -> np.ndarray:
    """Which of ten parts of nearly equal size each example is in, at random: [N]."""
    return np.random.default_rng(seed).permutation(N) % FOLDS


def nested(hits: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """How right each example is by the candidate that does best on the other folds, [N]. Of equals the first counts.

    The hits are leave-one-out or otherwise out of sample, so each candidate's are honest, and only choosing among them
    has to be held apart. A plain maximum over candidates is too high by what luck gives the luckiest of them.

    Args:
        hits: [C, N], 0 or 1.
        fold: [N].
    """
    found = np.zeros(hits.shape[1])
    for f in np.unique(fold):
        inside = fold == f
        outside = ~inside if (~inside).any() else inside
        found[inside] = hits[hits[:, outside].sum(1).argmax()][inside]
    return found


def interval(hits: np.ndarray, confidence: float) -> dict:
    """The mean of [N] and its percentile bootstrap interval over examples."""
    low, high = paired.bootstrap_difference(hits[None], np.zeros_like(hits[None]), confidence=confidence)
    return {'value': float(hits.mean()), 'low': low, 'high': high}


def difference(a: np.ndarray, b: np.ndarray, confidence: float) -> dict:
    """mean(a - b) of the same examples, [N] each, its interval, and whether a is `helped`, `hurt` or cannot be told."""
    found = paired.versus(a[None], b[None], confidence)
    return {key: found[key] for key in ('difference', 'low', 'high', 'verdict')}


def rank(hits: Mapping[str, np.ndarray], confidence: float) -> list[dict]:
    """Sources by mean, the best first, each with what the first is to it. Equals stay in the order they came in.

    Args:
        hits: by source, how right each of the same N examples was.

    Returns:
        A row a source: `source`, `value`, and `behind`: the `difference` of the first to it; None of the first.
    """
    order = sorted(hits, key=lambda source: -hits[source].mean())
    first = hits[order[0]]
    return [
        {
            'source': source,
            'value': float(hits[source].mean()),
            'behind': None if source == order[0] else difference(first, hits[source], confidence),
        }
        for source in order
    ]


def choice(found: Mapping) -> str:
    """The method that the numbers speak for: `probe`, `fine-tuning`, or `either` if they do not say.

    Fine-tuning if it is predicted above the probe by the whole of its interval, the probe if below.
    """
    predicted, ridge = found['predicted'], found['ridge']['value']
    if predicted.get('value') is None:
        return 'either'
    return 'fine-tuning' if predicted['low'] > ridge else 'probe' if predicted['high'] < ridge else 'either'


def reasons(ranking: Sequence[Mapping], sources: Mapping[str, Mapping], names: Mapping[str, str]) -> list[str]:
    """Sentences: what to take and by how much, which block, what other scores say, what fine-tuning would cost.

    Args:
        ranking: by `rank`.
        sources: by source, as `advice.json` has them.
        names: by source, what it is called in a sentence.
    """
    first = ranking[0]['source']
    found = sources[first]
    said = [f'Take {names[first]}, {found["best"]}: ridge {between(found["ridge"])}{_ahead(ranking, names)}.']
    better = found['knn']['value'] > found['ridge']['value']
    said.append(_block(found) + (f' k-NN does better than ridge: {between(found["knn"])}.' if better else ''))
    if len(ranking) > 1 and (others := _others(sources, names, first)):
        said.append(others)
    said.append(_tuning(found))
    return said


def between(x: Mapping) -> str:
    """`0.91 [0.89, 0.93]`."""
    return f'{x["value"]:.3f} [{x["low"]:.3f}, {x["high"]:.3f}]'


def _points(x: Mapping) -> str:
    return f'{100 * x["difference"]:+.1f} points [{100 * x["low"]:.1f}, {100 * x["high"]:.1f}]'


def _ahead(ranking: Sequence[Mapping], names: Mapping[str, str]) -> str:
    """Whom the first beats, and whom it cannot be told from; of the beaten the nearest."""
    if len(ranking) == 1:
        return ', the only source'
    open_ = [row for row in ranking[1:] if row['behind']['verdict'] != paired.HELPED]
    beaten = [row for row in ranking[1:] if row['behind']['verdict'] == paired.HELPED]
    said = ''
    if open_:
        listed = ', '.join(f'{names[row["source"]]} ({_points(row["behind"])})' for row in open_)
        said += f'; it cannot be told from {listed}'
    if beaten:
        said += f'; ahead of {names[beaten[0]["source"]]} by {_points(beaten[0]["behind"])[1:]}'
    if len(beaten) > 1:
        said += f' and of {len(beaten) - 1} more'
    return said


def _block(found: Mapping) -> str:
    layers = {layer['name']: layer for layer in found['layers']}
    last = found['layers'][-1]['name']
    if len(layers) == 1:
        return f'Only {last} was looked at.'
    if found['best'] == last:
        return f'No block does better than the {last}.'
    gain = layers[found['best']]['gain']
    sure = '' if gain['verdict'] == paired.HELPED else ', which may be chance'
    own, features = (layers[name]['ridge']['value'] for name in (found['best'], last))
    picked = f'picked among {len(layers)}, it will do a little worse'
    return (
        f'By itself {found["best"]} has {own:.3f}, {_points(gain)} against the {last} ({features:.3f}){sure}; {picked}.'
    )


def _others(sources: Mapping[str, Mapping], names: Mapping[str, str], first: str) -> str:
    """Which scores name the same source first, and whom the others name; only scores that all sources have."""
    agree, differ = [], {}
    for score, title in SCORES.items():
        values = {source: value_of(found, score) for source, found in sources.items()}
        if None in values.values():
            continue
        best = max(values.values())
        tops = [source for source, value in values.items() if np.isclose(value, best, rtol=1e-6)]
        if len(tops) > 1:  # as the H-score of all with more features than examples
            continue
        if tops == [first]:
            agree.append(title)
        else:
            differ.setdefault(names[tops[0]], []).append(title)
    said = [f'{_put(agree)} it first as well'] if agree else []
    said += [f'{_put(titles)} {name} first' for name, titles in differ.items()]
    return '; '.join(said) + '.' if said else ''


def value_of(found: Mapping, score: str) -> float | None:
    """A score of a source: k-NN over all layers, the others of the features; None where it has none."""
    x = found['knn'] if score == 'knn' else (found['scores'] or {}).get(score)
    return None if x is None else x['value']


def _tuning(found: Mapping) -> str:
    predicted, cost = found['predicted'], found['cost']
    if predicted.get('value') is None:
        said = f'Full fine-tuning is not predicted: {predicted["why"]}'
    else:
        runs = f'by real runs on {predicted["data_sets"]} data sets'
        said = f'Full fine-tuning is predicted at {between(predicted)} {runs}, {CHOICES[choice(found)]}'
    if cost:
        times = cost['total']['full'] / cost['total']['ridge']
        said += f'; {cost["epochs"]:.3g} epochs of it cost {times:.0f} × as much as the pass and the ridge'
        said += f' ({seconds(cost["total"]["full"])} against {seconds(cost["total"]["ridge"])})'
    return f'{said}.'


def seconds(s: float) -> str:
    """For people: `0.4 s`, `12 s`, `3.4 min`, `2.1 h`."""
    if s < 100:
        return f'{s:.1g} s' if s < 1 else f'{s:.1f} s' if s < 10 else f'{s:.0f} s'
    return f'{s / 60:.1f} min' if s < 3600 else f'{s / 3600:.1f} h'


def table(found: Mapping) -> str:
    """`advice.json`'s ranking as text, a row a source."""
    head = ('', 'source', 'block', 'ridge', 'k-NN', 'LogME', 'reg. H-score', 'LEEP', 'NCE', 'fine-tuned', 'step')
    lines = [head, *(_row(place, found['sources'][row['source']]) for place, row in enumerate(found['ranking'], 1))]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ['  '.join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines]
    return '\n'.join([*text, '', *_legend(found)])


def _row(place: int, one: Mapping) -> tuple[str, ...]:
    score = lambda name: '–' if one['scores'][name] is None else f'{one["scores"][name]["value"]:.3f}'
    predicted = '–' if one['predicted']['value'] is None else between(one['predicted'])
    step = '–' if one['cost'] is None else f'{1000 * one["cost"]["full"]:.0f} ms'
    names = ('logme', 'h_score_regularised', 'leep', 'nce')
    own, knn = between(one['ridge']), f'{one["knn"]["value"]:.3f}'
    return str(place), one['name'], one['best'], own, knn, *map(score, names), predicted, step


def _legend(found: Mapping) -> list[str]:
    data = found['data']
    used = f'{data["used"]:,}' + ('' if data['used'] == data['examples'] else f' of {data["examples"]:,}')
    return [
        f'Leave-one-out accuracy on {used} training and validation examples of {len(data["classes"])} classes, '
        f'{100 * found["confidence"]:g} % intervals; block, λ and k chosen on other examples.'
    ]


def _put(titles: Sequence[str]) -> str:
    return f'{titles[0]} puts' if len(titles) == 1 else f'{", ".join(titles[:-1])} and {titles[-1]} put'
