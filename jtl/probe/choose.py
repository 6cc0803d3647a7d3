"""Which head, on which layer: many are tried, examples that they have not seen choose, and the test is read once.

    rows that learn and judge -> candidates -> best -> refit on all of them -> measured on the test split

Legend: N examples to choose with, M test examples, D features, K classes, H settings, L layers, B resamples.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtl.errors import UserError, nearest
from jtl.evals import Seen, classification
from jtl.paired import right
from jtl.probe import bootstrap
from jtl.probe.folds import Division
from jtl.probe.heads import Linear
from jtl.probe.kinds import DESCENT, SETTINGS, Head, fit, obstacle

METRICS = ('accuracy', 'f1_macro', 'recall_macro', 'auroc', 'map')  # which no scale of the scores changes
JOINED = 'joined'
TEMPERATURES = np.geomspace(1e-3, 1e3, 241)  # a step is 6 %


class Candidate(NamedTuple):
    """A head that was tried, or could not be.

    Attributes:
        layer, head, setting: what it is; see `jtl.probe.kinds`.
        value: of the metric, on examples that it had not seen; NaN if there is none.
        seconds: of fitting and scoring, with its share of what settings do together.
        reason: why there is none.
    """

    layer: str
    head: str
    setting: dict[str, Any]
    value: float
    seconds: float
    reason: str = ''


class Probe(NamedTuple):
    """A candidate fitted to all examples: to score new ones."""

    candidate: Candidate
    head: Head

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Features of its layer [M, D] -> [M, K]."""
        return self.head.scores(x)[0]


