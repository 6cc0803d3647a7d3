"""Transferability scores against float64 references written from the papers, and what is proved of them."""

import functools

import jax
import numpy as np
import pytest
from references import h_score as slow_h_score
from references import h_score_regularised as slow_h_score_regularised
from references import leep as slow_leep
from references import log_density, log_evidence, shrinkage
from references import logme as slow_logme
from references import nce as slow_nce
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.datasets import load_digits, load_wine

from jtl.errors import UserError
from jtl.probe.scores import h_score, h_score_regularised, leep, logme, nce

RTOL = 1e-6  # of a score, against a reference that shares no code
EXACT = 1e-9  # between two ways of asking for the same
NEAR = functools.partial(np.testing.assert_allclose, rtol=EXACT, atol=EXACT)


def problem(N, D, K=3, seed=0):
    """Correlated features of unequal size and mean; classes of unequal size, each of two examples or more."""
    rng = np.random.default_rng(seed)
    y = np.minimum(rng.geometric(0.4, N) - 1, K - 1)
    y[: 2 * K] = np.arange(2 * K) % K
    x = rng.normal(size=(N, D)) @ rng.normal(size=(D, D)) / np.sqrt(D) + rng.normal(size=D) * 3
    x[np.arange(N), y] += 1.5
    return x, y


