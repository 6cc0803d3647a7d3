"""Ridge regression and classification for all λ from one eigendecomposition, with exact leave-one-out scores.

    min over W, b:  Σ_n w_n |t_n - x_n W - b|² + λ |W|²

The intercept b is not penalised, so it is centring by the weighted means. What is left is solved where it is smaller:

    primal, N ≥ D:  Xᵀ X = V e Vᵀ,  W = V (e + λ)⁻¹ Vᵀ Xᵀ T               [D, D]
    dual,   D > N:  X Xᵀ = U e Uᵀ,  W = Xᵀ C,  C = U (e + λ)⁻¹ Uᵀ T        [N, N]

with rows of X and T centred and times √w_n. Leaving example n out, intercept refitted, changes its residual r_n to

    r_n / (1 - h_n),  h = diag(X (Xᵀ X + λ)⁻¹ Xᵀ) + w / Σw,  which is  C_n / diag(U (e + λ)⁻¹ Uᵀ)_n  in the dual

(Rifkin & Lippert 2007, Notes on regularized least squares), so that no λ costs more than a product with e + λ.

Products and decompositions are in float64 whatever the features are, and only the result is in their type: a product
Xᵀ X in float32 loses all directions below 1e-7 of the largest, which a λ that small then blows up. Blocks of examples
are converted as they are used, so this needs memory for D², or N², and not for N D.

Legend: N examples, D features, K classes, T targets (K when classifying), L values of λ, R = D in the primal and N - 1
in the dual.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError
from jtl.probe.heads import Linear, check, one_hot

BLOCK = 2048  # examples in float64 at a time


class Ridge(NamedTuple):
    """Heads for L values of λ, and what each would have said of an example without having seen it."""

    lambdas: np.ndarray  # [L]
    head: Linear
    accuracy: jax.Array | None  # [L], leave-one-out; None of a regression
    loo: jax.Array | None  # [L, N, K], leave-one-out scores, unless they were not wanted


def ridge(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    lambdas: Sequence[float],
    *,
    weights: np.ndarray | None = None,
    loo: bool = True,
) -> Ridge:
    """A classifier by regression on ±1, one class against the others, for all λ at once.

    Coefficients equal scikit-learn's `RidgeClassifier(alpha=λ)`, which for two classes has one column: our second.

    Args:
        x: features [N, D].
        y: labels [N] int, or several of each example [N, K] (zeros and ones).
        classes: K.
        lambdas: L numbers above 0.
        weights: of examples [N], none below 0; whoever has 0 is not learnt from. Class weights: `heads.class_weights`.
        loo: keep the leave-one-out scores, L·N·K numbers. The accuracy they come to is there in any case; it weighs
            examples as the fit does and is, with several labels, the share of right decisions.

    Raises:
        UserError: features or labels that nothing can be fitted to, a λ or weights that make no sense.
    """
    x, y = np.asarray(x), np.asarray(y)
    check(x, y, [str(k) for k in range(classes)])
    right = _right if y.ndim == 1 else _share_right
    return _solve(x, 2 * one_hot(y, classes, x.dtype) - 1, lambdas, weights, loo, right)


def solve(
    x: np.ndarray, targets: np.ndarray, lambdas: Sequence[float], weights: np.ndarray | None = None, *, loo: bool = True
) -> Ridge:
    """Ridge regression on targets [N, T] for all λ at once: see `ridge`. Equals scikit-learn's `Ridge(alpha=λ)`."""
    x, targets = np.asarray(x), np.asarray(targets)
    if x.ndim != 2 or targets.ndim != 2 or len(x) != len(targets):
        raise UserError(f'ridge: expected features [N, D] and targets [N, T], got {x.shape} and {targets.shape}.')
    if not (np.isfinite(x).all() and np.isfinite(targets).all()):
        raise UserError('ridge: features and targets should be finite.')
    return _solve(x, targets, lambdas, weights, loo, None)


def best(of: Ridge) -> int:
    """The index of the λ with the best leave-one-out accuracy, of several the largest λ."""
    accuracy = np.asarray(of.accuracy)
    return int(np.argmax(np.where(accuracy == accuracy.max(), of.lambdas, -np.inf)))


def _solve(x, targets, lambdas, weights, loo: bool, right: Callable | None) -> Ridge:
    lambdas = np.asarray(lambdas, np.float64)
    if lambdas.ndim != 1 or not len(lambdas) or not (np.isfinite(lambdas) & (lambdas > 0)).all():
        raise UserError(f'ridge: lambdas: {lambdas.tolist()} should be one or more finite numbers above 0.')
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(x),) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f'ridge: weights should be {len(x)} finite numbers, none below 0; got shape {weights.shape}.')
    if (weights > 0).sum() < 2:
        raise UserError('ridge: weights: at least two examples should have one above 0.')
    form = primal if len(x) >= x.shape[1] else dual
    with jax.enable_x64():
        head, scores, hits = form(x, targets.astype(np.float64), weights, lambdas, loo, right)
        accuracy = None if hits is None else (weights @ hits / weights.sum()).astype(x.dtype)
    return Ridge(lambdas, head, accuracy, scores)


