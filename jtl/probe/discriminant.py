"""Discriminant analysis: a Gaussian per class, with one covariance (LDA), its own (QDA) or none (nearest mean).

Bayes' rule with p(x | k) = N(m_k, S_k) and priors p_k scores a class by

    log p_k - ½ log |S_k| - ½ (x - m_k)ᵀ S_k⁻¹ (x - m_k)

which is linear in x where S is the same for all. Covariances are estimated with 1/N_k, as in scikit-learn, and shrunk,
all strengths from one eigendecomposition. Moments and decompositions are in float64, results in the type of the
features (why: see `ridge`). Class weights are priors here.

Legend: N examples to learn from, M to score, D features, K classes, H shrinkages, B examples in a block, C blocks,
R directions a class's covariance is kept along: D, or the size of the largest class where that is less.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError, nearest
from jtl.probe.heads import HIGHEST, Linear, check
from jtl.probe.ridge import blocked

MOST = 2**31  # bytes that the bases of `qda` may take
METRICS = ('euclid', 'cosine')
Priors = str | Sequence[float] | None


class Quadratic(NamedTuple):
    """What QDA comes to for each of H: z = (x - m_k) V_k, scores b_k - ½ Σ_r z_r² π_kr - ½ (|x - m_k|² - |z|²) ρ_k."""

    mean: jax.Array  # [K, D], m
    basis: jax.Array  # [K, D, R], V: eigenvectors as columns
    precision: jax.Array  # [H, K, R], π: one over the variance along each
    rest: jax.Array  # [H, K], ρ: one over the variance in every other direction; 0 if there is none
    bias: jax.Array  # [H, K], b: log p - ½ log |S|

    def scores(self, x: jax.Array) -> jax.Array:
        """[M, D] -> [H, M, K], log-posteriors up to a constant of each example."""
        return _quadratic(self, x)


def lda(
    x: np.ndarray, y: np.ndarray, classes: int, shrinkages: Sequence[float | str], *, priors: Priors = None
) -> Linear:
    """Linear discriminant analysis for all shrinkages at once; equals scikit-learn's (`solver='lsqr'` or `'eigen'`).

        S = Σ_k p_k ((1 - s) S_k + s · trace(S_k)/D · I)

    Scores are log-posteriors up to a constant of each example. Where S is singular, which only s = 0 leaves it, its
    pseudo-inverse is used.

    Args:
        x, y: features [N, D] and labels [N].
        classes: K.
        shrinkages: H numbers from 0 to 1, or `auto`: s of each class by Ledoit & Wolf (2004, A well-conditioned
            estimator for large-dimensional covariance matrices) on standardised features.
        priors: K numbers; `uniform`; None: the shares of the classes. They weigh the covariances as well.

    Raises:
        UserError: several labels an example, features nothing can be fitted to, shrinkages or priors without sense.
    """
    x, y = _checked(x, y, classes, 'LDA')
    shrinkages = [s if isinstance(s, str) else float(s) for s in shrinkages]
    if not shrinkages or not all(s == 'auto' if isinstance(s, str) else 0 <= s <= 1 for s in shrinkages):
        raise UserError(f'LDA: shrinkages: {shrinkages} should be one or more numbers from 0 to 1, or "auto".')
    prior, count = _priors(priors, y, classes), np.bincount(y, minlength=classes)
    given = [s for s in shrinkages if s != 'auto']
    heads = {}
    with jax.enable_x64():
        mean = _means(x, y, count)
        if given:
            found = _linear(_pooled(x, y, mean, prior / count), mean, prior, np.array(given))
            heads |= {s: jax.tree.map(lambda a, i=i: a[i], found) for i, s in enumerate(given)}
        if 'auto' in shrinkages:
            found = _linear(_ledoit_wolf(x, mean, prior, count, *_by_class(y, count)), mean, prior, np.zeros(1))
            heads['auto'] = jax.tree.map(lambda a: a[0], found)
        return jax.tree.map(lambda *a: jnp.stack(a).astype(x.dtype), *(heads[s] for s in shrinkages))


def qda(
    x: np.ndarray, y: np.ndarray, classes: int, regs: Sequence[float], *, towards: str = 'one', priors: Priors = None
) -> Quadratic:
    """Quadratic discriminant analysis for all regularisations at once, S_k ← (1 - r) S_k + r · v_k · I.

    Args:
        x, y: features [N, D] and labels [N], two of each class at least.
        classes: K. The head holds K · D · R numbers.
        regs: H numbers r from 0 to 1. Above 0, classes may have fewer examples than there are features.
        towards: `one`: v = 1, scikit-learn's `reg_param`, for features of about that variance. `mean`: v_k =
            trace(S_k)/D, its `shrinkage` (`solver='eigen'`), for features of any.
        priors: as for `lda`.

    Raises:
        UserError: as for `lda`, a class with one example, a covariance that r = 0 leaves singular, too many classes
            times features to hold.
    """
    x, y = _checked(x, y, classes, 'QDA', least=2)
    regs, D, count = np.asarray(regs, np.float64), x.shape[1], np.bincount(y, minlength=classes)
    if regs.ndim != 1 or not len(regs) or not ((regs >= 0) & (regs <= 1)).all():
        raise UserError(f'QDA: regs: {regs.tolist()} should be one or more numbers from 0 to 1.')
    if towards not in ('one', 'mean'):
        raise UserError(f'QDA: towards: {towards!r} is unknown; {nearest(str(towards), ("one", "mean"))}')
    R = min(D, count.max())
    size = classes * D * R * x.dtype.itemsize
    if size > MOST:
        raise UserError(
            f'QDA: the covariances of {classes} classes and {D} features would take {size / 2**30:.1f} GiB, more than '
            f'{MOST / 2**30:g}: use LDA, which has one for all classes, or fewer features.'
        )
    prior = _priors(priors, y, classes)
    with jax.enable_x64():
        mean = _means(x, y, count)
        blocks = _by_class(y, count, R if R < D else None)  # with fewer examples than features, a class is one block
        e, basis = (_spectra if R == D else _spectra_of_few)(x, mean, count, *blocks)
        e = np.asarray(e)  # [K, R]
        target = np.ones(classes) if towards == 'one' else e.sum(1) / D  # [K]
        rest = regs[:, None] * target  # [H, K]
        variance = (1 - regs[:, None, None]) * e + rest[:, :, None]  # [H, K, R]
        _check_singular(variance, e, regs, count, D)
        with np.errstate(divide='ignore'):  # a prior of 0: never chosen
            bias = np.log(prior) - np.log(variance).sum(-1) / 2
        if R < D:
            bias, rest = bias - (D - R) * np.log(rest) / 2, 1 / rest
        else:
            rest = np.zeros_like(rest)
        return Quadratic(*(jnp.asarray(a, x.dtype) for a in (mean, basis, 1 / variance, rest, bias)))


def nearest_mean(x: np.ndarray, y: np.ndarray, classes: int, metric: str = 'euclid') -> Linear:
    """The class with the nearest mean, as one linear head (H = 1): argmin |x - m_k| = argmax x·m_k - |m_k|²/2.

    Args:
        x, y: features [N, D] and labels [N].
        classes: K.
        metric: `euclid` equals scikit-learn's `NearestCentroid`; `cosine` compares directions: means are of examples
            of length 1, and the score is the cosine to them times |x|.
    """
    x, y = _checked(x, y, classes, 'nearest mean')
    if metric not in METRICS:
        raise UserError(f'nearest mean: metric: {metric!r} is unknown; {nearest(str(metric), METRICS)}')
    with jax.enable_x64():
        if metric == 'cosine':
            mean = _unit(_means(x, y, np.bincount(y, minlength=classes), _unit))
            head = Linear(mean.T[None], jnp.zeros((1, classes)))
        else:  # from the middle of the means, so that what they have in common rounds nothing
            mean = _means(x, y, np.bincount(y, minlength=classes))
            middle = mean.mean(0)
            apart = mean - middle  # [K, D]
            head = Linear(apart.T[None], (-(apart**2).sum(1) / 2 - apart @ middle)[None])
        return jax.tree.map(lambda a: a.astype(x.dtype), head)


# What they share: labels, priors and moments.


def _checked(x, y, classes: int, what: str, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1:
        raise UserError(f'{what}: examples here have several labels each; it needs one: use ridge or logistic.')
    check(x, y, [str(k) for k in range(classes)], f'{what}: the features', least)
    return x, y


def _priors(given: Priors, y: np.ndarray, classes: int) -> np.ndarray:
    """[K], of sum 1."""
    if isinstance(given, str) and given != 'uniform':
        raise UserError(f'priors: {given!r} should be "uniform", a number a class, or None for their shares.')
    if given is None:
        given = np.bincount(y, minlength=classes)
    prior = np.ones(classes) if isinstance(given, str) else np.asarray(given, np.float64)
    if prior.shape != (classes,) or not (np.isfinite(prior) & (prior >= 0)).all() or not prior.any():
        raise UserError(f'priors: {prior.tolist()} should be {classes} finite numbers, none below 0, not all 0.')
    return prior / prior.sum()


def _unit(x: jax.Array) -> jax.Array:
    """Rows of length 1; those of zeros stay."""
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)


@functools.partial(jax.jit, static_argnames='of')
def _means(x, y, count, of: Callable = lambda x: x) -> jax.Array:
    """Means [K, D] of each class's `of(examples)`."""

    def sums(x, y):
        return jax.nn.one_hot(y, len(count), axis=0, dtype=jnp.float64) @ of(x.astype(jnp.float64))

    return blocked(sums, x, y) / count[:, None]


