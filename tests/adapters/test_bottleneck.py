"""Bottleneck adapters against the same network with them written out."""

import math

import jax
import numpy as np
from adapting import FAMILIES, PICTURES, build, fresh, outlined, trained, variables_of
from flax import linen as nn
from tiny import jit

from jtl import tree

ERF = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + ERF(x / 2**0.5)) / 2


def test_bottleneck_follows_a_layer():
    """One on the only layer of an MLP, in numpy and float64: relu(y + gelu(y W + b) V + c), y = x K + k."""
    model = build('mlp', hidden=(7,), bottleneck={'width': 3})
    batch = FAMILIES['mlp'][1]
    variables = variables_of(model, batch)
    layer, own = variables['params']['backbone']['fc1'], variables['params']['bottleneck']['backbone']['fc1']
    y = batch['features'].astype(np.float64) @ layer['kernel'] + layer['bias']
    expected = np.maximum(y + gelu(y @ own['down'] + own['down_bias']) @ own['up'] + own['up_bias'], 0)
    found = model.apply(variables, batch, train=False, method='features')
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_bottleneck_sits_before_the_residual_of_a_transformer():
    """After attention and MLP, as in the paper: an interceptor that adds a constant there does what `up_bias` does."""
    model = build('vit', bottleneck={'width': 2})
    variables = variables_of(model, PICTURES)
    own = jax.tree.map(np.zeros_like, variables['params']['bottleneck'])
    add = {'attn': np.arange(8, dtype=np.float32), 'mlp': np.arange(8, dtype=np.float32)[::-1] / 3}
    for part, value in add.items():
        own['backbone']['block0'][part]['up_bias'] = value

    def by_hand(call, args, kwargs, context):
        x = call(*args, **kwargs)
        return x + add[context.module.path[-1]] if context.module.path[-1:] in (('attn',), ('mlp',)) else x

    def expected(params):
        with nn.intercept_methods(by_hand):
            return model.model.apply({'params': params}, PICTURES, train=False)['logits']

    params = {**variables['params'], 'bottleneck': own}
    found = jit(lambda p: model.apply({'params': p}, PICTURES, train=False)['logits'])(params)
    base = {key: params[key] for key in ('backbone', 'head')}
    np.testing.assert_allclose(found, jit(expected)(base), rtol=0, atol=1e-6 * np.abs(found).max())


def test_bottleneck_starts_as_the_plain_model():
    """On maps as on tokens: what it adds is zero."""
    for family in ('resnet', 'vit'):
        model, batch = build(family, bottleneck={'width': 3}), FAMILIES[family][1]
        own = tree.flatten(fresh(model, batch)['bottleneck'])
        assert all(path.endswith('/down') == bool(np.any(leaf)) for path, leaf in own.items())
    variables = variables_of(model, batch)
    params = {**variables['params'], **fresh(model, batch)}
    at = jit(lambda m, v: m.apply(v, batch, train=False)['logits'], static_argnums=0)
    start, moved = at(model, {'params': params}), at(model, variables)
    base = {key: params[key] for key in ('backbone', 'head')}
    np.testing.assert_array_equal(start, at(model.model, {'params': base}))
    assert np.abs(start - moved).max() > 0.1


def test_trained_numbers_are_those_of_the_formulas():
    """2 D M + D + M each, two a block of a transformer (Houlsby et al.), one a block of a ResNet."""
    each = lambda d, m: 2 * d * m + d + m
    assert trained('vit', depth=2, bottleneck={'width': 3}) == trained('bert', depth=2, bottleneck={'width': 3})
    assert trained('vit', depth=2, bottleneck={'width': 3}) == 2 * 2 * each(8, 3)
    assert trained('resnet', bottleneck={'width': 3}) == each(6, 3) + each(12, 3)
    assert trained('mlp', bottleneck={'width': 3}) == each(7, 3) + each(9, 3)
    assert trained('vit', bottleneck={'width': 3, 'layers': '.*/attn'}) == each(8, 3)


def test_bottleneck_of_a_resnet_is_a_block_on_its_maps():
    model = build('resnet', bottleneck={'width': 3})
    own = tree.flatten(outlined(model, PICTURES)['params']['bottleneck'])
    assert {path.rsplit('/', 1)[0] for path in own} == {'backbone/stage1/block0', 'backbone/stage2/block0'}
    assert own['backbone/stage2/block0/down'].shape == (12, 3)