@functools.partial(jax.jit, static_argnames=('loo', 'right'))
def primal(x, t, w, lambdas, loo: bool, right: Callable | None):
    """Through [D, D], in the type of t. Returns the head, scores [L, N, T] (or None) and hits [N, L] (or None)."""
    total = w.sum()
    mean, level = blocked(lambda x, w: w @ x.astype(t.dtype), x, w) / total, w @ t / total  # [D], [T]

    def products(x, t, w):
        x = x.astype(t.dtype) - mean
        return (x * w[:, None]).T @ jnp.concatenate([x, t - level], 1)

    both = blocked(products, x, t, w)  # [D, D + T]
    e, basis = jnp.linalg.eigh(both[:, : x.shape[1]])
    inverse = 1 / (jnp.maximum(e, 0)[:, None] + lambdas)  # [R, L]
    gain = _gain(inverse, basis.T @ both[:, x.shape[1] :])  # [R, L·T]

    def left_out(x, t, w):
        z = (x.astype(t.dtype) - mean) @ basis  # [R]
        residual = t - level - (z @ gain).reshape(len(lambdas), -1)  # [L, T]
        leverage = w * ((z * z) @ inverse + 1 / total)  # [L]
        return t - residual / (1 - leverage)[:, None]

    head = _head(basis @ gain, mean, level, len(lambdas), x.dtype)
    return head, *_by_example(left_out, (x, t, w), x.dtype, loo, right)


@functools.partial(jax.jit, static_argnames=('loo', 'right'))
def dual(x, t, w, lambdas, loo: bool, right: Callable | None):
    """Through [N, N]; otherwise as `primal`."""
    total, s = w.sum(), jnp.sqrt(w)
    x, kind = x.astype(t.dtype), x.dtype
    mean, level = w @ x / total, w @ t / total
    centred = (x - mean) * s[:, None]
    e, basis = _eigh_beside(centred @ centred.T, s)  # basis: [N, R]
    inverse = 1 / (jnp.maximum(e, 0)[:, None] + lambdas)  # [R, L]
    gain = _gain(inverse, basis.T @ ((t - level) * s[:, None]))  # [R, L·T]
    kernel = centred.T @ (basis @ gain)  # [D, L·T]

    def left_out(x, t, w, u):
        seen = level + ((x - mean) @ kernel).reshape(len(lambdas), -1)  # [L, T], of who has no weight
        c = (u @ gain).reshape(len(lambdas), -1)
        d = jnp.where(w > 0, jnp.sqrt(w) * ((u * u) @ inverse), 1)
        return jnp.where(w > 0, t - c / d[:, None], seen)

    head = _head(kernel, mean, level, len(lambdas), kind)
    return head, *_by_example(left_out, (x, t, w, basis), kind, loo, right)


def blocked(f: Callable, *rows: jax.Array) -> jax.Array:
    """Σ f(block) over blocks of examples: what f converts, it converts of one block only."""
    whole = len(rows[0]) // BLOCK * BLOCK
    parts = [r[:whole].reshape(-1, BLOCK, *r.shape[1:]) for r in rows]
    return jax.lax.scan(lambda sum, part: (sum + f(*part), None), f(*(r[whole:] for r in rows)), parts)[0]


def _gain(inverse: jax.Array, projected: jax.Array) -> jax.Array:
    """[R, L], [R, T] -> [R, L·T]."""
    return (inverse[:, :, None] * projected[:, None]).reshape(len(inverse), -1)


def _head(kernel: jax.Array, mean: jax.Array, level: jax.Array, L: int, dtype) -> Linear:
    kernel = jnp.moveaxis(kernel.reshape(len(mean), L, -1), 1, 0)  # [L, D, T]
    return Linear(kernel.astype(dtype), (level - mean @ kernel).astype(dtype))


def _by_example(left_out: Callable, rows: tuple, dtype, loo: bool, right: Callable | None):
    """Scores [L, N, T] and hits [N, L] of every example left out, a block of examples at a time, as far as wanted."""
    if not loo and right is None:
        return None, None

    def each(row):
        scores = left_out(*row)  # [L, T]
        return scores.astype(dtype) if loo else None, right(scores, row[1]) if right else None

    scores, hits = jax.lax.map(each, rows, batch_size=BLOCK)
    return jnp.moveaxis(scores, 1, 0) if loo else None, hits


def _eigh_beside(gram: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [N - 1] and eigenvectors [N, N - 1] of a matrix with gram s = 0, without the pair (0, s).

    That eigenvalue would be some small number, to be told from other small ones and divided by. A Householder
    reflection that takes s to the first axis leaves the others to be decomposed.
    """
    v = s / jnp.linalg.norm(s)
    v = v.at[0].add(1)  # s is nowhere negative: no cancellation
    v = v / jnp.linalg.norm(v)
    gv = gram @ v
    reflected = gram - 2 * (jnp.outer(v, gv) + jnp.outer(gv, v)) + 4 * (v @ gv) * jnp.outer(v, v)
    e, vectors = jnp.linalg.eigh(reflected[1:, 1:])
    return e, jnp.pad(vectors, ((1, 0), (0, 0))) - 2 * jnp.outer(v, v[1:] @ vectors)


def _right(scores: jax.Array, target: jax.Array) -> jax.Array:
    """[L, K], ±1 [K] -> 1 where the largest is the class's, [L]."""
    return (scores.argmax(-1) == target.argmax()).astype(scores.dtype)


def _share_right(scores: jax.Array, target: jax.Array) -> jax.Array:
    """[L, K], ±1 [K] -> the share of classes on the right side of 0, [L]."""
    return ((scores > 0) == (target > 0)).mean(-1, dtype=scores.dtype)