@jax.jit
def _pooled(x, y, mean, weight) -> jax.Array:
    """Σ_k weight_k · scatter_k, [D, D]."""

    def scatter(x, y):
        apart = x - mean[y]
        return (apart * weight[y][:, None]).T @ apart

    return blocked(scatter, x, y)


@jax.jit
def _linear(cov, mean, prior, shrinkages) -> Linear:
    """Linear discriminants from the pooled covariance, shrunk by each: [H, D, K] and [H, K]."""
    e, basis = jnp.linalg.eigh(cov)
    e = jnp.maximum(e, 0)
    variance = (1 - shrinkages)[:, None] * e + shrinkages[:, None] * e.mean()  # [H, D]
    null = variance <= len(e) * jnp.finfo(e.dtype).eps * variance.max(1, keepdims=True)
    inverse = jnp.where(null, 0, 1 / jnp.where(null, 1, variance))
    middle = prior @ mean
    apart = mean - middle  # [K, D]: what means have in common shifts all scores of an example alike
    kernel = jnp.einsum('dr,hr,kr->hdk', basis, inverse, apart @ basis)
    return Linear(kernel, jnp.log(prior) - jnp.einsum('hdk,kd->hk', kernel, middle + apart / 2))


# Moments of one class after another: the labels, sorted, are cut into blocks of one class each.


