"""Logistic regression: the penalised maximum likelihood, by L-BFGS, for all strengths of the penalty at once.

The logits are linear in the parameters: along a direction d they are Z + t · Zd, so that a line search costs no product
with the features, and an iteration two: Zd, and the gradient. All lanes share both, folded into one matrix.

Legend: N examples, D features, K classes, L lambdas; inside the solver A lanes of C columns each: with one label an
example L lanes of K, with two classes L of 1, with several labels L·K of 1, as each class is a problem of its own;
R = min(N, D) directions and the bias; M pairs remembered.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError
from jtl.probe.heads import HIGHEST, Linear, one_hot

MEMORY = 10  # pairs of L-BFGS
SEARCH = 30  # evaluations of a line search, at most
SLOPE = 0.5  # of the slope at the start: a line search that has less is done


class Diagnostics(NamedTuple):
    """How each fit ended; with several labels, the worst of its classes."""

    iterations: np.ndarray  # [L]
    gradient: np.ndarray  # [L]: √(gᵀ B⁻¹ g / f), see `logistic`
    converged: np.ndarray  # [L]


class Basis(NamedTuple):
    """Features in their principal directions, about their mean, and a column of ones for the bias."""

    x: jax.Array  # [N, R + 1]
    mean: jax.Array  # [D]
    directions: jax.Array  # [D, R]
    variance: jax.Array  # [R + 1]: of each direction; 1 for the bias


class State(NamedTuple):
    """Where the lanes are."""

    theta: jax.Array  # [A, C, R + 1]
    logits: jax.Array  # [A, C, N]
    value: jax.Array  # [A]: the objective
    gradient: jax.Array  # [A, C, R + 1]
    steps: jax.Array  # [M, A, C, R + 1]: the last moves of theta
    turns: jax.Array  # [M, A, C, R + 1]: the changes of the gradient with them
    rho: jax.Array  # [M, A]: 1 / step · turn, 0 of a pair that is not used
    count: jax.Array  # iterations so far
    iterations: jax.Array  # [A]
    guess: jax.Array  # [A, C, R + 1]: B⁻¹, the inverse Hessian before any pair
    norm: jax.Array  # [A]: √(gᵀ B⁻¹ g / f)
    stuck: jax.Array  # [A]: the line search found nothing lower


def logistic(
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    lambdas: Sequence[float],
    *,
    weights: np.ndarray | None = None,
    tolerance: float | None = None,
    iterations: int = 1000,
) -> tuple[Linear, Diagnostics]:
    """Linear classifiers by maximum likelihood with a penalty on the kernel, for each of `lambdas`.

        min Σ_n w_n CE(x_n W + b, y_n) + λ/2 ‖W‖²,        λ = 1/C of scikit-learn's LogisticRegression

    CE is that of a softmax; of two classes that of one sigmoid with kernel u, which is penalised as λ/2 ‖u‖² and
    returned as W = (-u/2, u/2): scikit-learn's parameterisation and probabilities (a softmax's two columns would be
    penalised half as much). With several labels an example, CE is a sigmoid's for each class, and the fit that of K
    separate regressions. The bias is not penalised; the biases of a softmax sum to 0.

    L-BFGS (Liu & Nocedal 1989) starts from zero and works in the principal directions of the features. Its guess of the
    Hessian before it has seen any is diagonal there, B_k = covariance · mean p_k (1 - p_k) + λ/Σw for class k, at the
    present p: correlated features take as few iterations as others, and a weak penalty hardly more than a strong one.

    Args:
        x: features [N, D], float32 or float64; all is computed in their type.
        y: labels [N], or several of each [N, K] as zeros and ones.
        classes: K.
        lambdas: L strengths, at least 0.
        weights: of each example [N], at least 0.
        tolerance: a fit has converged when √(gᵀ B⁻¹ g / f) is no more, with f the objective and g its gradient, both
            divided by Σw; its square is about twice the relative excess of f over its minimum. It has no unit: the same
            when features or weights are scaled, and λ with them. None: 3e-5 in float32, 1e-8 in float64.
        iterations: of each fit, at most.

    Returns:
        The heads, H = L, and how each fit ended. Where there is no minimum (λ = 0 and classes that a plane separates,
        the bias of a class that never occurs), what the tolerance or the number of iterations stopped at.

    Raises:
        UserError: no lambda or a negative one; weights that are negative, or all 0.
    """
    lambdas = np.asarray(lambdas, x.dtype)
    if not lambdas.size or not (lambdas >= 0).all():
        raise UserError(f'logistic regression: lambdas {lambdas.tolist()} should be numbers of at least 0.')
    weights = np.ones(len(x), x.dtype) if weights is None else np.asarray(weights, x.dtype)
    if weights.shape != (len(x),) or not (weights >= 0).all() or not weights.any():
        raise UserError(f'logistic regression: weights should be {len(x)} numbers of at least 0, and not all 0.')
    single = y.ndim == 1
    target = one_hot(y, classes, x.dtype).T[None]  # [1, K, N]
    target = target[:, 1:] if single and classes == 2 else target
    sigmoid = not single or classes == 2
    per_class = target.shape[1] if sigmoid else 1  # lanes a lambda
    target = np.tile(target.reshape(per_class, -1, len(x)), (len(lambdas), 1, 1)) if sigmoid else target
    if tolerance is None:
        tolerance = 1e-8 if x.dtype == np.float64 else 3e-5
    kernel, bias, *ended = _fit(
        x,
        target,
        weights / weights.sum(),
        np.repeat(lambdas / weights.sum(), per_class),
        tolerance,
        iterations,
        sigmoid,
    )
    L, D = len(lambdas), x.shape[1]
    kernel = jnp.moveaxis(kernel.reshape(L, -1, D), 1, 2)  # [L, D, K], or [L, D, 1] of two classes
    bias = bias.reshape(L, -1)
    if single and classes == 2:
        kernel, bias = (jnp.concatenate([-u / 2, u / 2], -1) for u in (kernel, bias))
    count, norm = (np.asarray(v).reshape(L, -1).max(1) for v in ended)
    return Linear(kernel, bias), Diagnostics(count, norm, norm <= tolerance)


@partial(jax.jit, static_argnames='sigmoid')
def _fit(x, target, weights, lambdas, tolerance, iterations, sigmoid):
    """Kernels [A, C, D], biases [A, C], iterations [A] and norms [A], for weights that sum to 1."""
    basis = _basis(x, weights)
    penalty = lambdas[:, None, None] * jnp.ones_like(basis.variance).at[-1].set(0)  # [A, 1, R + 1]
    loss = partial(_loss, target=target, weights=weights, sigmoid=sigmoid)

    def guess_and_norm(value, gradient, spread):
        """B⁻¹ [A, C, R + 1], and √(gᵀ B⁻¹ g / f) [A]."""
        hessian = spread[..., None] * basis.variance + penalty
        guess = 1 / jnp.maximum(hessian, jnp.finfo(x.dtype).eps * hessian.max(-1, keepdims=True))
        return guess, jnp.sqrt(_dot(gradient, guess * gradient) / jnp.maximum(value, jnp.finfo(x.dtype).tiny))

    def running(s: State):
        left = s.value > jnp.finfo(x.dtype).eps ** 2  # else without penalty it would go on until numbers underflow
        return (s.norm > tolerance) & ~s.stuck & left

    def step(s: State) -> State:
        d = -_inverse(s)
        tilt = _product(d, basis.x.T)  # [A, C, N]: what the logits change by
        t, value, error, spread = _line_search(s, d, tilt, penalty, loss, running(s))
        move = t[:, None, None] * d
        theta = s.theta + move
        gradient = jnp.where(t[:, None, None] > 0, _product(error, basis.x) + penalty * theta, s.gradient)
        turn = gradient - s.gradient
        guess, norm = guess_and_norm(value, gradient, spread)
        bend, at = _dot(move, turn), s.count % MEMORY
        return State(
            theta=theta,
            logits=s.logits + t[:, None, None] * tilt,
            value=value,
            gradient=gradient,
            steps=s.steps.at[at].set(move),
            turns=s.turns.at[at].set(turn),
            rho=s.rho.at[at].set(jnp.where(bend > 0, 1 / jnp.where(bend > 0, bend, 1), 0)),
            count=s.count + 1,
            iterations=s.iterations + (t > 0),
            guess=guess,
            norm=jnp.where(t > 0, norm, s.norm),
            stuck=t == 0,
        )

    theta = jnp.zeros((len(lambdas), target.shape[1], len(basis.variance)), x.dtype)
    logits = jnp.zeros((*theta.shape[:2], len(x)), x.dtype)
    value, error, spread = loss(logits)
    gradient = _product(error, basis.x)
    guess, norm = guess_and_norm(value, gradient, spread)
    start = State(
        theta=theta,
        logits=logits,
        value=value,
        gradient=gradient,
        steps=jnp.zeros((MEMORY, *theta.shape), x.dtype),
        turns=jnp.zeros((MEMORY, *theta.shape), x.dtype),
        rho=jnp.zeros((MEMORY, len(theta)), x.dtype),
        count=0,
        iterations=jnp.zeros(len(theta), int),
        guess=guess,
        norm=norm,
        stuck=jnp.zeros(len(theta), bool),
    )
    s = jax.lax.while_loop(lambda s: (s.count < iterations) & running(s).any(), step, start)
    # what all classes have in common changes no probability, and without it the penalty is least
    theta = s.theta if sigmoid else s.theta - s.theta.mean(1, keepdims=True)
    kernel = _product(theta[..., :-1], basis.directions.T)  # [A, C, D]
    return kernel, theta[..., -1] - jnp.matmul(kernel, basis.mean, precision=HIGHEST), s.iterations, s.norm


def _basis(x, weights) -> Basis:
    """An orthogonal change of variables that the penalty does not feel, and no more than N of them."""
    mean, span = jnp.matmul(weights, x, precision=HIGHEST), None
    x = x - mean
    if x.shape[1] > len(x):  # the examples span N directions at most
        span, _ = jnp.linalg.qr(x.T)  # [D, N]
        x = jnp.matmul(x, span, precision=HIGHEST)
    _, directions = jnp.linalg.eigh(jnp.matmul(x.T * weights, x, precision=HIGHEST))  # [R, R]
    x = jnp.matmul(x, directions, precision=HIGHEST)
    x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
    variance = jnp.matmul(
        weights, x**2, precision=HIGHEST
    )  # small ones, too: an eigenvalue has the error of the largest
    if span is not None:
        directions = jnp.matmul(span, directions, precision=HIGHEST)
    return Basis(x, mean, directions, variance)


def _loss(logits, target, weights, sigmoid):
    """Mean cross-entropy [A], its derivative by the logits [A, C, N], and the mean of p (1 - p) [A, C].

    In terms of what the wrong classes have, so that it keeps its digits where p of the right one rounds to 1.
    """
    if sigmoid:
        sign = 1 - 2 * target
        wrong = sign * logits  # [A, 1, N]: the only other outcome's, where the right one's is 0
    else:
        wrong = jnp.where(target > 0, -jnp.inf, logits - (target * logits).sum(1, keepdims=True))  # [A, C, N]
    top = jnp.maximum(wrong.max(1, keepdims=True), 0)  # [A, 1, N]
    wrong = jnp.exp(wrong - top)
    rest = wrong.sum(1, keepdims=True)
    miss = wrong / (rest + jnp.exp(-top))  # [A, C, N]: p of each wrong class
    entropy = (top + jnp.log1p(rest + jnp.expm1(-top)))[:, 0]  # [A, N]
    error = sign * miss if sigmoid else miss - target * miss.sum(1, keepdims=True)
    return (weights * entropy).sum(-1), weights * error, (weights * jnp.abs(error) * (1 - jnp.abs(error))).sum(-1)


def _inverse(s: State):
    """The inverse Hessian times the gradient, as the pairs remember it: the two loops of L-BFGS; [A, C, R + 1]."""

    def at(i):  # the newest is 0
        j = (s.count - 1 - i) % MEMORY
        return s.steps[j], s.turns[j], s.rho[j]

    def forward(i, carry):
        q, alpha = carry
        step, turn, rho = at(i)
        a = rho * _dot(step, q)
        return q - a[:, None, None] * turn, alpha.at[i].set(a)

    def back(i, q):
        step, turn, rho = at(MEMORY - 1 - i)
        return q + (alpha[MEMORY - 1 - i] - rho * _dot(turn, q))[:, None, None] * step

    q, alpha = jax.lax.fori_loop(0, MEMORY, forward, (s.gradient, jnp.zeros_like(s.rho)))
    _, turn, rho = at(0)
    scale = rho * _dot(turn, s.guess * turn)
    scale = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 1)
    return jax.lax.fori_loop(0, MEMORY, back, scale[:, None, None] * s.guess * q)


def _line_search(s: State, d, tilt, penalty, loss, running):
    """How far to go along d [A], the objective there [A], and its derivative by the logits [A, C, N].

    The objective is convex: what the slopes seen so far leave is a bracket about its minimum, and the next guess is
    where the line through the slopes at its ends is 0. Slopes decide, as near the minimum float32 sees no difference
    between values. 0 of a lane that does not run or finds nothing lower.
    """
    slope0, pull, stiffness = _dot(s.gradient, d), _dot(s.theta, penalty * d), _dot(d, penalty * d)
    base = _dot(s.theta, penalty * s.theta) / 2
    most = s.value + 100 * jnp.finfo(tilt.dtype).eps * jnp.abs(s.value)
    seeks = running & (slope0 < 0)

    def look(carry):
        t, found, (low, slope_low), (high, slope_high), count, *_ = carry
        value, error, spread = loss(s.logits + t[:, None, None] * tilt)
        value = value + base + t * pull + t**2 / 2 * stiffness
        slope = _dot(error, tilt) + pull + t * stiffness
        over = slope > 0
        found = found | (jnp.abs(slope) <= -SLOPE * slope0) & (~over | (value <= most))
        further = jnp.clip(_zero(low, slope_low, t, slope), 2 * t, 10 * t)  # no upper end yet
        low, slope_low = jnp.where(over, low, t), jnp.where(over, slope_low, slope)
        high, slope_high = jnp.where(over, t, high), jnp.where(over, slope, slope_high)
        margin = (high - low) / 10
        between = jnp.clip(_zero(low, slope_low, high, slope_high), low + margin, high - margin)
        t = jnp.where(found, t, jnp.where(jnp.isinf(high), further, between))
        return t, found, (low, slope_low), (high, slope_high), count + 1, value, error, spread

    zero, inf = jnp.zeros_like(slope0), jnp.full_like(slope0, jnp.inf)
    first = (
        seeks.astype(zero.dtype),
        ~seeks,
        (zero, slope0),
        (inf, inf),
        0,
        zero,
        jnp.zeros_like(tilt),
        zero[:, None] * tilt[..., 0],
    )
    t, found, _, _, _, value, error, spread = jax.lax.while_loop(lambda c: ~c[1].all() & (c[4] < SEARCH), look, first)
    return jnp.where(found, t, 0), value, error, spread


def _zero(a, at_a, b, at_b):
    """Where the line through (a, at_a) and (b, at_b) is 0."""
    rise = at_b - at_a
    return a - at_a * (b - a) / jnp.where(rise > 0, rise, 1)


def _product(a, b):
    """[A, C, P], [P, Q] -> [A, C, Q], as one product."""
    return jnp.matmul(a.reshape(-1, a.shape[-1]), b, precision=HIGHEST).reshape(*a.shape[:2], -1)


def _dot(a, b):
    """[A, C, P], [A, C, P] -> [A]."""
    return (a * b).sum((1, 2))
