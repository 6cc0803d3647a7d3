"""The MLP and Conv4."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.models import build
from jtl.models.conv4 import max_pool_2x2


def test_mlp_equals_numpy():
    model = build('mlp', 2, hidden=(5, 3))
    x = jax.random.normal(jax.random.key(1), (4, 6))
    variables = jit(lambda: model.init(jax.random.key(0), {'features': x}, train=False))()
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params']['backbone'])
    hidden = np.maximum(np.asarray(x, np.float64) @ params['fc1']['kernel'] + params['fc1']['bias'], 0)
    expected = np.maximum(hidden @ params['fc2']['kernel'] + params['fc2']['bias'], 0)
    features = model.apply(variables, {'features': x}, train=False, method='features')
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert (expected > 0).any()


def test_mlp_without_hidden_layers_is_a_linear_probe():
    model = build('mlp', 2, hidden=())
    x = jax.random.normal(jax.random.key(1), (4, 6))
    variables = jit(lambda: model.init(jax.random.key(0), {'features': x}, train=False))()
    assert set(tree.flatten(variables['params'])) == {'head/kernel', 'head/bias'}
    np.testing.assert_array_equal(model.apply(variables, {'features': x}, train=False)['features'], x)


def test_mlp_dropout_acts_in_training_only():
    model = build('mlp', 2, dropout=0.5)
    batch = {'image': jnp.ones((2, 2, 2, 1))}
    variables = jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    run = lambda train, seed: model.apply(variables, batch, train, rngs={'dropout': jax.random.key(seed)})['logits']
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert (run(True, 0) != run(True, 1)).any()


@pytest.mark.parametrize(
    'height, width, expected', [(84, 84, 1600), (28, 28, 64), (8, 8, 64), (1, 1, 64), (3, 40, 128)]
)
def test_conv4_features(height, width, expected):
    model = build('conv4', 5)
    batch = {'image': jnp.zeros((2, height, width, 3))}
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch, train=False))
    assert outputs['features'].shape == (2, expected)
    # 3·64·9 + 64 and then 3 · (64·64·9 + 64) for the convolutions, 4 · 128 for the BatchNorms
    assert tree.count(variables['params']['backbone']) == 1728 + 64 + 3 * (36864 + 64) + 512


def test_conv4_parameter_names():
    model = build('conv4', 5, width=4)
    batch = {'image': jnp.zeros((2, 8, 8, 1))}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))['params']['backbone']
    leaves = ('conv/kernel', 'conv/bias', 'bn/scale', 'bn/bias')
    assert set(tree.flatten(params)) == {f'block{i}/{leaf}' for i in range(1, 5) for leaf in leaves}


def test_max_pool_2x2_equals_flax_in_value_and_gradient():
    x = jax.random.permutation(jax.random.key(0), 2 * 7 * 6 * 3).astype(jnp.float32).reshape(2, 7, 6, 3)  # no ties
    y, vjp = jax.vjp(max_pool_2x2, x)
    y_reference, vjp_reference = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(y, y_reference)
    np.testing.assert_array_equal(vjp(y)[0], vjp_reference(y)[0])
