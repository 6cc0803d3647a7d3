"""Activation checkpointing: with `remat=True` the model is the same and keeps less for the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.models import build
from jtl.models.norm import hold_still

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
SMALL = {
    'vit': {'width': 16, 'depth': 2, 'heads': 2, 'mlp_ratio': 2, 'dropout': 0.2, 'drop_path': 0.5},
    'resnet': {'stages': (2, 1), 'width': 4, 'shortcut': 'projection'},
}
DEEP = {'vit': {'width': 32, 'depth': 8}, 'resnet': {'stages': (8,), 'width': 8}}


def pair(name, kwargs):
    """The model without and with remat."""
    return [build(name, 5, **kwargs, remat=remat) for remat in (False, True)]


def init(model, images=IMAGES):
    return model.init(jax.random.key(0), {'image': images}, train=False)


def loss_of(model, variables, images, seed=0, frozen=None):
    """params -> loss, (outputs, new statistics); in training, with frozen BatchNorm held still."""

    def loss(params):
        rngs = {'dropout': jax.random.key(seed)}
        with hold_still(frozen or {}):
            outputs, updates = model.apply(
                {**variables, 'params': params}, {'image': images}, train=True, rngs=rngs, mutable=['batch_stats']
            )
        return (outputs['logits'] ** 2).sum(), (outputs, updates.get('batch_stats', {}))

    return loss


def step(model, variables, seed=0, frozen=None):
    """-> outputs, new statistics, gradient."""
    run = lambda v: jax.value_and_grad(loss_of(model, v, IMAGES, seed, frozen), has_aux=True)(v['params'])
    (_, (outputs, stats)), grads = jit(run)(variables)
    return tuple(tree.flatten(x) for x in (outputs, stats, grads))


def assert_same(a, b):
    """Float32 summed in another order: 1e-5 of the largest entry in the tree."""
    assert a.keys() == b.keys()
    atol = 1e-5 * max((np.abs(x).max() for x in a.values()), default=0)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize('name', SMALL)
def test_remat_starts_from_the_same_parameters(name):
    kept, remade = (tree.flatten(jit(functools.partial(init, model))()) for model in pair(name, SMALL[name]))
    assert kept.keys() == remade.keys()
    for path in kept:
        np.testing.assert_array_equal(kept[path], remade[path])


@pytest.mark.parametrize('name', SMALL)
def test_remat_gives_the_same_outputs_statistics_and_gradients(name):
    """In training, so the ViT's dropout and stochastic depth draw the same masks: those of another seed differ."""
    kept, remade = pair(name, SMALL[name])
    variables = jit(functools.partial(init, kept))()
    expected = step(kept, variables)
    for a, b in zip(expected, step(remade, variables)):
        assert_same(a, b)
    if name == 'vit':
        other, _, _ = step(remade, variables, seed=1)
        assert np.abs(other['logits'] - expected[0]['logits']).max() > 0.1


def test_remat_holds_frozen_batchnorm_still():
    kept, remade = pair('resnet', SMALL['resnet'])
    variables = jit(functools.partial(init, kept))()
    variables = {**variables, 'batch_stats': jax.tree.map(lambda x: x + 0.5, variables['batch_stats'])}
    still = ('backbone/stage1/block1/', 'backbone/stage2/block0/shortcut/')
    frozen = {path: path.startswith(still) for path in tree.flatten(variables['params'])}

    free, result = step(remade, variables), step(remade, variables, frozen=frozen)  # one model, traced twice
    before = tree.flatten(variables['batch_stats'])
    for path in before:
        assert (before[path] != free[1][path]).any()
        assert (before[path] == result[1][path]).all() == path.startswith(still), path
    assert np.abs(free[0]['logits'] - result[0]['logits']).max() > 0.1
    for a, b in zip(step(kept, variables, frozen=frozen), result):
        assert_same(a, b)


@pytest.mark.parametrize('name', DEEP)
def test_remat_keeps_less_than_half(name):
    """Bytes that the forward pass leaves for the backward pass beside the parameters: 8 blocks, 16 images."""
    images = jnp.zeros((16, 16, 16, 3))

    def left(model):
        variables = jax.eval_shape(lambda: init(model, images))
        run = lambda v: jax.vjp(loss_of(model, v, images), v['params'], has_aux=True)[1]
        size = lambda leaves: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaves))
        return size(jax.eval_shape(run, variables)) - size(variables['params'])

    kept, remade = map(left, pair(name, DEEP[name]))
    assert kept > 2 * remade


@pytest.mark.parametrize('name', DEEP)
def test_remat_halves_the_memory_of_a_compiled_gradient(name):
    """XLA for the CPU merges the second computation with the first, unless told to leave the barrier between them."""
    images = jnp.zeros((16, 16, 16, 3))

    def peak(model):
        variables = jax.eval_shape(lambda: init(model, images))
        run = lambda v: jax.grad(loss_of(model, v, images), has_aux=True)(v['params'])
        options = {'xla_disable_hlo_passes': 'cse_barrier_expander', 'xla_backend_optimization_level': 0}
        compiled = jax.jit(run, compiler_options=options).lower(variables).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept, remade = map(peak, pair(name, DEEP[name]))
    assert kept > 2 * remade


@pytest.mark.parametrize('name', ['mlp', 'conv4'])
def test_remat_is_unknown_to_models_without_it(name):
    with pytest.raises(UserError, match='unknown key config.model.remat'):
        build(name, 5, remat=True)
