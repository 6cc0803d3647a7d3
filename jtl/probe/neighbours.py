"""Nearest neighbours: the labels of the k examples that are most like this one, for all k from one search.

Distances are squared Euclidean ones of shifted points, ‖q - x‖² + z_q + z_x: of the features as they are, or of these
at unit length, where half of it is 1 - cosine. z is 1 for a vector of zeros at "unit length", which so has cosine 0
with all others, and 0 otherwise. A product of matrices finds the candidates, differences order them.

Legend: N examples to learn from, M to score, D features, K classes, H values of k, C candidates.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError, nearest
from jtl.probe.heads import HIGHEST, one_hot

SPARE = 8  # candidates beyond the largest k, so that rounding in the product leaves out none of the k
NUMBERS = 2**24  # about what a chunk of queries may hold at a time


class Neighbours(NamedTuple):
    """The examples themselves, and how they vote."""

    points: jax.Array  # [N, D]: shifted, and at unit length for the cosine
    zero: jax.Array  # [N]: z
    target: jax.Array  # [N, K]
    weights: jax.Array  # [N]
    mean: jax.Array  # [D]: what points were shifted by
    ks: tuple[int, ...]
    metric: str
    vote: str

    def scores(self, x: np.ndarray) -> jax.Array:
        """The share of the votes that each class gets: [M, D] -> [H, M, K]."""
        points, zero = _points(x, self.mean, self.metric)
        return _scores(self[:4], points, zero, jnp.full(len(x), -1), self.ks, self.metric, self.vote)

    def leave_one_out(self) -> jax.Array:
        """The scores [H, N, K] of the examples themselves, each without its own vote.

        Raises:
            UserError: a k of more than the N - 1 others.
        """
        _enough(self.ks, len(self.points) - 1, 'others when each of them is left out')
        own = jnp.arange(len(self.points))
        return _scores(self[:4], self.points, self.zero, own, self.ks, self.metric, self.vote)


def neighbours(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    ks: Sequence[int],
    *,
    metric: str = 'cosine',
    vote: str = 'uniform',
    weights: np.ndarray | None = None,
) -> Neighbours:
    """k-nearest-neighbour classifiers (Cover & Hart 1967), for each of `ks`.

        score(q)_c = Σ_{i of the k nearest} v_i [y_i = c] / Σ_{i of the k nearest} v_i,   v_i = w_i or w_i / distance_i

    as scikit-learn's KNeighborsClassifier. The nearest come first, of equally near ones that with the lower index. By
    distance, neighbours at no distance share the votes among themselves. With several labels an example, a class's
    score is the share of the votes that have its label.

    Args:
        x: features [N, D], float32 or float64; all is computed in their type.
        y: labels [N], or several of each [N, K] as zeros and ones.
        classes: K.
        ks: H numbers of neighbours.
        metric: `cosine` (distance 1 - cosine; 1 from a vector of zeros) or `euclid`.
        vote: `uniform` or `distance`.
        weights: w, of each example's vote [N]; all scores are 0 where no neighbour has any.

    Raises:
        UserError: a k below 1 or above N, an unknown metric or vote, a weight below 0.
    """
    for key, value, known in (('metric', metric, ('cosine', 'euclid')), ('vote', vote, ('uniform', 'distance'))):
        if value not in known:
            raise UserError(f'nearest neighbours: unknown {key} {value!r}: {nearest(value, known)}')
    _enough(ks, len(x), 'examples')
    weights = np.ones(len(x), x.dtype) if weights is None else np.asarray(weights, x.dtype)
    if weights.shape != (len(x),) or not (weights >= 0).all():
        raise UserError(f'nearest neighbours: weights should be {len(x)} numbers of at least 0.')
    whole, _ = _points(x, np.zeros(x.shape[1], x.dtype), metric)
    mean = whole.mean(0)  # distances stay as they are; products of what is left lose fewer digits
    points, zero = _points(x, mean, metric)
    target = jnp.asarray(one_hot(y, classes, x.dtype))
    return Neighbours(points, zero, target, jnp.asarray(weights), mean, tuple(map(int, ks)), metric, vote)


def _enough(ks: Sequence[int], most: int, of: str) -> None:
    if not len(ks) or min(ks) < 1 or max(ks) > most:
        raise UserError(f'nearest neighbours: k of {list(ks)} should be at least 1 and no more than the {most} {of}.')


@partial(jax.jit, static_argnames='metric')
def _points(x, mean, metric):
    """Points [M, D] and z [M] of features [M, D]."""
    if metric == 'euclid':
        return x - mean, jnp.zeros_like(x[:, 0])
    largest = jnp.abs(x).max(1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)  # the square of a small number may be 0
    norm = jnp.sqrt((x * x).sum(1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1) - mean, (norm[:, 0] == 0).astype(x.dtype)


@partial(jax.jit, static_argnames=('ks', 'metric', 'vote'))
def _scores(examples, queries, zero, own, ks, metric, vote):
    """[H, M, K], for queries [M, D] that are not to find the example `own` [M]."""
    points, lacks, target, weights = examples
    (N, D), K = points.shape, target.shape[1]
    C = min(max(ks) + SPARE, N)
    norms = (points**2).sum(1) + lacks  # [N]

    def query(one):
        q, z, own = one  # [D], [], []
        near = 2 * jnp.matmul(points, q, precision=HIGHEST) - norms  # [N]
        near = jnp.where(jnp.arange(N) == own, -jnp.inf, near)
        _, index = jax.lax.top_k(near, C)
        far = ((q - points[index]) ** 2).sum(1) + z + lacks[index]  # [C]
        far = jnp.where(index == own, jnp.inf, far)
        far, index = (v[: max(ks)] for v in jax.lax.sort((far, index), num_keys=2))  # [max k]
        far = jnp.sqrt(far) if metric == 'euclid' else far / 2
        share = weights[index]
        if vote == 'distance':  # relative to the nearest's: 1 / distance may be no number
            share = share * jnp.where(far[0] > 0, far[0] / jnp.where(far > 0, far, 1), far == 0)
        votes = jnp.cumsum(share[:, None] * target[index], 0)  # [max k, K]
        total = jnp.cumsum(share)[:, None]
        return (votes / jnp.where(total > 0, total, 1))[jnp.asarray(ks) - 1]  # [H, K]

    chunk = max(1, min(len(queries), NUMBERS // (N + C * (D + K))))  # queries at a time: memory is bounded
    return jnp.moveaxis(jax.lax.map(query, (queries, zero, own), batch_size=chunk), 0, 1)
