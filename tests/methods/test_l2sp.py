"""L2-SP against the penalty and the gradient worked out by hand, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.methods.l2sp import l2sp
from jtl.methods.supervised import supervised
from jtl.models import build

B, D, K = 6, 5, 4
RNG = np.random.default_rng(0)
BATCH = {
    'features': RNG.normal(size=(B, D)).astype(np.float32),
    'label': np.array([0, 3, 1, 1, 2, 0], np.int32),
    'mask': np.ones(B, np.float32),
}
PLAIN = supervised(build('mlp', K, hidden=(8,)))
ARGS = (BATCH, jax.random.key(1), jnp.int32(0))


def prepared(method, params=None):
    """Parameters as they came, a state that knows them, and others that have moved, biases as well."""
    fresh, state = jit(PLAIN.init)(jax.random.key(0), BATCH)
    params = {**fresh, **(params or {})}
    start, state = method.prepare(params, state, [BATCH], jax.random.key(0))
    return start, state, jax.tree.map(lambda w: w + RNG.normal(size=w.shape).astype(np.float32), start)


def by_hand(start, moved, alpha, beta):
    """The penalty and its gradient in float64: α (w - w⁰) outside the head, β w in it."""
    start, moved = ({k: np.asarray(v, np.float64) for k, v in tree.flatten(p).items()} for p in (start, moved))
    value, grads = 0.0, {}
    for path, w in moved.items():
        rate, pull = (beta, w) if path.startswith('head/') else (alpha, w - start[path])
        value += rate / 2 * (pull**2).sum()
        grads[path] = rate * pull
    return value, grads


def test_l2sp_adds_the_penalty_and_its_gradient():
    method = l2sp(PLAIN, alpha=0.3, beta=0.07)
    start, state, moved = prepared(method)
    expected, slopes = by_hand(start, moved, 0.3, 0.07)
    plain, _, before = jit(PLAIN.grads(PLAIN.loss))(moved, state, *ARGS)
    grads, _, metrics = jit(method.grads(method.loss))(moved, state, *ARGS)
    np.testing.assert_allclose(metrics['l2sp'], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], before['loss'] + expected, rtol=1e-6)
    plain, grads = tree.flatten(plain), tree.flatten(grads)
    for path, slope in slopes.items():
        np.testing.assert_allclose(grads[path] - plain[path], slope, atol=2e-6, err_msg=path)


def test_l2sp_jit_is_no_jit_and_predict_is_the_methods_own():
    method = l2sp(PLAIN)
    _, state, moved = prepared(method)
    np.testing.assert_allclose(method.loss(moved, state, *ARGS)[0], jit(method.loss)(moved, state, *ARGS)[0], rtol=1e-6)
    assert method.predict is PLAIN.predict and method.grads is PLAIN.grads


def test_l2sp_at_the_start_pulls_the_head_alone():
    method = l2sp(PLAIN, alpha=10.0, beta=0.5)
    start, state, _ = prepared(method)
    head = sum((np.asarray(w, np.float64) ** 2).sum() for w in jax.tree.leaves(start['head']))
    metrics = jit(method.loss)(start, state, *ARGS)[1][1]['metrics']
    np.testing.assert_allclose(metrics['l2sp'], 0.25 * head, rtol=1e-6)
    assert {'accuracy', 'l2sp'} <= metrics.keys()


def test_l2sp_pulls_an_adapter_to_its_start_and_keeps_copies_in_float32():
    method = l2sp(PLAIN, alpha=2.0, beta=0.0)
    adapter = {'lora': {'a': jnp.full((3,), 1.5, jnp.bfloat16)}}
    start, state, moved = prepared(method, adapter)
    kept = tree.flatten(state['l2sp'])
    assert set(kept) == {path for path in tree.flatten(start) if not path.startswith('head/')}
    assert all(w.dtype == jnp.float32 for w in kept.values())
    assert kept['backbone/fc1/kernel'] is not start['backbone']['fc1']['kernel']  # a step gives its buffers away
    moved = {**start, 'lora': {'a': start['lora']['a'] + 2}}
    np.testing.assert_allclose(jit(method.loss)(moved, state, *ARGS)[1][1]['metrics']['l2sp'], 3 * 2.0**2, rtol=1e-6)


def test_l2sp_of_an_overfitted_batch_stays_nearer_to_its_start():
    far = {}
    for alpha in (0.0, 1.0):
        method = l2sp(PLAIN, alpha=alpha, beta=0.0)
        params, state, _ = prepared(method)
        start, step = params, jit(method.grads(method.loss))
        for _ in range(150):
            grads, state, metrics = step(params, state, *ARGS)
            params = jax.tree.map(lambda w, g: w - 0.3 * g, params, grads)
        moved = jax.tree.map(jnp.subtract, params['backbone'], start['backbone'])
        far[alpha] = sum(jnp.sum(w**2) for w in jax.tree.leaves(moved))
        assert metrics['accuracy'] == 1.0  # of 6 examples in 4 classes; chance is 1/4
    assert far[1.0] < 0.2 * far[0.0]


@pytest.mark.parametrize('options', [{'alpha': -0.1}, {'beta': float('inf')}])
def test_l2sp_refuses(options):
    with pytest.raises(UserError, match=f'config.method.l2sp.{next(iter(options))}'):
        l2sp(PLAIN, **options)
