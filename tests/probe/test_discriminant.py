"""Discriminant analysis against scikit-learn; where it has no counterpart, against densities from scipy.

Moments are float64 inside, so float64 features show exactness.
"""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from jtl.errors import UserError
from jtl.probe import discriminant
from jtl.probe.discriminant import lda, nearest_mean, qda

SHRINKAGES = (0.5, 'auto', 0.0, 1.0, 0.02)
PRIORS = (0.2, 0.5, 0.3)


def problem(counts=(12, 41, 23), D=5, seed=0):
    """Classes of unequal size, each with a covariance and a mean of its own, features of unequal size."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + rng.normal(size=D) * 1.5 for n in counts]
    order = rng.permutation(sum(counts))
    return (np.concatenate(x) * rng.uniform(0.3, 3, D) + 5)[order], np.arange(len(counts)).repeat(counts)[order]


def in_float64(fit, *args, **kwargs):
    with jax.enable_x64():
        return fit(*args, **kwargs)


def posterior(head, x):
    """Log-probabilities [H, M, K], in float64."""
    with jax.enable_x64():
        return np.asarray(jax.nn.log_softmax(head.scores(x)))


@pytest.mark.parametrize('counts', [(12, 41, 23), (1, 41, 30)])  # one example is a class
@pytest.mark.parametrize('priors', [None, 'uniform', PRIORS])
@pytest.mark.filterwarnings('ignore:Only one sample')
def test_lda_equals_scikit_learn(counts, priors):
    x, y = problem(counts)
    found = posterior(in_float64(lda, x, y, 3, SHRINKAGES, priors=priors), x)
    given = np.full(3, 1 / 3) if priors == 'uniform' else priors
    for solver in ('lsqr', 'eigen'):
        for i, shrinkage in enumerate(SHRINKAGES):
            expected = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage, priors=given).fit(x, y)
            scores = x @ expected.coef_.T + expected.intercept_
            np.testing.assert_allclose(found[i], log_softmax(scores, axis=1), atol=1e-8)


def test_lda_of_two_classes_has_scikit_learns_coefficients():
    x, y = problem((12, 41))
    kernel, bias = in_float64(lda, x, y, 2, [0.1])
    expected = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=0.1).fit(x, y)
    np.testing.assert_allclose(kernel[0, :, 1] - kernel[0, :, 0], expected.coef_[0], atol=1e-10)
    np.testing.assert_allclose(bias[0, 1] - bias[0, 0], expected.intercept_[0], atol=1e-9)


def test_lda_ledoit_wolf_over_several_blocks_of_a_class_equals_scikit_learn():
    x, y = problem((3, 1500, 40, 30), D=6)  # blocks of 512
    found = posterior(in_float64(lda, x, y, 4, ['auto']), x)[0]
    expected = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto').fit(x, y)
    np.testing.assert_allclose(found, expected.predict_log_proba(x), atol=1e-8)


def test_lda_fewer_examples_than_features_equals_scikit_learn():
    x, y = problem((4, 7, 6), D=30)
    found = posterior(in_float64(lda, x, y, 3, (0.1, 'auto')), x)
    for i, shrinkage in enumerate((0.1, 'auto')):
        expected = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=shrinkage).fit(x, y)
        np.testing.assert_allclose(found[i], expected.predict_log_proba(x), atol=1e-8)


@pytest.mark.parametrize('priors', [None, 'uniform', PRIORS])
@pytest.mark.parametrize('towards', ['one', 'mean'])
def test_qda_equals_scikit_learn(priors, towards):
    x, y = problem()
    regs = (0.3, 0.0, 1.0)
    found = posterior(in_float64(qda, x, y, 3, regs, towards=towards, priors=priors), x)
    given = np.full(3, 1 / 3) if priors == 'uniform' else priors
    for i, reg in enumerate(regs):
        how = {'reg_param': reg} if towards == 'one' else {'solver': 'eigen', 'shrinkage': reg}
        expected = QuadraticDiscriminantAnalysis(**how, priors=given).fit(x, y)
        np.testing.assert_allclose(found[i], expected.predict_log_proba(x), atol=1e-8)


@pytest.mark.parametrize('counts', [(4, 7, 2), (4, 25, 3)])  # all classes, or some, have fewer examples than features
@pytest.mark.parametrize('towards', ['one', 'mean'])
def test_qda_of_few_examples_equals_the_densities(counts, towards):
    x, y = problem(counts, D=20)
    regs = (0.3, 0.01)
    found = posterior(in_float64(qda, x, y, 3, regs, towards=towards), x)
    for i, reg in enumerate(regs):
        joint = np.zeros((len(x), 3))
        for k in range(3):
            cov = np.cov(x[y == k].T, bias=True)
            cov = (1 - reg) * cov + reg * np.eye(20) * (1 if towards == 'one' else np.trace(cov) / 20)
            density = multivariate_normal(x[y == k].mean(0), cov)
            joint[:, k] = density.logpdf(x) + np.log((y == k).mean())
        np.testing.assert_allclose(found[i], log_softmax(joint, axis=1), rtol=1e-8, atol=1e-7)


def test_qda_of_few_examples_holds_as_many_directions():
    x, y = problem((4, 7, 2), D=20)
    assert qda(x.astype(np.float32), y, 3, [0.1]).basis.shape == (3, 20, 7)


@pytest.mark.parametrize('load', [load_digits, load_breast_cancer])
@pytest.mark.filterwarnings('ignore:self.within_class_std_dev_')
def test_discriminants_predict_as_scikit_learn_on_every_row(load):
    x, y = load(return_X_y=True)
    x, K = x.astype(np.float32), y.max() + 1
    train = np.random.default_rng(0).random(len(x)) < 0.6
    mine = lambda fit, *args, **kwargs: np.asarray(fit(x[train], y[train], K, *args, **kwargs).scores(x[~train]))
    theirs = lambda model: model.fit(x[train].astype(np.float64), y[train]).predict(x[~train].astype(np.float64))
    shrinkages = (0.01, 0.5, 'auto')
    for shrinkage, scores in zip(shrinkages, mine(lda, shrinkages), strict=True):
        expected = theirs(LinearDiscriminantAnalysis(solver='lsqr', shrinkage=shrinkage))
        np.testing.assert_array_equal(scores.argmax(-1), expected)
    for reg, scores in zip((0.1, 0.5), mine(qda, (0.1, 0.5), towards='mean'), strict=True):
        expected = theirs(QuadraticDiscriminantAnalysis(solver='eigen', shrinkage=reg))
        np.testing.assert_array_equal(scores.argmax(-1), expected)
    np.testing.assert_array_equal(mine(nearest_mean)[0].argmax(-1), theirs(NearestCentroid()))


def test_nearest_mean_euclid_orders_classes_by_distance():
    x, y = problem()
    scores = in_float64(lambda: np.asarray(nearest_mean(x, y, 3).scores(x))[0])
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    square = ((x[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(scores - scores[:, :1], (square[:, :1] - square) / 2, atol=1e-9)
    np.testing.assert_array_equal(scores.argmax(-1), NearestCentroid().fit(x, y).predict(x))


def test_nearest_mean_cosine_scores_are_cosines():
    x, y = problem()
    x[4] = 0
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    means = np.stack([unit[y == k].mean(0) for k in range(3)])
    head = in_float64(nearest_mean, x, y, 3, 'cosine')
    np.testing.assert_allclose(head.kernel[0].T, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_array_equal(head.bias, np.zeros((1, 3)))


def test_discriminants_of_features_that_never_vary_are_finite():
    x, y = problem()
    x = np.concatenate([x, np.full((len(x), 1), 1e4), np.zeros((len(x), 1))], 1).astype(np.float32)
    heads = lda(x, y, 3, SHRINKAGES), qda(x, y, 3, (0.1, 1.0)), nearest_mean(x, y, 3), nearest_mean(x, y, 3, 'cosine')
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(heads))
    assert all(np.isfinite(head.scores(x)).all() for head in heads)
    with_, without = (np.asarray(lda(a, y, 3, ['auto']).scores(a))[0] for a in (x, x[:, :5]))
    assert (with_.argmax(-1) == without.argmax(-1)).mean() > 0.9


def test_qda_refuses_a_singular_covariance_and_says_whose():
    x, y = problem((12, 41, 4))
    with pytest.raises(UserError, match=r'class 2 \(4 examples of 5 features\) is singular at reg 0: .*regs above 0'):
        qda(x, y, 3, (0.5, 0.0))
    with pytest.raises(UserError, match=r'class 0 \(12 examples of 6 features\)'):
        qda(np.concatenate([x, x[:, :1] * 2], 1), y, 3, [0.0])
    with pytest.raises(UserError, match=r'class 0 \(2 examples of 5 features\)'):
        qda(x[:6], np.repeat(range(3), 2), 3, [0.0])
    with pytest.raises(UserError, match=r"needs 2 examples .* '2' \(1\)"):
        qda(*problem((12, 41, 1)), 3, [0.5])


def test_qda_refuses_what_would_not_fit_in_memory(monkeypatch):
    x, y = problem()
    monkeypatch.setattr(discriminant, 'MOST', 3 * 5 * 5 * 8 - 1)
    with pytest.raises(UserError, match='3 classes and 5 features would take .* GiB'):
        qda(x, y, 3, [0.1])
    monkeypatch.setattr(discriminant, 'MOST', 3 * 5 * 5 * 8)
    qda(x, y, 3, [0.1])


def test_discriminants_refuse_what_they_cannot_fit():
    x, y = problem()
    several = np.eye(3)[y]
    for fit, rest in ((lda, ([0.1],)), (qda, ([0.1],)), (nearest_mean, ())):
        with pytest.raises(UserError, match='several labels'):
            fit(x, several, 3, *rest)
        with pytest.raises(UserError, match='2 examples for 3 classes'):
            fit(x[:2], y[:2], 3, *rest)
    for shrinkages in ((), (1.5,), ('automatic',), (np.nan,)):
        with pytest.raises(UserError, match='shrinkages'):
            lda(x, y, 3, shrinkages)
    for regs in ((), (-0.1,), (np.nan,)):
        with pytest.raises(UserError, match='regs'):
            qda(x, y, 3, regs)
    for priors in ('even', (0.5, 0.5), (-1, 1, 1), (0, 0, 0)):
        with pytest.raises(UserError, match='priors'):
            lda(x, y, 3, [0.1], priors=priors)
    with pytest.raises(UserError, match="did you mean 'one'"):
        qda(x, y, 3, [0.1], towards='ones')
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        nearest_mean(x, y, 3, 'cosin')
