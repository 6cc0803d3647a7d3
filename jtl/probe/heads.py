"""What all heads share: linear ones, standardised features, targets, and the checks of what they are given.

A head is a function of features and labels; none of them has a training loop. What they find is a NamedTuple with
`scores(x)`, for several values of a hyperparameter at once: [M, D] -> [H, M, K], the largest of the K winning.

Legend: N examples to learn from, M to score, D features, K classes, H values of a hyperparameter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError, some

HIGHEST = jax.lax.Precision.HIGHEST  # float32 means float32 on a GPU and a TPU, too


class Linear(NamedTuple):
    """x W + b for each of H: what ridge, logistic regression, LDA and nearest means come to."""

    kernel: jax.Array  # [H, D, K]
    bias: jax.Array  # [H, K]

    def scores(self, x: jax.Array) -> jax.Array:
        """[M, D] -> [H, M, K], as one product."""
        H, D, K = self.kernel.shape
        columns = jnp.moveaxis(self.kernel, 1, 0).reshape(D, H * K)
        flat = jnp.matmul(x, columns, precision=HIGHEST)  # [M, H·K]
        return jnp.moveaxis(flat.reshape(-1, H, K), 1, 0) + self.bias[:, None]


class Standard(NamedTuple):
    """(x - mean) / scale, feature by feature; a feature that never varies has scale 1."""

    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[M, D] -> [M, D]."""
        return (x - self.mean) / self.scale


def standard(x: np.ndarray) -> Standard:
    """Mean and standard deviation of each feature of x [N, D]; in float64, as sums of many numbers."""
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    constant = scale <= 10 * np.finfo(x.dtype).eps * np.abs(mean)
    return Standard(mean.astype(x.dtype), np.where(constant, 1, scale).astype(x.dtype))


def unstandardised(head: Linear, by: Standard) -> Linear:
    """The head on features as they come that scores as `head` does on standardised ones."""
    kernel = head.kernel / by.scale[:, None]
    return Linear(kernel, head.bias - jnp.einsum('d,hdk->hk', by.mean, kernel, precision=HIGHEST))


def one_hot(y: np.ndarray, classes: int, dtype=np.float32) -> np.ndarray:
    """Labels [N], or several of each example [N, K], as zeros and ones [N, K]."""
    return y.astype(dtype) if y.ndim == 2 else np.eye(classes, dtype=dtype)[y]


def class_weights(y: np.ndarray, classes: int, given: str | Sequence[float] | None) -> np.ndarray:
    """The weight of each example by its class, [N]; `balanced` is N / (K · N_k), as in scikit-learn.

    K counts the classes that occur. Examples with several labels have no class to be weighted by: an error.
    """
    if given is None:
        return np.ones(len(y), np.float32)
    if y.ndim == 2:
        raise UserError('class weights: examples here have several labels each, so none counts by class.')
    if isinstance(given, str) and given != 'balanced':
        raise UserError(f'class weights: {given!r} should be "balanced" or a number a class.')
    if isinstance(given, str):
        count = np.bincount(y, minlength=classes)
        given = len(y) / ((count > 0).sum() * np.maximum(count, 1))
    if len(given) != classes or not (np.asarray(given) >= 0).all():
        raise UserError(f'class weights: {list(given)} should be {classes} numbers, none below 0.')
    return np.asarray(given, np.float32)[y]


def check(x: np.ndarray, y: np.ndarray, classes: Sequence[str], what: str = 'the features', least: int = 1) -> None:
    """Refuses what no head can be fitted to.

    Args:
        x, y: features [N, D] and labels [N] or [N, K] to fit to.
        classes: K names.
        what: how the user knows the features, e.g. `runs/a, stage3`.
        least: examples that each class needs: 2 where a spread within it is estimated.

    Raises:
        UserError: no examples, fewer than classes, a class with too few, a number that is not finite, no feature that
            varies.
    """
    if x.ndim != 2 or len(x) != len(y):
        raise UserError(f'{what}: expected features [N, D] and N labels, got {x.shape} and {y.shape}.')
    if not len(x) or x.shape[1] == 0:
        raise UserError(f'{what}: there are none ({x.shape[0]} examples of {x.shape[1]}).')
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        rows = some(map(str, np.flatnonzero(bad)))
        raise UserError(f'{what}: not finite in {bad.sum()} of {len(x)} examples: {rows}.')
    if not (x != x[:1]).any():
        raise UserError(f'{what}: all {len(x)} examples have the same; nothing can be learnt from them.')
    if y.ndim == 1:
        count = np.bincount(y, minlength=len(classes))
        if len(x) < len(classes):
            raise UserError(
                f'{what}: {len(x)} examples for {len(classes)} classes: there should be one of each at least.'
            )
        if (count < least).any():
            few = some(f'{classes[k]!r} ({count[k]})' for k in np.flatnonzero(count < least))
            raise UserError(f'{what}: each class needs {least} examples to fit this to; too few: {few}.')
