"""Centred kernel alignment: how alike two representations of the same examples are, whatever their bases.

Inner products of N examples with each other, K = X Xᵀ and L = Y Yᵀ, are compared, and not the features themselves.

Legend: N examples, C and D features of two layers, P layers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError


def cka(x: np.ndarray, y: np.ndarray, *, debiased: bool = False) -> float:
    """Linear CKA of two sets of features.

        CKA = HSIC(x, y) / √(HSIC(x, x) HSIC(y, y)),  HSIC(x, y) = |Xᵀ Y|² = Σ_ij K_ij L_ij,  features centred

    (Kornblith et al. 2019, Similarity of Neural Network Representations Revisited). Between 0 and 1, and the same after
    a rotation or a common factor of either. With features not many times fewer than examples it is biased towards 1:
    independent noise [N, D] has about D / (N + D). `debiased` takes the unbiased HSIC instead (Song et al. 2012,
    Feature Selection via Dependence Maximization; Nguyen et al. 2021, Do Wide and Deep Networks Learn the Same
    Things?), with K and L without their diagonals:

        HSIC = tr(K L) + 1ᵀK1 1ᵀL1 / ((N - 1)(N - 2)) - 2 / (N - 2) 1ᵀK L1

    which is around 0 for independent features, and sometimes below.

    Args:
        x, y: features [N, C] and [N, D] of the same examples in the same order.

    Returns:
        The similarity; 0 where all examples have the same features.

    Raises:
        UserError: shapes that do not fit, numbers that are not finite, fewer than 4 examples when debiased, else 2.
    """
    return float(cka_matrix([x, y], debiased=debiased)[0, 1])


def cka_matrix(layers: Sequence[np.ndarray], *, debiased: bool = False) -> np.ndarray:
    """CKA of each layer with each, [P, P]; see `cka`.

    Args:
        layers: P arrays [N, D_p] of the same examples.
    """
    layers = [np.asarray(x) for x in layers]
    least = 4 if debiased else 2
    for x in layers:
        if x.ndim != 2 or len(x) != len(layers[0]) or len(x) < least or not x.shape[1]:
            raise UserError(f'CKA: expected features [N, D] of the same {least} or more examples, got {x.shape}.')
        if not np.isfinite(x).all():
            raise UserError('CKA: features should be finite.')
    P = len(layers)
    found = np.zeros((P, P))
    alike = _hsic_unbiased if debiased else _hsic
    with jax.enable_x64():
        for i in range(P):
            for j in range(i, P):
                found[i, j] = found[j, i] = alike(layers[i], layers[j])
    norm = np.sqrt(np.diag(found))
    norm = np.where(norm > 0, norm, 1)  # where nothing varies, found is 0 already
    return found / np.outer(norm, norm)


@jax.jit
def _hsic(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_ij K_ij L_ij."""
    return _products(_centred(x), _centred(y))


@jax.jit
def _hsic_unbiased(x: jax.Array, y: jax.Array) -> jax.Array:
    """The unbiased estimate, times N (N - 3).

    K without its diagonal has sums K1 - k, and K1 = 0 because x is centred; centring does not change the estimate.
    """
    x, y, N = _centred(x), _centred(y), len(x)
    k, l = (x * x).sum(1), (y * y).sum(1)  # [N], the diagonals
    return _products(x, y) - k @ l + k.sum() * l.sum() / ((N - 1) * (N - 2)) - 2 / (N - 2) * (k @ l)


def _centred(x: jax.Array) -> jax.Array:
    """Features with mean 0 and a largest value of 1, [N, D] in float64; zeros where what varies is rounding."""
    x = x.astype(jnp.float64)
    largest = jnp.abs(x).max(0)  # [D]
    x = x - x.mean(0)
    x = jnp.where(jnp.abs(x).max(0) > 1e-13 * largest, x, 0)
    return x / jnp.where(x.any(), jnp.abs(x).max(), 1)


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_ij K_ij L_ij, by examples or by features: whichever is less work."""
    N, C, D = len(x), x.shape[1], y.shape[1]
    if N * (C + D) < C * D:
        return ((x @ x.T) * (y @ y.T)).sum()
    return ((x.T @ y) ** 2).sum()
