"""Linear CKA against the centring matrix and the sum over quadruples written out, and what does not change it."""

import numpy as np
import pytest
from references import cka as slow_cka
from references import cka_debiased as slow_cka_debiased
from sklearn.datasets import load_wine

from jtl.errors import UserError
from jtl.probe.cka import cka, cka_matrix

RTOL = 1e-9


def pair(N, C, D, seed=0):
    """Two layers with something in common, means far from 0, features of unequal size."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(N, 3))
    x = common @ rng.normal(size=(3, C)) + rng.normal(size=(N, C)) + 4
    y = (common @ rng.normal(size=(3, D)) + rng.normal(size=(N, D))) * rng.uniform(0.1, 5, D) - 7
    return x, y


@pytest.mark.parametrize('N, C, D', [(40, 5, 8), (12, 50, 30), (20, 3, 90), (15, 15, 15), (2, 3, 4)])
def test_cka_equals_its_definition(N, C, D):
    x, y = pair(N, C, D)
    np.testing.assert_allclose(cka(x, y), slow_cka(x, y), rtol=RTOL)


@pytest.mark.parametrize('N, C, D', [(9, 2, 4), (8, 30, 20), (4, 3, 3)])
def test_cka_debiased_equals_the_mean_over_quadruples(N, C, D):
    x, y = pair(N, C, D)
    np.testing.assert_allclose(cka(x, y, debiased=True), slow_cka_debiased(x, y), rtol=1e-8)


@pytest.mark.parametrize('debiased', [False, True])
def test_cka_by_features_equals_by_examples(debiased):
    x, y = pair(20, 6, 7)
    wide = [np.concatenate([f, np.zeros((20, 300))], 1) for f in (x, y)]  # zeros change the way, not the answer
    np.testing.assert_allclose(cka(*wide, debiased=debiased), cka(x, y, debiased=debiased), rtol=RTOL)


@pytest.mark.parametrize('debiased', [False, True])
def test_cka_does_not_change_with_rotation_factor_shift_or_order(debiased):
    x, y = pair(30, 6, 9)
    rng = np.random.default_rng(1)
    rotation, order = np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.permutation(30)
    expected = cka(x, y, debiased=debiased)
    for other in (
        cka(1e-4 * x @ rotation + 3, y, debiased=debiased),
        cka(y, x, debiased=debiased),
        cka(x[order], y[order], debiased=debiased),
    ):
        np.testing.assert_allclose(other, expected, rtol=1e-8)
    assert abs(cka(x[order], y, debiased=debiased) - expected) > 0.05
    assert abs(cka(x * np.arange(1, 7), y, debiased=debiased) - expected) > 1e-3


def test_cka_of_noise_is_biased_and_debiased_is_not():
    rng = np.random.default_rng(2)
    noise = [rng.normal(size=(50, 200)) for _ in range(8)]
    off = ~np.eye(8, dtype=bool)
    # E |Xᵀ Y|² = N D² and E |Xᵀ X|² = N D (N + D), about: D / (N + D) = 0.8
    np.testing.assert_allclose(cka_matrix(noise)[off].mean(), 0.8, atol=0.02)
    np.testing.assert_allclose(cka_matrix(noise, debiased=True)[off].mean(), 0, atol=0.02)


@pytest.mark.parametrize('debiased', [False, True])
def test_cka_matrix_is_all_pairs(debiased):
    layers = [*pair(30, 6, 6), pair(30, 6, 60)[1]]
    found = cka_matrix(layers, debiased=debiased)
    expected = [[cka(a, b, debiased=debiased) for b in layers] for a in layers]
    np.testing.assert_allclose(found, expected, rtol=RTOL)
    np.testing.assert_allclose(np.diag(found), 1, rtol=RTOL)
    assert (found == found.T).all()


def test_cka_of_features_that_never_vary_is_0():
    x, y = pair(10, 4, 6)
    assert cka(x, np.full((10, 3), 0.1)) == 0
    np.testing.assert_allclose(cka(np.insert(x, 2, 1e6, axis=1), y), cka(x, y), rtol=RTOL)
    np.testing.assert_allclose(cka_matrix([x, np.zeros((10, 3))]), [[1, 0], [0, 0]], rtol=RTOL)


def test_cka_of_float32_is_that_of_the_same_numbers_in_float64():
    x = load_wine(return_X_y=True)[0].astype(np.float32)
    assert cka(x[:, :6], x[:, 6:]) == cka(x[:, :6].astype(np.float64), x[:, 6:].astype(np.float64))


def test_cka_refuses_what_makes_no_sense():
    x, y = pair(10, 4, 6)
    with pytest.raises(UserError, match=r'got \(9, 6\)'):
        cka(x, y[1:])
    with pytest.raises(UserError, match='4 or more'):
        cka(x[:3], y[:3], debiased=True)
    with pytest.raises(UserError, match='finite'):
        cka(x, np.where(y > y.mean(), np.inf, y))
