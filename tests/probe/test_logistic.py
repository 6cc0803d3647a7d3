"""Logistic regression against scikit-learn's, and what must hold of the solver: no units, no lane minding another.

scikit-learn runs to a tight tolerance here; the coefficients it finds are then good to about 1e-7.
"""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression

from jtl.errors import UserError
from jtl.probe.heads import standard
from jtl.probe.logistic import _fit, logistic

LAMBDAS = (0.05, 1.0, 40.0)


def problem(N, D, K=3, seed=0):
    """Correlated features of unequal size and mean, classes of unequal size that overlap, unequal weights."""
    rng = np.random.default_rng(seed)
    y = rng.choice(K, N, p=np.arange(1, K + 1) / (K * (K + 1) / 2))
    y[:K] = np.arange(K)
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) / np.sqrt(D) + rng.normal(size=D) * 3
    x[np.arange(N), y] += 1.5
    return x, y, rng.uniform(0.2, 3, N)


def in_float64(*args, **kwargs):
    with jax.enable_x64():
        return jax.tree.map(np.asarray, logistic(*args, **kwargs))


def reference(x, y, penalty, weights=None):
    return LogisticRegression(C=1 / penalty, solver='newton-cholesky', tol=1e-10, max_iter=1000).fit(x, y, weights)


@pytest.mark.parametrize('N, D', [(120, 7), (25, 40), (30, 30)])
def test_logistic_equals_scikit_learn_with_weights(N, D):
    x, y, w = problem(N, D)
    head, ended = in_float64(x, y, 3, LAMBDAS, weights=w, tolerance=1e-9)
    assert ended.converged.all()
    for i, penalty in enumerate(LAMBDAS):
        expected = reference(x, y, penalty, w)
        np.testing.assert_allclose(head.kernel[i], expected.coef_.T, atol=2e-6)
        np.testing.assert_allclose(head.bias[i], expected.intercept_, atol=2e-6)


def test_logistic_of_two_classes_is_scikit_learns_one_sigmoid():
    x, y, w = problem(90, 6, K=2)
    head, _ = in_float64(x, y, 2, LAMBDAS, weights=w, tolerance=1e-9)
    scores = head.scores(x)
    for i, penalty in enumerate(LAMBDAS):
        expected = reference(x, y, penalty, w)
        np.testing.assert_allclose(head.kernel[i], np.stack([-expected.coef_[0], expected.coef_[0]], 1) / 2, atol=2e-6)
        np.testing.assert_allclose(jax.nn.softmax(scores[i]), expected.predict_proba(x), atol=2e-6)


def test_logistic_of_several_labels_is_a_regression_for_each():
    x, y, w = problem(80, 6, K=4)
    labels = np.stack([y == 0, y >= 2, x[:, 0] + x[:, 5] > np.median(x[:, 0] + x[:, 5])], 1).astype(np.float32)
    head, ended = in_float64(x, labels, 3, LAMBDAS, weights=w, tolerance=1e-9)
    assert head.kernel.shape == (3, 6, 3) and ended.converged.shape == (3,) and ended.converged.all()
    for i, penalty in enumerate(LAMBDAS):
        for k in range(3):
            expected = reference(x, labels[:, k], penalty, w)
            np.testing.assert_allclose(head.kernel[i, :, k], expected.coef_[0], atol=2e-6)
            np.testing.assert_allclose(head.bias[i, k], expected.intercept_[0], atol=2e-6)


@pytest.mark.parametrize('load, K', [(load_wine, 3), (load_breast_cancer, 2), (load_digits, 10)])
def test_logistic_in_float32_predicts_as_scikit_learn_in_float64(load, K):
    x, y = load(return_X_y=True)
    x = standard(x)(x)
    held_out = np.arange(len(x)) % 2 == 1  # so that rows near the boundary are among them
    head, ended = logistic(x[~held_out].astype(np.float32), y[~held_out], K, LAMBDAS)
    assert ended.converged.all()
    scores = head.scores(x.astype(np.float32))
    for i, penalty in enumerate(LAMBDAS):
        expected = reference(x[~held_out], y[~held_out], penalty)
        p = np.sort(expected.predict_proba(x), 1)
        clear = p[:, -1] - p[:, -2] > 1e-3
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(scores[i].argmax(1)[clear], expected.predict(x)[clear])


def test_logistic_of_features_as_they_come_needs_no_standardising():
    # sizes from 0.1 to 1e3; it took 191 iterations
    x, y = load_wine(return_X_y=True)
    head, ended = in_float64(x, y, 3, [1.0], tolerance=1e-9)
    assert ended.converged.all() and ended.iterations[0] < 300
    expected = reference(x, y, 1.0)
    np.testing.assert_allclose(head.kernel[0], expected.coef_.T, atol=1e-5)
    np.testing.assert_allclose(head.bias[0], expected.intercept_, atol=1e-4)