def candidates(
    x: Mapping[str, np.ndarray],
    y: np.ndarray,
    classes: Sequence[str],
    divisions: Sequence[Division],
    heads: Sequence[str] = tuple(SETTINGS),
    *,
    metric: str = 'accuracy',
    weights: str | Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
    """All heads on all layers with all settings, the simplest first: by kind, then by layer as given, then by setting.

    Args:
        x: features [N, D] by layer, of training and validation examples; of equals, the first is taken.
        y: labels [N], or several of each [N, K] as zeros and ones.
        classes: K names.
        divisions: see `jtl.probe.folds.divisions`. Of several, the metric is of what all judge together.
        heads: kinds of them.
        metric: of `METRICS`. Of several labels an example, `accuracy` is the share of right decisions.
        weights: of classes; see `heads.class_weights`.
        say: is told which kind is tried.

    Raises:
        UserError: an unknown kind of head, a metric that is unknown or makes no sense here.
    """
    for name, value, known in (
        ('head', set(heads) - set(SETTINGS), SETTINGS),
        ('metric', {metric} - {*METRICS}, METRICS),
    ):
        if value:
            raise UserError(f'unknown {name} {min(value)!r}: {nearest(min(value), known)}')
    judge = functools.partial(_judged, y=y, divisions=divisions, classes=classes, metric=metric)
    judge(divisions[0][1], np.zeros((len(divisions[0][1]), len(classes)), np.float32))  # an error now rather than later
    twins, found = _twins(x), []
    for kind in [kind for kind in SETTINGS if kind in heads]:
        say(kind)
        able: dict[str, list] = {}
        refused = []
        for layer, values in x.items():
            for setting in SETTINGS[kind]:
                least = min((learn for learn, _ in divisions), key=len)
                why = f'the same as {twins[layer]}' if layer in twins else None
                why = why or obstacle(kind, setting, y[least], values.shape[1], len(classes))
                if why:
                    refused.append(Candidate(layer, kind, dict(setting), math.nan, 0.0, why))
                else:
                    able.setdefault(layer, []).append(dict(setting))
        for layers in _together(kind, able):
            found += _tried(kind, layers, able, x, y, classes, divisions, weights, judge)
        found += refused
    return found


def ends(widths: Mapping[str, int]) -> list[str]:
    """The last layer of each width, to be joined: what is new at each stage of a network, without what repeats it.

    Args:
        widths: of the layers, from the input to the features.
    """
    last = {width: layer for layer, width in widths.items()}
    return [layer for layer in widths if layer in last.values()]


def join(x: Mapping[str, np.ndarray], layers: Sequence[str]) -> np.ndarray:
    """[N, D] each -> [N, ΣD]."""
    return np.concatenate([x[layer] for layer in layers], 1)


def best(found: Sequence[Candidate], heads: Sequence[str] | None = None, layer: str | None = None) -> Candidate:
    """The one with the highest value, of equals the first; of some kinds or one layer only, if these are given.

    Raises:
        UserError: there is none, with the reasons.
    """
    asked = [c for c in found if (heads is None or c.head in heads) and layer in (None, c.layer)]
    able = [c for c in asked if not math.isnan(c.value)]
    if not able:
        why = list(dict.fromkeys(f'{c.head}: {c.reason or "no value"}' for c in asked))
        raise UserError('no head could be fitted.' + ''.join(f'\n  {line}' for line in why[:8]))
    return max(able, key=lambda c: c.value)


def refit(
    of: Candidate,
    x: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    weights: str | Sequence[float] | None = None,
) -> Probe:
    """The candidate with its setting on all examples [N, D] that chose it: judges are worth learning from, too."""
    return Probe(of, fit(of.head, [x], y, classes, [of.setting], weights)[0])


def held_out(
    of: Candidate,
    x: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    divisions: Sequence[Division],
    weights: str | Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`(rows [R], scores [R, K])`: what a candidate says of the examples that judge it."""
    rows, scores = _scored(of.head, [x], y, classes, [of.setting], divisions, weights)
    return rows, scores[0][0]


def temperature(scores: np.ndarray, y: np.ndarray) -> float:
    """The factor that makes scores logits: with the least cross-entropy, of examples that the head has not seen.

    Guo et al., "On Calibration of Modern Neural Networks", 2017. Decisions stay as they are. One more example is
    counted, as wrong: where all are right no factor would be too large, and no loss would have a gradient left.

    Args:
        scores: [R, K]. y: [R], or [R, K] of zeros and ones, whose cross-entropy is a sigmoid's each.
    """
    scores, y = _with_one_wrong(scores, y)
    losses = [dict(classification.run(_seen(factor * scores, y, scores.shape[1])))['loss'] for factor in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def _with_one_wrong(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held-out scores [R, K] and labels, and one more: the middle one by its margin, with the runner-up for its label.

    Where all are right no factor is too large. Of several labels, the opposite of all its decisions is its label.
    """
    if y.ndim == 2:
        margin, wrong = np.abs(scores).mean(1), scores <= 0
    else:
        order = np.argsort(scores, 1)
        margin, wrong = np.ptp(np.take_along_axis(scores, order[:, -2:], 1), 1), order[:, -2]
    middle = np.argsort(margin)[len(margin) // 2]
    return np.concatenate([scores, scores[middle][None]]), np.concatenate([y, wrong[middle][None].astype(y.dtype)])


def scaled(head: Linear, factor: float) -> Linear:
    return Linear(head.kernel * factor, head.bias * factor)


def measured(
    scores: np.ndarray, y: np.ndarray, classes: Sequence[str], samples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """What test examples say: `{metric: {'value', 'low', 'high'}}`, with 95 % intervals.

    They are for the choice of examples, M of them: Wilson's (1927) for the share that is right, and a percentile
    bootstrap over examples for the others. A metric that makes no sense here is left out.

    Args:
        scores: [M, K]. y: [M], or [M, K] of zeros and ones.
    """
    names = tuple(name for name in METRICS if name in dict(classification.run(_seen(scores, y, len(classes)))))

    def values(rows) -> list[float]:
        found = dict(classification.run(_seen(scores[rows], y[rows], len(classes))))
        return [found[name] for name in names]

    rng = np.random.default_rng(seed)
    resampled = [values(rng.integers(len(y), size=len(y))) for _ in range(samples)]
    low, high = np.nanquantile(np.array(resampled), (0.025, 0.975), axis=0)
    found = {
        name: {'value': value, 'low': float(a), 'high': float(b)}
        for name, value, a, b in zip(names, values(slice(None)), low, high)
    }
    if y.ndim == 1:
        found['accuracy'] = bootstrap.wilson(right(scores, y))._asdict()
    return found


def _together(kind: str, able: Mapping[str, list]) -> list[list[str]]:
    """Layers whose heads are fitted in one go: all, by gradient descent, where they share the order of examples."""
    return [list(able)] if kind in DESCENT and able else [[layer] for layer in able]


def _tried(kind, layers, able, x, y, classes, divisions, weights, judge) -> list[Candidate]:
    """The candidates of a kind on some layers, which have the same settings where there are several."""
    settings, start, reason = able[layers[0]], time.perf_counter(), ''
    try:
        rows, scores = _scored(kind, [x[layer] for layer in layers], y, classes, settings, divisions, weights)
        values = [[judge(rows, part) for part in of_layer] for of_layer in scores]
    except UserError as e:
        values, reason = [[math.nan] * len(settings)] * len(layers), str(e)
    each = (time.perf_counter() - start) / (len(settings) * len(layers))
    return [
        Candidate(layer, kind, setting, value, each, reason)
        for layer, of_layer in zip(layers, values)
        for setting, value in zip(settings, of_layer)
    ]


def _scored(kind, xs, y, classes, settings, divisions, weights) -> tuple[np.ndarray, list[np.ndarray]]:
    """The rows that judge [R], and for each of `xs` the scores of them [H, R, K] by heads that have not seen them."""
    most, parts = max(len(judges) for _, judges in divisions), []
    for learn, judges in divisions:
        heads = fit(kind, [x[learn] for x in xs], y[learn], classes, settings, weights)
        padded = np.r_[judges, np.repeat(judges[:1], most - len(judges))]  # one shape, one compilation
        parts.append([head.scores(x[padded])[:, : len(judges)] for head, x in zip(heads, xs)])
    return np.concatenate([judges for _, judges in divisions]), [np.concatenate(p, 1) for p in zip(*parts)]


def _judged(rows: np.ndarray, scores: np.ndarray, *, y, divisions, classes, metric: str) -> float:
    if metric == 'accuracy':
        return float(right(scores, y[rows]).mean())
    found = dict(classification.run(_seen(scores, y[rows], len(classes))))
    if metric not in found:
        kind = 'several labels' if y.ndim == 2 else f'one label of {len(classes)} classes'
        raise UserError(f'{metric} is not defined for examples with {kind}.')
    return found[metric]


def _seen(scores: np.ndarray, y: np.ndarray, K: int) -> Seen:
    return Seen({'logits': scores, 'label': y}, tuple(map(str, range(K))), None, None)


def _twins(x: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Layers that hold the numbers of an earlier one, as the last block does where the features are its mean."""
    found, layers = {}, list(x)
    for i, layer in enumerate(layers):
        for other in layers[:i]:
            a, b = x[layer], x[other]
            if (
                other not in found
                and a.shape == b.shape
                and np.allclose(a[:8], b[:8], 1e-4)
                and np.allclose(a, b, 1e-4)
            ):
                found[layer] = other
                break
    return found
