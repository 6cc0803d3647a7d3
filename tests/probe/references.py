"""Scores written from the papers' definitions, in float64 NumPy: slow, obvious, sharing nothing with what they test.

Legend: N examples, D features, K classes, Z source classes.
"""

import itertools

import numpy as np
from scipy.optimize import minimize


def log_evidence(x, t, alpha, beta):
    """log p(t | x, α, β) as in the LogME paper, through the posterior mean and the D × D matrix A."""
    N, D = x.shape
    A = alpha * np.eye(D) + beta * x.T @ x
    m = beta * np.linalg.solve(A, x.T @ t)
    fit = beta / 2 * ((x @ m - t) ** 2).sum() + alpha / 2 * (m @ m)
    log_det = np.linalg.slogdet(A)[1]
    return N / 2 * np.log(beta) + D / 2 * np.log(alpha) - N / 2 * np.log(2 * np.pi) - fit - log_det / 2


def log_density(x, t, alpha, beta):
    """The same as the density of t ~ Normal(0, x xᵀ / α + 1 / β), through an N × N matrix."""
    S = x @ x.T / alpha + np.eye(len(x)) / beta
    return -0.5 * (len(x) * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + t @ np.linalg.solve(S, t))


def logme(x, y, classes):
    """The mean over classes that occur of max over α and β of the log evidence / N, from several starts."""
    targets = y if y.ndim == 2 else (y[:, None] == np.arange(classes)).astype(float)
    x = x / np.sqrt(np.linalg.eigvalsh(x @ x.T)[-1])  # α takes up any common factor
    best = []
    for t in targets[:, targets.any(0)].T:

        def loss(p, t=t):
            return -log_evidence(x, t, *np.exp(np.clip(p, -60, 60))) / len(x)

        found = []
        for start in itertools.product((-24, -16, -8, 0), (0, 6)):
            one = minimize(loss, start, method='Nelder-Mead', options={'xatol': 1e-7, 'fatol': 1e-13, 'maxiter': 2000})
            found.append(-one.fun)
        best.append(max(found))
    return np.mean(best)


def between(x, y):
    """The covariance of the features each example would have were it the mean of its class."""
    means = np.stack([x[y == k].mean(0) for k in y])
    return np.cov(means, rowvar=False, bias=True)


def h_score(x, y):
    """tr(cov(x)⁺ cov(E[x | y])). The pseudo-inverse cuts at 1e-11, between what varies here and what is rounding."""
    return np.trace(np.linalg.pinv(np.cov(x, rowvar=False, bias=True), rcond=1e-11, hermitian=True) @ between(x, y))


def shrinkage(x):
    """Ledoit & Wolf 2004, with the norm <A, B> = tr(A Bᵀ) / D: b² / d², as their section 3 has it."""
    N, D = x.shape
    x = x - x.mean(0)
    S = x.T @ x / N
    m = np.trace(S) / D
    d2 = ((S - m * np.eye(D)) ** 2).sum() / D
    b2 = sum(((np.outer(row, row) - S) ** 2).sum() / D for row in x) / N**2
    return min(b2, d2) / d2 if d2 else 0.0


def h_score_regularised(x, y):
    S, a = np.cov(x, rowvar=False, bias=True), shrinkage(x)
    shrunk = (1 - a) * S + a * np.trace(S) / len(S) * np.eye(len(S))
    return np.trace(np.linalg.inv(shrunk) @ ((1 - a) * between(x, y)))


def leep(p, y, classes):
    N, Z = p.shape
    joint = np.zeros((classes, Z))
    for n, z in itertools.product(range(N), range(Z)):
        joint[y[n], z] += p[n, z] / N
    total = 0
    for n in range(N):
        total += np.log(sum(joint[y[n], z] / joint[:, z].sum() * p[n, z] for z in range(Z) if p[n, z] > 0))
    return total / N


def nce(source, y):
    """-H(Y | Z) as the mean over examples of log P(y_n | z_n)."""
    given = [np.mean(y[source == z] == k) for z, k in zip(source, y, strict=True)]
    return np.mean(np.log(given))


def cka(x, y):
    """Kornblith et al.: HSIC with the centring matrix written out."""
    N = len(x)
    H = np.eye(N) - 1 / N

    def hsic(K, L):
        return np.trace(K @ H @ L @ H) / (N - 1) ** 2

    K, L = x @ x.T, y @ y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def hsic_unbiased(K, L):
    """Song et al.: the mean of the U-statistic's kernel over all ordered quadruples of different examples."""
    total = count = 0
    for i, j, q, r in itertools.permutations(range(len(K)), 4):
        total += K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q]
        count += 1
    return total / count


def cka_debiased(x, y):
    K, L = x @ x.T, y @ y.T
    return hsic_unbiased(K, L) / np.sqrt(hsic_unbiased(K, K) * hsic_unbiased(L, L))
