"""The classifier around a backbone, and its head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl.errors import UserError
from jtl.models import build

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


def make(**kwargs):
    model = build('mlp', 5, hidden=(4,), **kwargs)
    return model, jit(lambda: model.init(jax.random.key(0), {'image': IMAGES}, train=False))()


def test_classify_from_given_features_equals_the_whole():
    model, variables = make()
    outputs = model.apply(variables, {'image': IMAGES}, train=False)
    features = model.apply(variables, {'image': IMAGES}, train=False, method='features')
    np.testing.assert_array_equal(features, outputs['features'])
    logits = model.apply(variables, features, train=False, method='classify')
    np.testing.assert_array_equal(logits, outputs['logits'])
    head = variables['params']['head']
    np.testing.assert_allclose(logits, np.asarray(features) @ head['kernel'] + head['bias'], atol=1e-6)
    assert np.abs(logits).max() > 0.1


def test_classify_needs_the_head_alone():
    model, variables = make()
    logits = model.apply({'params': {'head': variables['params']['head']}}, np.ones((2, 4)), False, method='classify')
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32


def test_head_zeros_starts_undecided():
    model, variables = make(head={'init': 'zeros'})
    assert not model.apply(variables, {'image': IMAGES}, train=False)['logits'].any()


def test_head_dropout_acts_in_training_only():
    model, variables = make(head={'dropout': 0.5})
    run = lambda train, seed: model.apply(
        variables, np.ones((2, 4)), train, method='classify', rngs={'dropout': jax.random.key(seed)}
    )
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert (run(True, 0) != run(True, 1)).any()


def test_mlp_prefers_features_to_image():
    model = build('mlp', 2, hidden=(3,))
    batch = {'features': np.ones((1, 6)), 'image': IMAGES}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    assert variables['params']['backbone']['fc1']['kernel'].shape == (6, 3)


def test_missing_input_names_what_is_needed():
    model = build('conv4', 2)
    with pytest.raises(UserError, match="Conv4 reads 'image', and the batch has only: label, tokens"):
        model.init(jax.random.key(0), {'tokens': np.ones((1, 2)), 'label': np.ones(1)}, train=False)
    with pytest.raises(UserError, match="MLP reads 'features' or 'image', and the batch has only: nothing"):
        build('mlp', 2).init(jax.random.key(0), {}, train=False)
