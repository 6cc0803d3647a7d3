"""Losses against float64 formulas, finite differences and cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtl import losses

B, K = 6, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, K)) * 3
LABEL = np.array([0, 3, 1, 1, 2, 0], np.int32)
WEIGHT = np.array([0.5, 1.0, 2.0, 3.0])
SMOOTH = 0.9 * np.eye(K)[LABEL] + 0.1 / K
SEVERAL = np.abs(np.eye(K)[LABEL] - (RNG.random((B, K)) > 0.6)) * 0.9 + 0.05  # smoothed zeros and ones


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
def test_softmax_cross_entropy_against_float64(gamma):
    p = softmax(LOGITS)
    expected = -(WEIGHT * SMOOTH * (1 - p) ** gamma * np.log(p)).sum(-1)
    found = losses.softmax_cross_entropy(LOGITS.astype(np.float32), SMOOTH, WEIGHT, gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
def test_sigmoid_cross_entropy_against_float64(gamma):
    p, y = sigmoid(LOGITS), SEVERAL
    terms = y * (1 - p) ** gamma * np.log(p) + (1 - y) * p**gamma * np.log(1 - p)
    found = losses.sigmoid_cross_entropy(LOGITS.astype(np.float32), y, WEIGHT, gamma)
    np.testing.assert_allclose(found, -(WEIGHT * terms).mean(-1), rtol=1e-5)


def test_focal_of_one_label_is_the_paper_s():
    # (1 - p_t)^2 of the cross-entropy: at p_t = 0.9, 0.5 and 0.1 that is 0.01, 0.25 and 0.81 of it
    p = np.array([0.9, 0.5, 0.1])
    logits = np.stack([np.log(p), np.log(1 - p)], 1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.zeros(3, int))
    focal = losses.softmax_cross_entropy(jnp.asarray(logits), jnp.eye(2)[jnp.zeros(3, int)], 1.0, 2.0)
    np.testing.assert_allclose(focal / entropy, [0.01, 0.25, 0.81], rtol=1e-5)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('kind, target', [('softmax', SMOOTH), ('sigmoid', SEVERAL)])
def test_gradients_agree_with_finite_differences(kind, target, gamma):
    with jax.enable_x64():
        entropy = getattr(losses, f'{kind}_cross_entropy')
        value = lambda z: entropy(z, jnp.asarray(target), jnp.asarray(WEIGHT), gamma).sum()
        slopes = jax.grad(value)(jnp.asarray(LOGITS))
        for i, k in ((0, 0), (2, 3), (5, 1)):
            step = np.zeros((B, K))
            step[i, k] = 1e-5
            expected = (value(jnp.asarray(LOGITS + step)) - value(jnp.asarray(LOGITS - step))) / 2e-5
            np.testing.assert_allclose(slopes[i, k], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_gradients_are_finite_where_float32_ends(kind, gamma):
    logits = jnp.array([[300.0, -300.0, 0.0], [-300.0, 300.0, 0.0]])  # right without a doubt, and wrong
    target = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    entropy = getattr(losses, f'{kind}_cross_entropy')
    value, slopes = jax.value_and_grad(lambda z: entropy(z, target, 1.0, gamma).sum())(logits)
    assert np.isfinite(value) and np.isfinite(slopes).all()
    assert slopes[1, 0] < -0.3  # what is wrong is still corrected


def test_smooth_keeps_the_mass():
    np.testing.assert_allclose(losses.smooth(np.eye(4)[[1]], 0.2, floor=4), [[0.05, 0.85, 0.05, 0.05]])
    np.testing.assert_allclose(losses.smooth(np.array([[0.0, 1.0]]), 0.2, floor=2), [[0.1, 0.9]])


def test_masked_mean_leaves_padding_out():
    value = jnp.array([1.0, 2.0, 9.0])
    assert losses.masked_mean(value, {'mask': jnp.array([1.0, 1.0, 0.0])}) == 1.5
    assert losses.masked_mean(value, {}) == 4.0
    assert losses.masked_mean(value, {'mask': jnp.zeros(3)}) == 0.0


def test_hits():
    logits = jnp.array([[1.0, 2.0, 0.0], [3.0, -1.0, 1.0]])
    np.testing.assert_array_equal(losses.hits(logits, jnp.array([1, 2])), [1, 0])
    several = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])  # decisions 1 1 0 and 1 0 1
    np.testing.assert_allclose(losses.hits(logits, several), [2 / 3, 1], rtol=1e-6)