def source(N, Z=5, K=3, seed=0):
    """Probabilities of a source whose classes go with the target's, and y."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.r_[np.arange(K), np.minimum(rng.geometric(0.5, N - K) - 1, K - 1)])
    logits = rng.normal(size=(N, Z)) * 2
    logits[np.arange(N), (2 * y) % Z] += 2
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def hard_case(name):
    """Features, labels and the number of classes."""
    x, y = problem(40, 6)
    rng = np.random.default_rng(1)
    if name == 'constant features':
        return np.insert(x, [0, 3], [0.0, 0.1], axis=1), y, 3
    if name == 'absent classes':
        return x, np.array([1, 4, 5])[y], 7
    if name == 'a class with one example':
        return x, np.where(np.arange(40) == 7, 3, y), 4
    if name == 'duplicated features':
        return np.concatenate([x, x, 3 * x[:, :2]], 1), y, 3
    if name == 'duplicated examples':
        return np.concatenate([x, x[:25]]), np.concatenate([y, y[:25]]), 3
    if name == 'nearly separable':
        return np.eye(3)[y] + 1e-3 * rng.normal(size=(40, 3)), y, 3
    if name == 'sizes far apart':
        return x * np.array([1e-2, 1, 1, 30, 1, 1e2]), y, 3
    if name == 'no signal':
        return rng.normal(size=(40, 6)), rng.permutation(y), 3
    return *problem(*{'D < N': (60, 7), 'D > N': (20, 33), 'D = N': (21, 21)}[name]), 3


CASES = [
    'D < N',
    'D > N',
    'D = N',
    'constant features',
    'absent classes',
    'a class with one example',
    'duplicated features',
    'duplicated examples',
    'nearly separable',
    'sizes far apart',
    'no signal',
]


@pytest.mark.parametrize('case', CASES)
def test_logme_equals_maximising_the_evidence_directly(case):
    x, y, K = hard_case(case)
    np.testing.assert_allclose(logme(x, y, K), slow_logme(x, y, K), rtol=RTOL)


@pytest.mark.parametrize('case', CASES)
def test_h_score_equals_explicit_covariances(case):
    x, y, K = hard_case(case)
    np.testing.assert_allclose(h_score(x, y, K), slow_h_score(x, y), rtol=RTOL)


@pytest.mark.parametrize('case', CASES)
def test_h_score_regularised_equals_explicit_covariances(case):
    x, y, K = hard_case(case)
    np.testing.assert_allclose(h_score_regularised(x, y, K), slow_h_score_regularised(x, y), rtol=RTOL)


@pytest.mark.parametrize('load', [load_wine, load_digits])
def test_h_score_regularised_equals_scikit_learns_shrinkage_on_real_data(load):
    x, y = load(return_X_y=True)
    means = np.stack([x[y == k].mean(0) for k in range(y.max() + 1)])[y]
    fit = LedoitWolf().fit(x)
    expected = (1 - fit.shrinkage_) * np.trace(fit.precision_ @ np.cov(means, rowvar=False, bias=True))
    np.testing.assert_allclose(h_score_regularised(x, y, y.max() + 1), expected, rtol=RTOL)


@pytest.mark.parametrize('N, D', [(20, 7), (12, 30)])
def test_references_agree_with_other_definitions(N, D):
    x, y = problem(N, D)
    t = (y == 1).astype(float)
    NEAR(log_evidence(x, t, 0.3, 2.0), log_density(x, t, 0.3, 2.0))
    NEAR(shrinkage(x), ledoit_wolf_shrinkage(x))


def test_logme_of_several_labels_is_the_mean_over_them():
    x, y = problem(50, 6)
    several = np.stack([y == 0, y != 2, np.arange(50) % 3 == 0], 1).astype(np.float32)
    np.testing.assert_allclose(logme(x, several, 3), slow_logme(x, several, 3), rtol=RTOL)
    NEAR(logme(x, np.eye(3)[y], 3), logme(x, y, 3))


@pytest.mark.parametrize('N, D', [(60, 7), (20, 33)])
@pytest.mark.parametrize('score', [logme, h_score, h_score_regularised])
def test_scores_with_weights_count_examples_so_often(score, N, D):
    x, y = problem(N, D)
    if score is logme and D > N:  # repeated, they would be fitted exactly
        counts = np.random.default_rng(2).permuted(np.tile(np.arange(N) < 14, (3, 1)).astype(int), axis=1)
    else:
        counts = np.random.default_rng(2).multinomial(N, np.full(N, 1 / N), 3)
    found = score(x, y, 3, counts)
    assert found.shape == (3,)
    NEAR(found, [score(np.repeat(x, c, 0), np.repeat(y, c), 3) for c in counts])


@pytest.mark.parametrize('score', [leep, nce])
def test_counting_scores_with_weights_count_examples_so_often(score):
    p, y = source(40)
    counts = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), 3)
    NEAR(score(p, y, 3, counts), [score(np.repeat(p, c, 0), np.repeat(y, c), 3) for c in counts])
    counts = np.where(y == 1, 0, 1)  # a class goes altogether
    NEAR(score(p, y, 3, counts), score(p[y != 1], y[y != 1], 3))


@pytest.mark.parametrize('N', [2048, 2100, 4096])  # examples are taken in blocks of 2048
def test_scores_do_not_depend_on_blocks(N):
    x, y = problem(N, 4)
    p, _ = source(N)
    NEAR(h_score(x, y, 3), slow_h_score(x, y))
    joint = np.stack([p[y == k].sum(0) for k in range(3)])
    NEAR(leep(p, y, 3), np.log(((joint / joint.sum(0))[y] * p).sum(1)).mean())


@pytest.mark.parametrize('score', [logme, h_score, h_score_regularised])
def test_scores_of_float32_features_are_those_of_the_same_numbers_in_float64(score):
    x, y = load_digits(return_X_y=True)
    x = (x / 16 + 5).astype(np.float32)  # a mean far above the spread
    found = score(x, y, 10)
    assert found == score(x.astype(np.float64), y, 10)
    assert isinstance(found, float)
    assert not jax.config.jax_enable_x64


# What is proved


@pytest.mark.parametrize('N, D', [(50, 6), (20, 33)])
@pytest.mark.parametrize('score', [logme, h_score, h_score_regularised])
def test_scores_do_not_change_with_a_rotation_or_a_common_factor(score, N, D):
    x, y = problem(N, D)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(D, D)))[0]
    expected = score(x, y, 3)
    for same in x @ rotation, 1e3 * x, 1e-3 * x:
        np.testing.assert_allclose(score(same, y, 3), expected, rtol=1e-8)
    assert abs(score(x**3, y, 3) - expected) > 1e-3 or score is h_score  # it can change; not so with D ≥ N


def test_logme_does_not_change_with_repeated_features_or_zeros():
    x, y = problem(50, 6)
    NEAR(logme(np.concatenate([x, x, np.zeros((50, 60))], 1), y, 3), logme(x, y, 3))  # to D > N as well


def test_logme_falls_with_label_noise_and_is_least_without_signal():
    x, y = problem(300, 8)
    x[np.arange(300), y] += 3
    rng, scores = np.random.default_rng(4), []
    order = rng.permutation(300)
    for share in 0.0, 0.1, 0.3, 1.0:
        noisy, some = y.copy(), order[: int(300 * share)]
        noisy[some] = rng.permutation(y[some])  # classes keep their sizes
        scores.append(logme(x, noisy, 3))
    assert (np.diff(scores) < -0.01).all(), scores
    share = np.bincount(y) / 300  # α → ∞ is allowed: t ~ Normal(0, 1/β), at its best 1/β = mean t²
    assert scores[-1] > (-0.5 * (np.log(2 * np.pi * share) + 1)).mean()


def test_logme_of_labels_that_features_give_exactly_is_finite_and_larger_than_of_any_others():
    x, y = problem(40, 6)
    near = np.eye(3)[y] + 1e-3 * np.random.default_rng(0).normal(size=(40, 3))
    exact = logme(np.eye(3)[y], y, 3)
    assert np.isfinite(exact) and exact > logme(near, y, 3) + 1 > logme(x, y, 3) + 2


def test_h_score_does_not_change_with_an_invertible_map():
    x, y = problem(60, 6)
    rng = np.random.default_rng(5)
    NEAR(h_score(x @ rng.normal(size=(6, 6)) + rng.normal(size=6), y, 3), h_score(x, y, 3))


def test_h_score_is_within_0_and_the_smaller_of_classes_less_one_and_rank():
    for seed in range(5):
        x, y = problem(30, 9, K=5, seed=seed)
        assert 0 <= h_score_regularised(x, y, 5) <= h_score(x, y, 5) <= 4
        assert h_score(x[:, :2] @ np.ones((2, 9)), y, 5) < 1 + EXACT  # rank 1
    x, y = problem(20, 19, K=5)
    NEAR(h_score(x, y, 5), 4)  # D = N - 1: any labels are linear in the features
    NEAR(h_score(np.eye(5)[y], y, 5), 4)


def test_h_score_never_falls_with_more_features_nor_rises_with_classes_merged():
    x, y = problem(80, 12, K=4)
    scores = [h_score(x * (np.arange(12) < d), y, 4) for d in range(1, 13)]
    assert (np.diff(scores) > 0).all()
    assert h_score(x, np.minimum(y, 2), 3) < h_score(x, y, 4)


@pytest.mark.parametrize('N, Z, K', [(40, 5, 3), (60, 2, 6), (30, 40, 2)])
def test_leep_and_nce_equal_their_definitions(N, Z, K):
    p, y = source(N, Z, K)
    np.testing.assert_allclose(leep(p, y, K), slow_leep(p, y, K), rtol=RTOL)
    np.testing.assert_allclose(nce(p, y, K), slow_nce(p.argmax(1), y), rtol=RTOL)
    np.testing.assert_allclose(leep(p, y, K + 2), slow_leep(p, y, K), rtol=RTOL)  # absent classes


def test_leep_takes_source_classes_that_never_occur_and_float32():
    p, y = source(40)
    wide = np.insert(p, [1, 4], 0, axis=1)
    NEAR(leep(wide, y, 3), leep(p, y, 3))
    np.testing.assert_allclose(leep(p.astype(np.float32), y, 3), leep(p, y, 3), rtol=1e-6)


def test_leep_of_certain_predictions_is_nce():
    p, y = source(40)
    NEAR(leep(np.eye(5)[p.argmax(1)], y, 3), nce(p, y, 3))


def test_leep_and_nce_are_within_minus_the_entropy_of_labels_and_0():
    for seed in range(5):
        p, y = source(40, seed=seed)
        share = np.bincount(y) / 40
        lowest = (share * np.log(share)).sum()
        # LEEP's P(y | z) is a step of EM for the mixture Σ_z P(y | z) p_nz, from P(y | z) = P(y): likelihood rises
        assert lowest < leep(p, y, 3) < 0
        assert lowest < nce(p, y, 3) < 0
    NEAR(leep(np.full((40, 5), 0.2), y, 3), lowest)
    NEAR(nce(np.zeros(40, int), y, 3), lowest)
    NEAR(nce(np.arange(40), y, 3), 0)


def test_leep_is_at_most_the_likelihood_of_the_best_head_on_source_probabilities():
    p, y = source(40)
    given = np.stack([p[y == k].sum(0) for k in range(3)]) / p.sum(0)
    for _ in range(50):  # EM
        share = given[y] * p
        share /= share.sum(1, keepdims=True)
        given = np.stack([share[y == k].sum(0) for k in range(3)]) / share.sum(0)
    assert leep(p, y, 3) < np.log((given[y] * p).sum(1)).mean() - 1e-3


def test_leep_is_at_least_the_likelihood_through_the_most_likely_source_class():
    """The LEEP paper's relation to NCE: NCE with LEEP's own P(y | z), plus the mean log-probability of z.

    With P(y | z) by counts of z the sum can lie above LEEP, as the last lines show.
    """
    for seed in range(5):
        p, y = source(40, seed=seed)
        z = p.argmax(1)
        given = np.stack([p[y == k].sum(0) for k in range(3)]) / p.sum(0)
        assert leep(p, y, 3) > np.log(given[y, z]).mean() + np.log(p.max(1)).mean()
    p, y = np.full((3, 3), 0.2) + 0.4 * np.eye(3), np.arange(3)
    # LEEP: P(y | z) = p, so log(0.6² + 2 · 0.2²) = log 0.44; by counts NCE is 0, and the sum is log 0.6
    NEAR(leep(p, y, 3), np.log(0.44))
    NEAR(nce(p, y, 3), 0)


def test_nce_never_falls_with_finer_source_classes_and_not_with_other_names():
    p, y = source(60, Z=6)
    z = p.argmax(1)
    assert nce(z // 3, y, 3) < nce(z // 2 * 10 + z % 2, y, 3)
    assert nce(z // 3, y, 3) <= nce(z, y, 3)
    NEAR(nce(1000 - z, y, 3), nce(z, y, 3))
    NEAR(nce(np.array([3, 3, 3, 8]), np.array([0, 0, 1, 1]), 2), (2 * np.log(2 / 3) + np.log(1 / 3)) / 4)


def test_scores_refuse_what_makes_no_sense():
    x, y = problem(20, 4)
    p, _ = source(20)
    hole = np.where(np.arange(20)[:, None] == 3, np.nan, x)
    for message, call in {
        'not finite in 1 of 20': lambda: logme(hole, y, 3),
        'have the same': lambda: h_score(np.ones((20, 4)), y, 3),
        'from 0 to 1': lambda: h_score_regularised(x, y, 2),
        'several labels': lambda: h_score(x, np.eye(3)[y], 3),
        'labels below 3': lambda: logme(x, y.astype(float), 3),
        'expected 20 labels': lambda: leep(p, y[:5], 3),
        'softmax': lambda: leep(np.log(p), y, 3),
        'finite': lambda: nce(np.where(p > 0.5, np.nan, p), y, 3),
        'source labels': lambda: nce(y.astype(float), y, 3),
        'weights should be 20': lambda: logme(x, y, 3, np.ones(5)),
        'not all 0': lambda: nce(y, y, 3, np.zeros((2, 20))),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
