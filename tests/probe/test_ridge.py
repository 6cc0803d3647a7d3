"""Ridge against scikit-learn, against refitting without each example, and primal against dual.

Everything inside is float64, so float64 features show exactness, and float32 ones what rounding the result costs.
"""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV

from jtl.errors import UserError
from jtl.probe.heads import class_weights
from jtl.probe.ridge import _right, best, dual, primal, ridge, solve

LAMBDAS = (0.03, 1.0, 30.0)


def problem(N, D, K=3, seed=0):
    """Correlated features of unequal size and mean, classes of unequal size, unequal weights."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.permutation(np.r_[np.arange(K).repeat(2), np.zeros(N - 2 * K, int)]))
    y[rng.permutation(N)[: N // 4]] = K - 1
    y[:K] = np.arange(K)
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) / np.sqrt(D) + rng.normal(size=D) * 3
    x[np.arange(N), y] += 1.5
    return x, rng.permutation(y), rng.uniform(0.2, 3, N)


def in_float64(fit, *args, **kwargs):
    with jax.enable_x64():
        return jax.tree.map(np.asarray, fit(*args, **kwargs))


@pytest.mark.parametrize('N, D', [(60, 7), (20, 33), (21, 21)])
def test_ridge_equals_scikit_learn_with_weights(N, D):
    x, y, w = problem(N, D)
    found = in_float64(ridge, x, y, 3, LAMBDAS, weights=w)
    for i, alpha in enumerate(LAMBDAS):
        expected = RidgeClassifier(alpha, solver='svd').fit(x, y, w)
        np.testing.assert_allclose(found.head.kernel[i], expected.coef_.T, atol=1e-9)
        np.testing.assert_allclose(found.head.bias[i], expected.intercept_, atol=1e-9)


@pytest.mark.parametrize('N, D', [(60, 7), (20, 33)])
def test_ridge_leave_one_out_equals_refitting_without_each(N, D):
    x, y, w = problem(N, D)
    w[[2, 5]] = 0  # learnt from by nobody, scored by all
    found = in_float64(ridge, x, y, 3, LAMBDAS, weights=w)
    target = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    for n in range(N):
        others = np.delete(np.arange(N), n)
        for i, alpha in enumerate(LAMBDAS):
            refit = Ridge(alpha, solver='svd').fit(x[others], target[others], w[others])
            np.testing.assert_allclose(found.loo[i, n], refit.predict(x[n : n + 1])[0], atol=1e-8)
    np.testing.assert_allclose(found.accuracy, w @ (found.loo.argmax(-1) == y).T / w.sum(), atol=1e-12)


@pytest.mark.parametrize('N, D', [(60, 7), (20, 33)])
def test_ridge_leave_one_out_equals_what_scikit_learn_stores(N, D):
    x, y, w = problem(N, D)
    found = in_float64(ridge, x, y, 3, LAMBDAS, weights=w)
    target = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    stored = RidgeCV(LAMBDAS, scoring=None, store_cv_results=True).fit(x, target, w).cv_results_  # [N, K, L]
    errors = (found.loo - target) ** 2 * w[:, None]  # it stores weighted squares
    np.testing.assert_allclose(errors, np.moveaxis(stored, -1, 0), atol=1e-8)
    stored = RidgeClassifierCV(LAMBDAS, store_cv_results=True).fit(x, y, w).cv_results_
    np.testing.assert_allclose(errors, np.moveaxis(stored, -1, 0), atol=1e-8)


@pytest.mark.parametrize('N, D', [(40, 9), (9, 40), (30, 30)])
def test_ridge_primal_equals_dual(N, D):
    x, y, w = problem(N, D)
    w[3] = 0
    target = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    with jax.enable_x64():
        one, two = (form(x, target, w, np.array(LAMBDAS), True, _right) for form in (primal, dual))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), one, two)


def test_ridge_of_float32_is_the_rounded_float64_even_where_lambda_is_tiny():
    x, y, _ = problem(80, 40)
    x[:, 20:] = x[:, :20] + 1e-3 * x[:, 20:]  # nearly collinear: in float32 the small eigenvalues would be noise
    x = x.astype(np.float32)
    lambdas = (1e-6, 1e-3, 1.0)
    single, double = ridge(x, y, 3, lambdas), in_float64(ridge, x.astype(np.float64), y, 3, lambdas)
    assert single.head.kernel.dtype == single.loo.dtype == single.accuracy.dtype == np.float32
    np.testing.assert_allclose(single.head.kernel, double.head.kernel, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(single.loo, double.loo, rtol=1e-6, atol=1e-6)
    assert np.abs(double.head.kernel[0] - double.head.kernel[1]).max() > 1  # the two λ do differ


@pytest.mark.parametrize('load', [load_digits, load_wine, load_breast_cancer])
def test_ridge_predicts_as_scikit_learn_on_every_row(load):
    x, y = load(return_X_y=True)
    x, K = x.astype(np.float32), y.max() + 1
    train = np.random.default_rng(0).random(len(x)) < 0.6
    found = ridge(x[train], y[train], K, LAMBDAS)
    for i, alpha in enumerate(LAMBDAS):
        expected = RidgeClassifier(alpha).fit(x[train].astype(np.float64), y[train]).predict(x[~train])
        np.testing.assert_array_equal(found.head.scores(x[~train])[i].argmax(-1), expected)


def test_ridge_multi_label_equals_scikit_learn():
    x, y, w = problem(50, 6)
    y = np.stack([y == 0, y != 1, x[:, 0] > 0], 1).astype(np.float32)
    found = in_float64(ridge, x, y, 3, LAMBDAS, weights=w)
    for i, alpha in enumerate(LAMBDAS):
        expected = RidgeClassifier(alpha).fit(x, y.astype(int), w)
        np.testing.assert_allclose(found.head.kernel[i], expected.coef_.T, atol=1e-8)
        np.testing.assert_array_equal(found.head.scores(x)[i] > 0, expected.predict(x) > 0)
    np.testing.assert_allclose(found.accuracy, ((found.loo > 0) == y).mean(-1) @ w / w.sum(), atol=1e-9)


def test_ridge_class_weights_equal_scikit_learn():
    x, y, _ = problem(50, 6)
    found = in_float64(ridge, x, y, 3, [2.0], weights=class_weights(y, 3, 'balanced').astype(np.float64))
    expected = RidgeClassifier(2.0, class_weight='balanced').fit(x, y)
    np.testing.assert_allclose(found.head.kernel[0], expected.coef_.T, atol=1e-6)  # weights come in float32


@pytest.mark.parametrize('N, D', [(2500, 5), (30, 41)])  # more and less than a block of examples
def test_ridge_without_loo_keeps_the_accuracy_and_no_scores(N, D):
    x, y, w = problem(N, D)
    kept, left = (in_float64(ridge, x, y, 3, LAMBDAS, weights=w, loo=keep) for keep in (True, False))
    assert left.loo is None
    np.testing.assert_allclose(left.accuracy, kept.accuracy, atol=1e-12)
    np.testing.assert_allclose(kept.accuracy, (kept.loo.argmax(-1) == y) @ w / w.sum(), atol=1e-12)
    expected = RidgeClassifier(1.0, solver='svd').fit(x, y, w)
    np.testing.assert_allclose(left.head.kernel[1], expected.coef_.T, atol=1e-9)


def test_solve_regression_equals_scikit_learn():
    x, _, w = problem(60, 7)
    targets = np.stack([x[:, 0] ** 2, x[:, 1] * 100], 1)
    found = in_float64(solve, x, targets, LAMBDAS, w)
    expected = Ridge(1.0).fit(x, targets, w)
    np.testing.assert_allclose(found.head.kernel[1], expected.coef_.T, rtol=1e-9)
    np.testing.assert_allclose(found.head.bias[1], expected.intercept_, rtol=1e-9)
    assert found.accuracy is None and found.loo.shape == (3, 60, 2)


def test_best_takes_the_largest_lambda_of_equals():
    x, y, _ = problem(40, 5)
    found = ridge(x, y, 3, (1.0, 30.0, 3.0))
    assert best(found._replace(accuracy=np.array([0.9, 0.7, 0.9]))) == 2
    assert best(found._replace(accuracy=np.array([0.7, 0.9, 0.9]))) == 1
    assert best(found._replace(accuracy=np.array([0.95, 0.9, 0.9]))) == 0


@pytest.mark.parametrize('N', [40, 8])
def test_ridge_features_that_never_vary_get_no_weight(N):
    x, y, w = problem(N, 12)
    x[:, 3], x[:, 4] = 1e4, 0
    found = ridge(x.astype(np.float32), y, 3, LAMBDAS, weights=w)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))
    np.testing.assert_allclose(found.head.kernel[:, 3:5], 0, atol=1e-7)


def test_ridge_refuses_what_it_cannot_fit():
    x, y, w = problem(30, 4)
    for lambdas in ((), (0.0, 1.0), (np.nan,), (-1.0,)):
        with pytest.raises(UserError, match='lambdas'):
            ridge(x, y, 3, lambdas)
    for weights in (w[:5], -w, w * np.inf, np.eye(30)[0]):
        with pytest.raises(UserError, match='weights'):
            ridge(x, y, 3, LAMBDAS, weights=weights)
    with pytest.raises(UserError, match='2 examples for 3 classes'):
        ridge(x[:2], y[:2], 3, LAMBDAS)
    with pytest.raises(UserError, match='not finite in 1 of 30'):
        ridge(np.where(np.arange(30)[:, None] == 4, np.nan, x), y, 3, LAMBDAS)
    with pytest.raises(UserError, match='targets'):
        solve(x, y, LAMBDAS)