def _by_class(y: np.ndarray, count: np.ndarray, B: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples of each block [C, B], which of them are not padding [C, B], and each class's first block [K + 1]."""
    B = B or int(np.clip(2 ** np.ceil(np.log2(count.mean())), 16, 1024))  # at most about thrice as many rows
    blocks = -(-count // B)
    first = np.r_[0, blocks.cumsum()]
    slot = np.arange(len(y)) + np.repeat(first[:-1] * B - np.r_[0, count.cumsum()[:-1]], count)
    rows, real = np.zeros(first[-1] * B, np.int32), np.zeros(first[-1] * B, bool)
    rows[slot], real[slot] = np.argsort(y, kind='stable'), True
    return rows.reshape(-1, B), real.reshape(-1, B), first


def _class_sum(f: Callable, k, x, mean, rows, real, first) -> jax.Array:
    """Σ f(block) over the blocks of class k, less its mean; padding is 0."""

    def part(c):
        return f((x[rows[c]].astype(mean.dtype) - mean[k]) * real[c][:, None])

    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(part, first[0]))
    return jax.lax.fori_loop(first[k], first[k + 1], lambda c, sum: sum + part(c), zero)


@jax.jit
def _ledoit_wolf(x, mean, prior, count, rows, real, first) -> jax.Array:
    """Σ_k p_k S_k, [D, D], each shrunk towards the diagonal as much as its own examples ask for.

    Of standardised examples z with correlations R: α = min(β, δ)/δ, D β = (mean |z|⁴ - |R|²)/N, D δ = |R - μ I|².
    """
    D = x.shape[1]

    def shrunk(sum, k):
        N = count[k]
        cov = _class_sum(lambda x: x.T @ x, k, x, mean, rows, real, first) / N
        variance = jnp.diagonal(cov)
        constant = variance <= (N * jnp.finfo(cov.dtype).eps * mean[k]) ** 2
        scale = jnp.sqrt(jnp.where(constant, 1, variance))
        fourth = _class_sum(lambda x: (((x / scale) ** 2).sum(1) ** 2).sum(), k, x, mean, rows, real, first) / N
        corr = cov / scale / scale[:, None]
        mu, square = jnp.trace(corr) / D, (corr**2).sum()
        beta, delta = (fourth - square) / N, square - D * mu**2
        alpha = jnp.where((beta > 0) & (delta > 0), jnp.minimum(beta, delta) / jnp.where(delta > 0, delta, 1), 0)
        return sum + prior[k] * ((1 - alpha) * cov + alpha * mu * jnp.diag(scale**2)), None

    return jax.lax.scan(shrunk, jnp.zeros((D, D), mean.dtype), jnp.arange(len(count)))[0]


@jax.jit
def _spectra(x, mean, count, rows, real, first) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [K, D] and eigenvectors [K, D, D] of each class's covariance."""

    def spectrum(k):
        e, basis = jnp.linalg.eigh(_class_sum(lambda x: x.T @ x, k, x, mean, rows, real, first) / count[k])
        return jnp.maximum(e, 0), basis.astype(x.dtype)

    return jax.lax.map(spectrum, jnp.arange(len(count)))


@jax.jit
def _spectra_of_few(x, mean, count, rows, real, first) -> tuple[jax.Array, jax.Array]:
    """The same from products of examples, R x R: [K, R] and [K, D, R], with zeros where a class has fewer."""

    def spectrum(k):
        apart = (x[rows[k]].astype(mean.dtype) - mean[k]) * real[k][:, None]  # [R, D]
        e, vectors = jnp.linalg.eigh(apart @ apart.T / count[k])
        null = e <= len(e) * jnp.finfo(e.dtype).eps * e.max()
        length = jnp.sqrt(count[k] * jnp.where(null, 1, e))
        return jnp.where(null, 0, e), jnp.where(null, 0, apart.T @ vectors / length).astype(x.dtype)

    return jax.lax.map(spectrum, jnp.arange(len(count)))


def _check_singular(variance: np.ndarray, e: np.ndarray, regs: np.ndarray, count: np.ndarray, D: int) -> None:
    singular = variance.min(-1) <= D * np.finfo(np.float64).eps * e.max(-1)  # [H, K]
    if singular.any():
        h, k = np.argwhere(singular)[0]
        raise UserError(
            f'QDA: the covariance of class {k} ({count[k]} examples of {D} features) is singular at reg {regs[h]:g}: '
            f'it needs more than {D} examples, none of whose features follows from others, or regs above 0, as 0.1.'
        )


@jax.jit
def _quadratic(head: Quadratic, x: jax.Array) -> jax.Array:
    def of_class(head):
        apart = x - head.mean
        z = jnp.matmul(apart, head.basis, precision=HIGHEST)  # [M, R]
        along = jnp.matmul(z * z, head.precision.T, precision=HIGHEST)  # [M, H]
        beside = (apart**2).sum(1) - (z * z).sum(1)  # [M]
        return head.bias - (along + beside[:, None] * head.rest) / 2

    by_class = head._replace(precision=jnp.moveaxis(head.precision, 1, 0), rest=head.rest.T, bias=head.bias.T)
    return jnp.transpose(jax.lax.map(of_class, by_class), (2, 1, 0))  # [H, M, K]
