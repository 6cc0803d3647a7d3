"""The classifier around a backbone, and its heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import jit

from jtl import tree
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


FEATURES = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32) * np.array([[1], [2], [5]], np.float32)
ACTIVATIONS = {
    'relu': lambda x: np.maximum(x, 0),
    'gelu': lambda x: x * np.array([[0.5 * (1 + math.erf(v / 2**0.5)) for v in row] for row in x]),
    'tanh': np.tanh,
}


def head_of(options, features=FEATURES):
    """A head's parameters, with biases and scales of their own, in float64, and what runs it on features."""
    model = build('mlp', 5, hidden=(4,), head=options)
    start = model.init(jax.random.key(0), features, False, method='classify')
    rng = np.random.default_rng(2)
    params = {
        path: leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) * (not path.endswith('kernel'))
        for path, leaf in tree.flatten(start['params']).items()
    }

    def run(x=features, train=False, seed=0, **changes):
        rngs = {'dropout': jax.random.key(seed)}
        nested = tree.unflatten({**params, **changes})
        return model.apply({'params': nested}, x, train, method='classify', rngs=rngs)

    return {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}, run


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_mlp_head_against_float64(activation):
    p, run = head_of({'name': 'mlp', 'hidden': [6, 3], 'activation': activation, 'dropout': 0.5})
    assert {path: leaf.shape for path, leaf in p.items()} == {
        'head/fc1/kernel': (4, 6),
        'head/fc1/bias': (6,),
        'head/fc2/kernel': (6, 3),
        'head/fc2/bias': (3,),
        'head/kernel': (3, 5),
        'head/bias': (5,),
    }
    x = FEATURES.astype(np.float64)
    for layer in ('fc1', 'fc2'):
        x = ACTIVATIONS[activation](x @ p[f'head/{layer}/kernel'] + p[f'head/{layer}/bias'])
    np.testing.assert_allclose(run(), x @ p['head/kernel'] + p['head/bias'], rtol=1e-5, atol=1e-6)


def test_mlp_head_drops_what_is_hidden_and_only_in_training():
    # Keras's Dense(64, 'relu') → Dropout(0.5) → Dense: each hidden unit is there, twice, or it is not; features all are
    p, run = head_of({'name': 'mlp', 'hidden': (2,), 'dropout': 0.5})
    hidden = np.maximum(FEATURES @ p['head/fc1/kernel'] + p['head/fc1/bias'], 0)
    subsets = [hidden * 2 * np.array(kept) for kept in ((0, 0), (0, 1), (1, 0), (1, 1))]
    possible = np.stack([x @ p['head/kernel'] + p['head/bias'] for x in subsets])  # [4, B, K]
    seen = set()
    for seed in range(8):
        logits = np.asarray(run(train=True, seed=seed))
        error = np.abs(possible - logits).max(-1)  # [4, B]
        assert (error.min(0) < 1e-5).all()
        seen |= set(error.argmin(0).tolist())
    assert len(seen) >= 3
    np.testing.assert_array_equal(run(seed=1), run(seed=2))


def test_cosine_head_against_float64():
    p, run = head_of({'name': 'cosine', 'scale': 7.0})
    assert {path: leaf.shape for path, leaf in p.items()} == {'head/kernel': (4, 5), 'head/scale': ()}
    assert 7.1 <= p['head/scale'] <= 7.5  # of the given start, and what `head_of` adds
    x, w = FEATURES.astype(np.float64), p['head/kernel']
    cosine = (x @ w) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(run(), p['head/scale'] * cosine, rtol=1e-5, atol=1e-6)
    longer = {'head/kernel': p['head/kernel'] * np.array([1, 2, 3, 4, 5])}  # lengths do not matter
    np.testing.assert_allclose(run(FEATURES * 9, **longer), run(), rtol=1e-5, atol=1e-6)


def test_cosine_head_learns_its_scale_and_bears_zeros():
    p, run = head_of({'name': 'cosine'})
    x = FEATURES * np.array([[1], [0], [1]], np.float32)  # a ReLU backbone may give nothing but zeros
    value = lambda x, scale: (run(x, **{'head/scale': scale}) * np.arange(5)).sum()
    slopes = jax.grad(value, argnums=(0, 1))(x, jnp.float32(p['head/scale']))
    assert np.isfinite(slopes[0]).all() and not run(x)[1].any()
    np.testing.assert_allclose(slopes[1], value(x, p['head/scale']) / p['head/scale'], rtol=1e-5)  # it is linear in s


@pytest.mark.parametrize('name', ['mlp', 'cosine'])
def test_heads_overfit_labels_that_mean_nothing(name):
    """16 random rows of 8 features in 4 classes: more than a line can part, so an MLP learns all and a cosine most."""
    x = np.random.default_rng(3).normal(size=(16, 8)).astype(np.float32)
    labels = np.arange(16) % 4
    model = build('mlp', 4, head={'name': name})
    params, tx = model.init(jax.random.key(0), x, False, method='classify'), optax.adam(3e-2)

    def loss_fn(params):
        logits = model.apply(params, x, False, method='classify')
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    @jit
    def step(params, slots):
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, slots = tx.update(grads, slots)
        return optax.apply_updates(params, updates), slots, (logits.argmax(-1) == labels).mean()

    slots = tx.init(params)
    for _ in range(150):
        params, slots, accuracy = step(params, slots)
    assert accuracy >= {'mlp': 1.0, 'cosine': 0.75}[name]  # chance is 0.25


def test_every_head_is_the_same_function_of_a_config():
    assert build('mlp', 5, head={'name': 'linear', 'init': 'zeros'}) == build('mlp', 5, head={'init': 'zeros'})
    assert build('mlp', 5, head={'name': 'linear'}) == build('mlp', 5)
    a, b = (build('mlp', 5, head={'name': 'mlp', 'hidden': kind((64, 32))}) for kind in (list, tuple))
    assert a == b and hash(a) == hash(b) and a != build('mlp', 5, head={'name': 'mlp', 'hidden': (64,)})
    options = {'name': 'cosine'}
    build('mlp', 5, head=options)
    assert options == {'name': 'cosine'}


@pytest.mark.parametrize('head', [{'name': 'mlp', 'hidden': (3,)}, {'name': 'cosine'}], ids=lambda head: head['name'])
def test_logits_are_float32_whatever_the_backbone_computes_in(head):
    model = build('mlp', 5, hidden=(4,), dtype='bfloat16', head=head)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), {'image': IMAGES}, train=False))
    outputs = jax.eval_shape(lambda v: model.apply(v, {'image': IMAGES}, train=False), variables)
    assert outputs['logits'].shape == (3, 5) and outputs['logits'].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


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
