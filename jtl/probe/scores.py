"""How well a source's features, or its predictions, suit a target's labels, without training anything.

LogME and the H-scores need one eigendecomposition of the features, on the side where it is smaller:

    N ≥ D:  Xᵀ X = V e Vᵀ  [D, D]        D > N:  X Xᵀ = U e Uᵀ  [N, N]

and from it the squares (V_rᵀ Xᵀ t_k)² = e_r (U_rᵀ t_k)², one for each direction and target. LEEP and NCE count.

Every score is a function of examples that count w_n times: a row of weights [N] is one data set, and several [B, N]
give as many scores [B] from one compiled program. `bootstrap.py` makes intervals of them.

Everything is in float64 whatever the features are: a product Xᵀ X in float32 loses what lies below 1e-7 of the
largest eigenvalue, where LogME's evidence and the rank of the H-score still look.

Legend: N examples, D features, K classes, Z source classes, R = min(N, D) directions, B rows of weights.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError
from jtl.probe.heads import check, one_hot
from jtl.probe.ridge import blocked

EPS = float(np.finfo(np.float64).eps)
FLOOR = 1e-12  # of λ, in units of the largest eigenvalue
GRID, GOLDEN = 64, 60  # values of λ to start from, steps to refine the best by


def logme(x: np.ndarray, y: np.ndarray, classes: int, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Logarithm of the maximum evidence: how probable the labels are under a Bayesian linear model of the features.

        L_k = max over α, β of log p(t_k | X, α, β) / N,  t_k ~ Normal(0, X Xᵀ / α + I / β),  score = mean of L_k

    with t_k the zeros and ones of class k, and no intercept (You et al. 2021, LogME: Practical Assessment of
    Pre-trained Models for Transfer Learning; You et al. 2022, Ranking and Tuning Pre-trained Models). At λ = α/β the
    best α is N / Q with Q = t_kᵀ (X Xᵀ + λ)⁻¹ t_k, so that there is one number to search for:

        L_k(λ) = -½ [log 2π + 1 + log(Q / N) + (Σ_r log(e_r + λ) + (N - R) log λ) / N]

    The papers' fixed point is where its derivative is 0, approached in steps; here a grid and golden sections go to the
    maximum itself. Labels that the features give exactly have no maximum, the noise 1/β going to 0: λ is at least 1e-12
    of the largest eigenvalue. A class that does not occur has no evidence and is left out of the mean.

    Args:
        x: features [N, D].
        y: labels [N] int, or several of each example [N, K] (zeros and ones).
        classes: K.
        weights: how often each example counts, [N] or [B, N]. Repeated examples are evidence twice, and let features
            with D > N fit exactly what they should not: take intervals from examples left out (`bootstrap.jackknife`).

    Returns:
        The score, or [B] of them. Larger is better; it has no upper limit and no unit.

    Raises:
        UserError: features or labels that make no sense.
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(x, y, classes)
    return _over(_logme, weights, x, one_hot(y, classes, np.float64))


def h_score(x: np.ndarray, y: np.ndarray, classes: int, weights: np.ndarray | None = None) -> float | np.ndarray:
    """H-score: the share of the features' variance that lies between classes, summed over whitened directions.

        H = tr(cov(x)⁺ cov(E[x | y])),  0 ≤ H ≤ min(K - 1, rank)

    (Bao et al. 2019, An Information-Theoretic Approach to Transferability in Task Transfer Learning). It is the trace
    of a product of two projections, onto features and onto classes, so no invertible map of the features changes it,
    more features never lower it, and with D ≥ N - 1 it is K - 1 whatever the features are: compare sources by
    `h_score_regularised` unless N is much larger than D. Features are scaled to variance 1 first; directions with less
    than max(N, D) · 2e-16 of the largest variance then count as none.

    Args, returns, raises: as `logme`, for labels [N].
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(x, y, classes, several=False)
    return _over(_h_score, weights, x, one_hot(y, classes, np.float64))


