"""SAM on a quadratic, where it is a formula, and on an MLP against float64 finite differences in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import optim, tree
from jtl.errors import UserError
from jtl.method import Method
from jtl.methods.l2sp import l2sp
from jtl.methods.sam import sam
from jtl.methods.supervised import supervised
from jtl.models import build

B, D, K = 6, 5, 4
RNG = np.random.default_rng(0)
BATCH = {
    'features': RNG.normal(size=(B, D)).astype(np.float32),
    'label': np.array([0, 3, 1, 1, 2, 0], np.int32),
    'mask': np.ones(B, np.float32),
}
PLAIN = supervised(build('mlp', K, hidden=(3,)))
ARGS = (BATCH, jax.random.key(1), jnp.int32(0))

# L(w) = Σ h w² / 2 over two leaves of unequal size: ∇L = h w
H = {'a': np.array([1.0, 4.0, 0.5]), 'b': np.array([[2.0], [3.0]])}
W = {'a': np.array([2.0, -1.0, 3.0]), 'b': np.array([[0.5], [-0.25]])}


def quadratic(params, state, batch, rng, step):
    value = sum(jnp.sum(h * w**2) / 2 for h, w in zip(*map(jax.tree.leaves, (H, params))))
    return value, ({'passes': state['passes'] + 1}, {'metrics': {'seen': state['passes']}})


QUADRATIC = Method(init=None, loss=quadratic, predict=None)


def run(method, params, loss=None):
    grads = jit(method.grads(loss or method.loss))
    return grads(params, {'passes': jnp.int32(5)}, None, jax.random.key(0), jnp.int32(0))


def test_sam_on_a_quadratic_is_the_gradient_at_the_top_of_the_ball():
    params = jax.tree.map(jnp.float32, W)
    grads, state, metrics = run(sam(QUADRATIC, rho=0.7), params)
    g = {k: H[k] * W[k] for k in W}  # (2, -4, 1.5), (1, -0.75)
    norm = np.sqrt(4 + 16 + 2.25 + 1 + 0.5625)
    there = {k: W[k] + 0.7 * g[k] / norm for k in W}
    for k in W:
        np.testing.assert_allclose(grads[k], H[k] * there[k], rtol=1e-6)
    value = lambda w: sum((H[k] * w[k] ** 2).sum() / 2 for k in w)
    np.testing.assert_allclose(metrics['loss'], value(W), rtol=1e-6)
    np.testing.assert_allclose(metrics['sharpness'], value(there) - value(W), rtol=1e-5)
    assert state['passes'] == 6 and metrics['seen'] == 5  # the state has moved once


def test_asam_weighs_the_step_by_the_size_of_each_weight():
    params = jax.tree.map(jnp.float32, W)
    grads, _, _ = run(sam(QUADRATIC, rho=0.7, adaptive=True), params)
    t = {k: np.abs(W[k]) + 0.01 for k in W}
    norm = np.sqrt(sum(((t[k] * H[k] * W[k]) ** 2).sum() for k in W))
    for k in W:
        expected = H[k] * (W[k] + 0.7 * t[k] ** 2 * H[k] * W[k] / norm)
        np.testing.assert_allclose(grads[k], expected, rtol=1e-6)


def test_sam_where_the_gradient_is_zero_stays_there():
    grads, _, metrics = run(sam(QUADRATIC), jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.float32, W)))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads)) and metrics['sharpness'] == 0


def test_sam_does_not_move_what_is_frozen():
    params = jax.tree.map(jnp.float32, W)
    trained, frozen = {'a': params['a'], 'b': None}, {'a': None, 'b': params['b']}
    method = sam(QUADRATIC, rho=0.7)
    grads, _, _ = run(method, trained, optim.only(method.loss, frozen))
    g = H['a'] * W['a']
    np.testing.assert_allclose(grads['a'], H['a'] * (W['a'] + 0.7 * g / np.sqrt(22.25)), rtol=1e-6)
    assert grads['b'] is None


def mlp_loss(flat):
    """Mean cross-entropy of the MLP of `PLAIN` in float64."""
    hidden = np.maximum(BATCH['features'] @ flat['backbone/fc1/kernel'] + flat['backbone/fc1/bias'], 0)
    logits = hidden @ flat['head/kernel'] + flat['head/bias']
    logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logits[np.arange(B), BATCH['label']].mean()


def slopes(loss, flat, e=1e-6):
    """Central differences of every number."""
    found = {}
    for path, w in flat.items():
        found[path] = np.zeros_like(w)
        for i in np.ndindex(w.shape):
            bump = np.zeros_like(w)
            bump[i] = e
            found[path][i] = (loss({**flat, path: w + bump}) - loss({**flat, path: w - bump})) / (2 * e)
    return found


def test_sam_agrees_with_finite_differences_of_finite_differences():
    params, state = jit(PLAIN.init)(jax.random.key(3), BATCH)
    params = jax.tree.map(lambda w: w + RNG.normal(0, 0.3, w.shape).astype(np.float32), params)
    flat = {path: np.asarray(w, np.float64) for path, w in tree.flatten(params).items()}
    g = slopes(mlp_loss, flat)
    norm = np.sqrt(sum((v**2).sum() for v in g.values()))
    expected = slopes(mlp_loss, {path: w + 0.2 * g[path] / norm for path, w in flat.items()})
    method = sam(PLAIN, rho=0.2)
    grads, _, _ = jit(method.grads(method.loss))(params, state, *ARGS)
    plain, _, _ = jit(PLAIN.grads(PLAIN.loss))(params, state, *ARGS)
    for path, w in tree.flatten(grads).items():
        np.testing.assert_allclose(w, expected[path], atol=1e-5, err_msg=path)
    far = max(np.abs(w - expected[path]).max() for path, w in tree.flatten(plain).items())
    assert far > 1e-3  # and the plain gradient is another


def test_sam_goes_over_whatever_the_loss_is_made_of():
    both, other = sam(l2sp(PLAIN, alpha=3.0), rho=0.2), l2sp(sam(PLAIN, rho=0.2), alpha=3.0)
    params, state = jit(PLAIN.init)(jax.random.key(3), BATCH)
    params, state = both.prepare(params, state, [BATCH], jax.random.key(0))
    moved = jax.tree.map(lambda w: w + 0.3, params)
    a, _, measured = jit(both.grads(both.loss))(moved, state, *ARGS)
    b, _, _ = jit(other.grads(other.loss))(moved, state, *ARGS)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert {'l2sp', 'accuracy', 'sharpness', 'loss'} <= measured.keys()
    assert both.predict is PLAIN.predict


def test_sam_jit_is_no_jit():
    method, state = sam(QUADRATIC, rho=0.7), {'passes': jnp.int32(5)}
    compiled = run(method, W)
    eager = method.grads(method.loss)(jax.tree.map(jnp.float32, W), state, None, jax.random.key(0), jnp.int32(0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), compiled, eager)


def test_sam_overfits_one_batch():
    method = sam(supervised(build('mlp', K, hidden=(16,))), rho=0.05)
    params, state = jit(method.init)(jax.random.key(0), BATCH)
    step = jit(method.grads(method.loss))
    for _ in range(150):
        grads, state, metrics = step(params, state, *ARGS)
        params = jax.tree.map(lambda w, g: w - 0.3 * g, params, grads)
    assert metrics['accuracy'] == 1.0 and metrics['loss'] < 0.2  # chance is log 4 = 1.39


@pytest.mark.parametrize('rho', [0.0, -1.0, float('inf')])
def test_sam_refuses(rho):
    with pytest.raises(UserError, match='config.method.sam.rho'):
        sam(PLAIN, rho=rho)