def test_logistic_weights_are_repetitions():
    x, y, _ = problem(60, 5)
    times = np.random.default_rng(1).integers(0, 4, 60)
    weighted, _ = in_float64(x, y, 3, LAMBDAS, weights=times, tolerance=1e-10)
    repeated, _ = in_float64(x.repeat(times, 0), y.repeat(times), 3, LAMBDAS, tolerance=1e-10)
    np.testing.assert_allclose(weighted.kernel, repeated.kernel, atol=1e-7)


def test_logistic_has_no_units():
    x, y, w = problem(60, 5)
    lambdas = np.asarray(LAMBDAS)
    head, ended = in_float64(x, y, 3, lambdas, weights=w)
    larger, same = in_float64(2**10 * x, y, 3, 2**20 * lambdas, weights=w)
    heavier, again = in_float64(x, y, 3, 2**10 * lambdas, weights=2**10 * w)
    np.testing.assert_array_equal(ended.iterations, same.iterations)
    np.testing.assert_array_equal(ended.iterations, again.iterations)
    np.testing.assert_allclose(head.kernel, 2**10 * larger.kernel, rtol=1e-6)
    np.testing.assert_allclose(head.kernel, heavier.kernel, rtol=1e-6)


def test_logistic_lanes_are_those_of_fits_one_by_one():
    x, y, w = problem(60, 5)
    together, ended = in_float64(x, y, 3, (1e-3, 1e4), weights=w)
    assert ended.iterations[0] > 3 * ended.iterations[1]  # the second waits for the first, and must stay where it is
    for i, penalty in enumerate((1e-3, 1e4)):
        alone, end = in_float64(x, y, 3, [penalty], weights=w)
        assert ended.iterations[i] == end.iterations[0]
        np.testing.assert_allclose(together.kernel[i], alone.kernel[0], rtol=1e-9, atol=1e-15)


def test_logistic_without_penalty_is_maximum_likelihood():
    x, y, _ = problem(200, 4)
    y[::4] = np.random.default_rng(1).permutation(y[::4])  # no planes part them
    head, ended = in_float64(x, y, 3, [0.0])
    assert ended.converged.all()
    error = np.asarray(jax.nn.softmax(head.scores(x)[0])) - np.eye(3)[y]  # orthogonal to the features, at the maximum
    assert np.abs(x.T @ error).max() / len(x) < 1e-6 and np.abs(error.mean(0)).max() < 1e-6


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_logistic_bears_constant_features_and_separable_classes(dtype):
    x, y, _ = problem(60, 5)
    x = np.concatenate([x, np.full((60, 1), 1e3), np.zeros((60, 1)), 50 * np.eye(3)[y]], 1).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        head, ended = logistic(x, y, 3, (0.0, 1e-6, 1.0))
        scores = np.asarray(head.scores(x))
    assert np.isfinite(scores).all() and np.isfinite(ended.gradient).all()
    assert ended.converged[1:].all()
    assert (scores.argmax(-1) == y).all()
    np.testing.assert_allclose(head.kernel[1:, 5:7], 0, atol=1e-4)


def test_logistic_of_a_class_that_never_occurs_gives_it_no_chance():
    x, y, _ = problem(60, 5)
    head, _ = in_float64(x, y, 4, [1.0])
    expected = reference(x, y, 1.0)
    p = jax.nn.softmax(head.scores(x)[0])
    assert p[:, 3].max() < 1e-6
    np.testing.assert_allclose(p[:, :3], expected.predict_proba(x), atol=1e-5)


def test_logistic_says_when_it_has_not_converged():
    x, y, _ = problem(60, 5)
    head, ended = logistic(x.astype(np.float32), y, 3, (1e-4, 1e6), iterations=10)
    assert ended.converged.tolist() == [False, True]
    assert ended.iterations[0] == 10 and ended.gradient[0] > 3e-5 >= ended.gradient[1]
    assert np.isfinite(head.kernel).all()


def test_logistic_takes_two_products_with_the_features_an_iteration():
    x, y, w = (v.astype(np.float32) for v in problem(60, 5))
    target = np.eye(3, dtype=np.float32)[y.astype(int)].T[None]
    program = jax.make_jaxpr(_fit, static_argnums=6)(x, target, w / w.sum(), np.ones(4, np.float32), 1e-5, 9, False)

    def products(jaxpr, inside):
        for e in jaxpr.eqns:
            if e.primitive.name == 'dot_general' and inside and len(x) in {n for v in e.invars for n in v.aval.shape}:
                yield e
            for p in e.params.values():
                if hasattr(p, 'jaxpr'):
                    yield from products(p.jaxpr, inside or e.primitive.name == 'while')

    assert len(list(products(program.jaxpr, False))) == 2


def test_logistic_names_what_is_wrong():
    x, y, w = problem(20, 4)
    with pytest.raises(UserError, match=r'lambdas \[1.0, -2.0\] should be numbers of at least 0'):
        logistic(x, y, 3, [1.0, -2.0])
    with pytest.raises(UserError, match='lambdas'):
        logistic(x, y, 3, [])
    for wrong in (-w, w[:-1], 0 * w):
        with pytest.raises(UserError, match='weights should be 20 numbers'):
            logistic(x, y, 3, [1.0], weights=wrong)