def h_score_regularised(
    x: np.ndarray, y: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """H-score with a shrunk covariance, which keeps its meaning with few examples.

        H_a = tr(S⁻¹ (1 - a) cov(E[x | y])),  S = (1 - a) cov(x) + a tr(cov(x)) / D · I

    with `a` by Ledoit & Wolf 2004, all classes together (Ibrahim et al. 2022, Newer is not always better: Rethinking
    Transferability Metrics, their Peculiarities, Stability and Performance). Both covariances are divided by N. Between
    0 and `h_score`; rotations and a common factor of all features leave it as it is, other maps do not.

    Args, returns, raises: as `logme`, for labels [N].
    """
    x, y = np.asarray(x), np.asarray(y)
    _check(x, y, classes, several=False)
    return _over(_h_score_regularised, weights, x, one_hot(y, classes, np.float64))


def leep(p: np.ndarray, y: np.ndarray, classes: int, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Log expected empirical prediction: the likelihood of labels predicted through the source's own classes.

        LEEP = 1/N Σ_n log Σ_z P(y_n | z) p_nz,  P(y, z) = 1/N Σ_n [y_n = y] p_nz

    (Nguyen et al. 2020, LEEP: A New Measure to Evaluate Transferability of Learned Representations). At most 0, at
    least minus the entropy of the labels, and `nce` when all p are 0 or 1.

    Args:
        p: the source's probabilities [N, Z], after its softmax.
        y: labels [N].
        classes, weights: as in `logme`.

    Raises:
        UserError: rows that are no probabilities, labels that make no sense.
    """
    p, y = np.asarray(p), np.asarray(y)
    _check_labels(y, classes, len(p))
    if p.ndim != 2 or not (p >= 0).all() or not (np.abs(p.sum(1, dtype=np.float64) - 1) < 1e-3).all():
        raise UserError('LEEP: expected probabilities [N, Z] of the source, each row of sum 1: apply its softmax.')
    return _over(_leep, weights, p, one_hot(y, classes, np.float64))


def nce(source: np.ndarray, y: np.ndarray, classes: int, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Negative conditional entropy of the labels given the source's predicted class, in nats.

        NCE = -H(Y | Z) = Σ_yz P(y, z) log(P(y, z) / P(z))

    (Tran et al. 2019, Transferability and Hardness of Supervised Classification Tasks). Between minus the entropy of
    the labels and 0; a finer set of source classes never lowers it.

    Args:
        source: predicted source labels [N] int, or scores [N, Z], of which the largest is taken.
        y: labels [N].
        classes, weights: as in `logme`.

    Raises:
        UserError: labels that make no sense.
    """
    source, y = np.asarray(source), np.asarray(y)
    if source.ndim == 2 and not np.isfinite(source).all():
        raise UserError('NCE: scores of the source should be finite.')
    z = source.argmax(1) if source.ndim == 2 else source
    _check_labels(y, classes, len(z))
    if z.ndim != 1 or not np.issubdtype(z.dtype, np.integer):
        raise UserError(f'NCE: expected source labels [N] or scores [N, Z], got {z.dtype} {source.shape}.')
    return _over(_nce, weights, np.unique(z, return_inverse=True)[1], one_hot(y, classes, np.float64))


def _over(score: Callable, weights: np.ndarray | None, rows: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """The score, or one for each row of weights."""
    w = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    if w.shape[-1:] != (len(rows),) or w.ndim > 2 or not (np.isfinite(w) & (w >= 0)).all() or not w.any(-1).all():
        raise UserError(
            f'scores: weights should be {len(rows)} finite numbers, none below 0 and not all 0; got shape {w.shape}.'
        )
    with jax.enable_x64():
        found = np.asarray(_map(score, rows, target, w.reshape(-1, len(rows))))
    return found if w.ndim == 2 else float(found[0])


@functools.partial(jax.jit, static_argnames='score')
def _map(score: Callable, rows: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """[B, N] -> [B], one after the other: a decomposition uses all cores, and D² or N² of memory."""
    return jax.lax.map(lambda w: score(rows, target, w), weights)


def _logme(x: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    e, power, _ = _spectrum(x, t, w, jnp.zeros(x.shape[1]), scaled=False)
    kept = e > max(x.shape) * EPS * e.max()
    e = jnp.where(kept, e, 0)[:, None]  # [R, 1]
    inside = jnp.where(kept[:, None], power / jnp.where(kept[:, None], e, 1), 0)  # [R, K]
    n, square = w.sum(), w @ (t * t)  # [], [K]
    outside = square - inside.sum(0)
    outside = jnp.where(outside > 64 * EPS * square, outside, 0)  # what is left of a cancellation

    def evidence(log_lambda):  # [K] -> [K]
        shifted = e + jnp.exp(log_lambda)  # [R, K]
        q = (inside / shifted).sum(0) + outside / jnp.exp(log_lambda)
        log_det = jnp.log(shifted).sum(0) + (n - len(e)) * log_lambda  # a direction not kept counts as log λ
        return -0.5 * (jnp.log(2 * jnp.pi) + 1 + jnp.log(q / n) + log_det / n)

    occurs = square > 0
    inside = jnp.where(occurs, inside, 1)  # a logarithm of 0 otherwise
    best = _maximum(evidence, jnp.log(FLOOR * e.max()), jnp.log(1e8 * e.sum()), t.shape[1])
    return jnp.where(occurs, best, 0).sum() / occurs.sum()


def _maximum(f: Callable, low: jax.Array, high: jax.Array, K: int) -> jax.Array:
    """The largest values of f: [K] -> [K] between two numbers: the best of a grid, refined by golden sections."""
    grid = jnp.linspace(low, high, GRID)
    values = jax.lax.map(lambda g: f(jnp.full(K, g)), grid)  # [GRID, K]
    at, step, ratio = grid[values.argmax(0)], grid[1] - grid[0], (5**0.5 - 1) / 2

    def narrower(_, ends):
        a, b = ends
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        up = f(left) < f(right)
        return jnp.where(up, left, a), jnp.where(up, b, right)

    ends = jnp.maximum(at - step, low), jnp.minimum(at + step, high)
    a, b = jax.lax.fori_loop(0, GOLDEN, narrower, ends)
    return jnp.maximum(f((a + b) / 2), values.max(0))  # the grid has the ends themselves


def _h_score(x: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    e, power, _ = _spectrum(x, t, w, _mean(x, w), scaled=True)
    kept = e > max(x.shape) * EPS * e.max()
    return jnp.where(kept, _between(power, t, w) / jnp.where(kept, e, 1), 0).sum()


def _h_score_regularised(x: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    n, D, mean = w.sum(), x.shape[1], _mean(x, w)
    e, power, fourth = _spectrum(x, t, w, mean, scaled=False)
    e, level = e / n, e.sum() / n / D  # eigenvalues of the covariance, and their mean over all D
    spread = (e * e).sum() - D * level**2  # of the covariance around level · I
    noise = jnp.minimum((fourth / n - (e * e).sum()) / n, spread)  # of its estimate
    a = jnp.where(noise > 0, noise / jnp.where(noise > 0, spread, 1), 0)
    shrunk = (1 - a) * e + a * level  # [R]; 0 only where nothing varies
    return ((1 - a) * _between(power, t, w) / n / jnp.where(shrunk > 0, shrunk, 1)).sum()


def _between(power: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    """Squares of the projections onto sums of classes, [R, K] -> N times the variance of class means, [R]."""
    count = w @ t  # [K]
    return power @ jnp.where(count > 0, 1 / jnp.maximum(count, EPS), 0)


def _mean(x: jax.Array, w: jax.Array) -> jax.Array:
    return blocked(lambda x, w: w @ x.astype(w.dtype), x, w) / w.sum()


def _spectrum(x: jax.Array, t: jax.Array, w: jax.Array, mean: jax.Array, scaled: bool):
    """e [R], the squares (V_rᵀ Xᵀ t_k)² [R, K], and Σ_n w_n |x_n|⁴, of X = √w (x - mean).

    Args:
        scaled: divide each feature by its norm first; one that never varies is left out.
    """

    def moments(x, w):
        x = x.astype(w.dtype) - mean
        squares = x * x  # [N, D]
        return jnp.append(w @ squares, w @ squares.sum(1) ** 2)  # [D + 1]

    both = blocked(moments, x, w)
    square, fourth = both[:-1], both[-1]
    varies = square > 1e-26 * (square + w.sum() * mean**2)  # above what rounding leaves of a constant
    scale = jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, square, 1)), 0) if scaled else jnp.ones(len(mean))
    if len(x) >= x.shape[1]:

        def products(x, t, w):
            x = (x.astype(w.dtype) - mean) * scale
            return (x * w[:, None]).T @ jnp.concatenate([x, t], 1)

        gram = blocked(products, x, t, w)  # [D, D + K]
        e, basis = jnp.linalg.eigh(gram[:, : x.shape[1]])
        return jnp.maximum(e, 0), (basis.T @ gram[:, x.shape[1] :]) ** 2, fourth
    root = jnp.sqrt(w)[:, None]
    x = (x.astype(w.dtype) - mean) * scale * root
    e, basis = jnp.linalg.eigh(x @ x.T)
    e = jnp.maximum(e, 0)
    return e, e[:, None] * (basis.T @ (t * root)) ** 2, fourth


def _leep(p: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    joint = blocked(lambda p, t, w: (t * w[:, None]).T @ p.astype(w.dtype), p, t, w)  # [K, Z]
    marginal = joint.sum(0)
    given = joint / jnp.where(marginal > 0, marginal, 1)  # P(y | z)

    def likelihood(p, t, w):
        expected = ((t @ given) * p).sum(1)  # [N]; above 0 for whoever counts
        return w @ jnp.log(jnp.where(w > 0, expected, 1))

    return blocked(likelihood, p, t, w) / w.sum()


def _nce(z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    joint = jnp.zeros((len(z), t.shape[1])).at[z].add(t * w[:, None]) / w.sum()  # [≤ N source classes, K]
    given = joint / jnp.maximum(joint.sum(1, keepdims=True), EPS**2)
    return (joint * jnp.log(jnp.where(joint > 0, given, 1))).sum()


def _check(x: np.ndarray, y: np.ndarray, classes: int, several: bool = True) -> None:
    """As `heads.check`, except that classes may be absent."""
    if y.ndim == 2 and not several:
        raise UserError('H-score: examples here have several labels each; LogME takes those.')
    _check_labels(y, classes, len(x))
    present, y = np.unique(y, return_inverse=True) if y.ndim == 1 else (np.arange(classes), y)
    check(x, y, [str(k) for k in present])


def _check_labels(y: np.ndarray, classes: int, n: int) -> None:
    if y.ndim == 2 and y.shape == (n, classes) and np.isin(y, (0, 1)).all() and y.any():
        return
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer) or not n:
        raise UserError(f'scores: expected {n} labels below {classes}, got {y.dtype} {y.shape}.')
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f'scores: labels {y.min()} to {y.max()} should be from 0 to {classes - 1}.')
