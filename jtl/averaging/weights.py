"""Averages of weights: soups, and the line between two.

Legend: n runs of one model with parameters θ_i, N examples, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jtl import metrics, models, predict, run
from jtl.data import Data
from jtl.data.pipeline import stream
from jtl.errors import UserError, nearest
from jtl.evals import Seen, classification, collect
from jtl.models import statistics

PyTree = Any
ALPHAS = tuple(i / 10 for i in range(11))


class Bench(NamedTuple):
    """What candidates are made with and judged by.

    Attributes:
        data: all of them were trained on.
        metric: that judges, one of `jtl.evals.classification`.
        batch_size: of the batches whose statistics a BatchNorm gets.
        seed: draws these batches.
    """

    data: Data
    metric: str
    batch_size: int
    seed: int


class Candidate(NamedTuple):
    """Weights, and how they did: `values` by name, with `logits` and the like in `outputs`."""

    run: run.Run
    values: dict
    outputs: dict
    goodness: float  # more is better; -inf of a NaN


def mean(trees: Sequence[PyTree], weights: Sequence[float]) -> PyTree:
    """Σ_i w_i θ_i / Σ_i w_i, leaf by leaf in float64; of one tree with a weight it is that tree, to the bit."""

    def one(*leaves):
        total = sum(weight * np.asarray(leaf, np.float64) for weight, leaf in zip(weights, leaves))
        return np.asarray(total / math.fsum(weights)).astype(leaves[0].dtype)

    used = [(tree, weight) for tree, weight in zip(trees, weights, strict=True) if weight]
    trees, weights = zip(*used)
    return trees[0] if len(trees) == 1 else jax.tree.map(one, *trees)


def mixed(bench: Bench, runs: Sequence[run.Run], weights: Sequence[float]) -> run.Run:
    """The run with the mean of their parameters, and with the statistics of BatchNorm that belong to these.

    A run that is mixed with nothing stays as it is. What of the statistics is the same in all of them does as well.
    All else in the state is the first one's, and what the runs' methods kept for training does not matter here.
    """
    runs, weights = zip(*((fitted, weight) for fitted, weight in zip(runs, weights, strict=True) if weight))
    if len(runs) == 1:
        return runs[0]
    first, state = runs[0], dict(runs[0].state)
    params, collections = mean([r.params for r in runs], weights), state.get('model', {})
    if moved := statistics.moved([r.state.get('model', {}).get('batch_stats', {}) for r in runs]):
        model = models.build(num_classes=len(first.classes), **first.model)
        batches = shuffled(bench.data, bench.batch_size, bench.seed)
        state['model'] = statistics.recomputed(model, params, collections, batches, moved)
    return first._replace(params=params, state=state)


def shuffled(data: Data, most: int, seed: int) -> Iterator[dict]:
    """One pass over the training data in a random order, not augmented, in batches of nearly one size, `most` at most.

    They are padded to one shape. A short last batch, of one example perhaps, would have statistics of no use.
    """
    where, index = data.parts['train']
    parts = np.array_split(np.random.default_rng(seed).permutation(index), -(-len(index) // most))
    size = len(parts[0])

    def make(k: int) -> dict:
        rows = np.r_[parts[k], np.repeat(parts[k][-1:], size - len(parts[k]))]
        return {**data.inputs[where](rows, None), 'mask': (np.arange(size) < len(parts[k])).astype(np.float32)}

    return stream(make, 0, len(parts), threads=2, workers=0)


# Judging.


def judged(bench: Bench, fitted: run.Run, split: str) -> Candidate:
    """One pass over a split with the weights of a run."""
    outputs = collect(predict.predictor(fitted), bench.data.plain(split))
    found = values(outputs, fitted.classes)
    return Candidate(fitted, found, outputs, goodness(found, bench.metric))


def values(outputs: dict, classes: tuple[str, ...]) -> dict:
    """What `jtl.evals.classification` says of logits and labels."""
    return dict(classification.run(Seen(outputs=outputs, classes=classes, predict=None, batches=None)))


def goodness(found: dict, metric: str) -> float:
    value = float(found[metric])
    return -math.inf if math.isnan(value) else -value if metric in metrics.LOWER_IS_BETTER else value


def check_metric(metric: str, classes: int, multi_label: bool) -> None:
    """Refuses a name that is no scalar of `jtl.evals.classification` for so many classes."""
    label = np.zeros((1, classes) if multi_label else 1, np.int32)
    known = metrics.scalars(values({'logits': np.zeros((1, classes)), 'label': label}, ('',) * classes))
    if metric not in known:
        raise UserError(f'--metric {metric}: unknown for these {classes} classes; {nearest(metric, known)}')


# Choosing.


def greedy(
    bench: Bench, runs: Sequence[run.Run], say: Callable[[str], None]
) -> tuple[list[int], list[Candidate], Candidate]:
    """Greedy soup: from the best run on, each is added if the soup is then no worse on the validation split.

        S ← {θ_1};  for i = 2 … n:  if val(mean(S ∪ {θ_i})) ≥ val(mean(S)):  S ← S ∪ {θ_i},  val(θ_1) ≥ … ≥ val(θ_n)

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", 2022, recipe 1. Of equals the one that is named first comes first.

    Returns:
        Which are in it, in this order; every run judged alone; the soup.
    """
    alone = [judged(bench, fitted, 'val') for fitted in runs]
    order = sorted(range(len(runs)), key=lambda i: -alone[i].goodness)
    kept, soup = order[:1], alone[order[0]]
    for i in order[1:]:
        tried = judged(bench, mixed(bench, [runs[k] for k in (*kept, i)], [1] * (len(kept) + 1)), 'val')
        better = tried.goodness >= soup.goodness and tried.goodness > -math.inf
        number = f'{float(tried.values[bench.metric]):.4f} against {float(soup.values[bench.metric]):.4f}'
        say(f'{runs[i].path}: {"kept" if better else "left out"}: with it the validation {bench.metric} is {number}')
        if better:
            kept, soup = [*kept, i], tried
    return kept, alone, soup


def curve(bench: Bench, a: run.Run, b: run.Run) -> tuple[list[dict], int, Candidate]:
    """WiSE-FT: the line between two runs, (1 - α) θ_a + α θ_b for α = 0, 0.1 … 1, on the validation split.

    Wortsman et al., "Robust fine-tuning of zero-shot models", 2022. The ends are the runs themselves. Of equal values
    that nearest to α = 0.5 is chosen, which is what the paper takes where there is nothing to choose by; then the
    smaller.

    Returns:
        The scalars by α; which of them is chosen; those weights.
    """
    rows, best, chosen = [], None, 0
    for i, alpha in enumerate(ALPHAS):
        found = judged(bench, mixed(bench, (b, a), (alpha, 1 - alpha)), 'val')
        rows.append(metrics.scalars(found.values))
        rank = (found.goodness, -abs(i - 5), -i)
        if best is None or rank > best[0]:
            best, chosen = (rank, found), i
    return rows, chosen, best[1]
