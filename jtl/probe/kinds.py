"""The kinds of heads that are tried, the settings each is tried with, and one way to fit any of them.

Penalties are shares, λ/N, so that a setting means the same on four fifths of the examples and on all of them. All heads
see features that are standardised by the examples they learn from: penalties and distances weigh them alike. The cosine
alone sees them as they come, as a direction from the origin means something there.

Heads by gradient descent hold a fifth of their examples out to stop by. They never see those that judge them, so that
what they score there compares with what the others do.

Legend: N examples to learn from, M to score, D features, K classes, H settings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jtl.probe import discriminant, lanes, logistic, neighbours, ridge
from jtl.probe.folds import folds
from jtl.probe.heads import Linear, Standard, check, class_weights, standard, unstandardised

Setting = Mapping[str, Any]

SETTINGS: dict[str, tuple[Setting, ...]] = {  # the simplest kind first; of a kind, the most restrained setting
    'mean': tuple({'metric': m} for m in discriminant.METRICS),
    'ridge': tuple({'penalty': float(p)} for p in (30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01, 1e-3)),
    'logistic': tuple({'penalty': float(p)} for p in (1, 0.3, 0.1, 0.03, 0.01, 1e-3)),
    'lda': tuple({'shrinkage': s} for s in (0.9, 0.7, 0.5, 0.3, 0.1)),
    'linear': tuple({'lr': lr, 'decay': decay} for decay in (1.0, 0.1) for lr in (3e-3, 1e-2, 3e-2)),
    'knn': tuple({'metric': m, 'k': k} for m in discriminant.METRICS for k in (50, 20, 10, 5, 3, 1)),
    'qda': tuple({'shrinkage': s} for s in (0.9, 0.7, 0.5, 0.3, 0.1)),
    'mlp': tuple({'lr': lr, 'decay': decay} for decay in (0.1,) for lr in (3e-4, 1e-3, 3e-3)),
}
LINEAR = ('mean', 'ridge', 'logistic', 'lda', 'linear')
DESCENT = ('linear', 'mlp')
HIDDEN = (128,)
MOST = 5e9  # D³ of an LDA, K · D³ of a QDA: decompositions beyond it take minutes


class Head(NamedTuple):
    """For H settings, scores of features as they come.

    Attributes:
        parts: heads of several settings each; see `jtl.probe.heads`.
        by: what the features of each are standardised by; None is as they come.
        middle: what to take from the scores, so that 0 divides yes from no.
    """

    parts: tuple[Any, ...]
    by: tuple[Standard | None, ...]
    middle: float = 0.0

    def scores(self, x: np.ndarray) -> np.ndarray:
        """[M, D] -> [H, M, K]."""
        shown = (x if by is None else by(x) for by in self.by)
        return np.concatenate([np.asarray(part.scores(x)) for part, x in zip(self.parts, shown)]) - self.middle

    def linear(self) -> Linear:
        """The same as kernels and biases on features as they come; of linear kinds."""
        whole = [part if by is None else unstandardised(part, by) for part, by in zip(self.parts, self.by)]
        return Linear(*(jnp.concatenate(values) for values in zip(*whole)))


def obstacle(kind: str, setting: Setting, y: np.ndarray, features: int, classes: int) -> str | None:
    """Why there is no such head on these examples, if it can be told beforehand."""
    if y.ndim == 2 and kind in ('mean', 'lda', 'qda'):
        return 'examples with several labels'
    if setting.get('k', 0) > len(y):
        return f'{setting["k"]} neighbours, but {len(y)} examples'
    covariances = {'lda': 1, 'qda': classes}.get(kind, 0)
    if covariances * features**3 > MOST:
        return f'{covariances} × {features}² covariances take too long'
    return None


def fit(
    kind: str,
    xs: Sequence[np.ndarray],
    y: np.ndarray,
    classes: Sequence[str],
    settings: Sequence[Setting],
    weights: str | Sequence[float] | None = None,
) -> list[Head]:
    """A kind's heads with each of `settings`, on each of several layers.

    Args:
        kind: a key of `SETTINGS`.
        xs: features [N, D], of each layer.
        y: labels [N], or [N, K] of zeros and ones.
        classes: K names.
        settings: H of the kind's.
        weights: of classes; see `heads.class_weights`. Nearest means have no use for them.

    Raises:
        UserError: features or labels that this kind cannot be fitted to.
    """
    for x in xs:
        check(x, y, classes, least=2 if kind == 'qda' else 1)
    by = [standard(x) for x in xs]
    if kind in DESCENT:
        return _descended(kind, xs, by, y, classes, settings, weights)
    each = class_weights(y, len(classes), weights) if weights is not None else None
    return [FITS[kind](x, of, y, len(classes), settings, each) for x, of in zip(xs, by)]


def _mean(x, by, y, K, settings, weights) -> Head:
    return _by_metric(
        x, by, [(s['metric'], None) for s in settings], lambda x, m, _: discriminant.nearest_mean(x, y, K, m)
    )


def _ridge(x, by, y, K, settings, weights) -> Head:
    lambdas = [s['penalty'] * len(x) for s in settings]
    return Head((ridge.ridge(by(x), y, K, lambdas, weights=weights, loo=False).head,), (by,))


def _logistic(x, by, y, K, settings, weights) -> Head:
    lambdas = [s['penalty'] * len(x) for s in settings]
    return Head((logistic.logistic(by(x), y, K, lambdas, weights=weights)[0],), (by,))


def _lda(x, by, y, K, settings, weights) -> Head:
    return Head(
        (discriminant.lda(by(x), y, K, [s['shrinkage'] for s in settings], priors=_priors(y, K, weights)),), (by,)
    )


def _qda(x, by, y, K, settings, weights) -> Head:
    regs, priors = [s['shrinkage'] for s in settings], _priors(y, K, weights)
    return Head((discriminant.qda(by(x), y, K, regs, towards='mean', priors=priors),), (by,))


def _knn(x, by, y, K, settings, weights) -> Head:
    def near(x, metric, ks):
        return neighbours.neighbours(x, y, K, ks, metric=metric, weights=weights)

    head = _by_metric(x, by, [(s['metric'], s['k']) for s in settings], near)
    return head._replace(middle=0.5)  # shares of votes


FITS: dict[str, Callable] = {
    'mean': _mean, 'ridge': _ridge, 'logistic': _logistic, 'lda': _lda, 'qda': _qda, 'knn': _knn
}  # fmt: skip


def _by_metric(x: np.ndarray, by: Standard, pairs: list[tuple[str, Any]], make: Callable) -> Head:
    """A head for each metric, with all its values at once; the settings are in the order of metrics."""
    metrics = list(dict.fromkeys(metric for metric, _ in pairs))
    shown = [None if metric == 'cosine' else by for metric in metrics]
    parts = [
        make(x if of is None else of(x), metric, [value for m, value in pairs if m == metric])
        for metric, of in zip(metrics, shown)
    ]
    return Head(tuple(parts), tuple(shown))


def _priors(y: np.ndarray, K: int, weights: np.ndarray | None) -> np.ndarray | None:
    """What the weights of examples make of the shares of classes; `balanced` ones make them equal."""
    return None if weights is None else np.bincount(y, weights, K)


def _descended(kind, xs, by, y, classes, settings, weights) -> list[Head]:
    learn, stop = folds(y, 5)[0]
    K, shown = len(classes), [of(x) for of, x in zip(by, xs)]
    rows = [(s['lr'], s['decay'], i) for i in range(len(xs)) for s in settings]
    lr, decay, layer = map(np.asarray, zip(*rows))
    each = lanes.Lanes(lr, decay, np.zeros(len(rows), np.int64), layer, np.ones(len(rows)))
    found = lanes.train(
        each,
        ([x[learn] for x in shown], y[learn]),
        ([x[stop] for x in shown], y[stop]),
        K,
        hidden=() if kind == 'linear' else HIDDEN,
        batch_size=int(np.clip(len(learn) // 8, 8, 256)),
        epochs=60,
        patience=10,
        optimiser='adamw',
        weight=None if weights is None else class_weights(y, K, weights)[learn],
    )
    return [Head((head,), (of,)) for head, of in zip(found.heads, by)]
