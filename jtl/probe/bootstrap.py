"""Intervals of a score: what other examples, as many and from the same source, might have given.

A statistic is a function of weights [B, N], how often each of N examples counts in each of B data sets, to B numbers,
or [B, …] of them: `lambda w: scores.leep(p, y, classes, w)`.

- `interval`, the bootstrap, for what is cheap and a mean over examples in the main: accuracies, LEEP, NCE. It draws
  examples with replacement.
- `jackknife`, leaving groups out, for what costs a decomposition or suffers from repeated examples: LogME and the
  H-scores. In a bootstrap with D near N these see 37 % fewer different examples, fit them better, and give an interval
  that can lie beside the score.
- `wilson`, for an accuracy, without drawing anything.

None knows of the bias that a score has with N examples, nor of the chance in training: they speak of the score as it
is, on so many examples. The paired difference of two classifiers is `jtl.paired.bootstrap_difference`.

Legend: N examples, B resamples, G groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jtl.errors import UserError


class Interval(NamedTuple):
    """A score of all examples, and where it might have been: numbers, or arrays of one shape."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    replicates: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
    strata: np.ndarray | None = None,
) -> Interval:
    """The bootstrap: quantiles of the statistic over examples drawn with replacement, moved to have no bias.

        low, high = value + q - mean(draws),  q the (1 ∓ confidence)/2 quantiles of the draws

    (Efron & Tibshirani 1993, An Introduction to the Bootstrap). A table of counts that is filled from the data, as
    LEEP's and NCE's, fits a resample better than it fitted the data; without the move the interval would lie too high.

    Args:
        statistic: weights [B, N] -> [B, …].
        n: N.
        replicates: B.
        strata: classes [N]: as many of each are drawn as there are. The interval is then for these class sizes.

    Raises:
        UserError: fewer than 2 examples or resamples, a confidence outside (0, 1), strata of another length.
    """
    strata = _strata(n, replicates, confidence, strata)
    weights, rng = np.zeros((replicates, n)), np.random.default_rng(seed)
    for rows in strata:
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), replicates)
    value = np.asarray(statistic(np.ones((1, n))))[0]
    draws = np.asarray(statistic(weights))  # [B, …]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0) - draws.mean(0) + value
    return Interval(value, low, high)


def jackknife(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    groups: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
    strata: np.ndarray | None = None,
) -> Interval:
    """The delete-a-group jackknife: a t-interval from the statistic without each of G random groups.

        value ± t s,  s² = (G - 1)/G Σ_g (θ_g - mean θ)²,  t the quantile of Student's distribution with G - 1 degrees

    (Shao & Tu 1995, The Jackknife and Bootstrap). It costs G + 1 scores, and no example counts twice. For statistics
    that are smooth in the weights: means, LogME, H-scores; not medians, nor the choice of a best hyperparameter.

    Args:
        statistic: weights [B, N], zeros and ones, -> [B, …].
        n: N.
        groups: G, at most N.
        strata: classes [N], dealt out evenly, so that no group takes all of a class that has two examples or more.

    Raises:
        UserError: as `interval`.
    """
    from scipy import stats

    groups = min(groups, n)
    strata = _strata(n, groups, confidence, strata)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(rows) for rows in strata])
    weights = np.ones((groups, n))
    weights[np.arange(n) % groups, order] = 0
    value = np.asarray(statistic(np.ones((1, n))))[0]
    without = np.asarray(statistic(weights))  # [G, …]
    error = np.sqrt((groups - 1) * without.var(0))
    reach = stats.t.ppf((1 + confidence) / 2, groups - 1) * error
    return Interval(value, value - reach, value + reach)


def wilson(right: np.ndarray, confidence: float = 0.95) -> Interval:
    """Wilson's interval of an accuracy from which examples were right, [N] bool.

        (p + z²/2N ± z √(p (1 - p)/N + z²/4N²)) / (1 + z²/N)

    (Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference). Within 0 and 1, and not empty
    when all were right.

    Raises:
        UserError: no examples, numbers that are neither 0 nor 1, a confidence outside (0, 1).
    """
    from scipy import stats

    right = np.asarray(right)
    if right.ndim != 1 or not len(right) or not np.isin(right, (0, 1)).all() or not 0 < confidence < 1:
        raise UserError(
            f'accuracy: expected right or wrong for each of N examples and a confidence between 0 and 1, '
            f'got {right.shape} and {confidence}.'
        )
    n, p, z = len(right), float(right.mean()), stats.norm.ppf((1 + confidence) / 2)
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (middle - reach) / (1 + z**2 / n), (middle + reach) / (1 + z**2 / n)
    return Interval(p, max(float(low), 0.0), min(float(high), 1.0))


def _strata(n: int, draws: int, confidence: float, strata: np.ndarray | None) -> list[np.ndarray]:
    """The examples of each class, or all together; refuses what no interval can be made of."""
    if n < 2 or draws < 2:
        raise UserError(f'interval: {n} examples, {draws} resamples or groups: each should be at least 2.')
    if not 0 < confidence < 1:
        raise UserError(f'interval: confidence: {confidence} should be between 0 and 1.')
    if strata is None:
        return [np.arange(n)]
    strata = np.asarray(strata)
    if strata.shape != (n,):
        raise UserError(f'interval: strata should be {n} classes, got shape {strata.shape}.')
    return [np.flatnonzero(strata == k) for k in np.unique(strata)]
