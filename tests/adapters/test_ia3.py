"""IA³ against a network whose activations are scaled by hand."""

import jax
import numpy as np
import pytest
from adapting import FAMILIES, PICTURES, build, fresh, outlined, trained, variables_of
from flax import linen as nn
from tiny import jit

from jtl import models, tree
from jtl.errors import UserError


def test_ia3_scales_keys_values_and_what_the_second_layer_reads():
    """By an interceptor that knows which layer does what, against the adapter's parameters."""
    model, (_, batch) = build('vit'), FAMILIES['vit']
    adapted = build('vit', ia3={})
    variables = variables_of(adapted, batch)
    scale = tree.flatten(variables['params']['ia3'])
    assert {path.split('block0/')[1] for path in scale} == {'attn/key/output', 'attn/value/output', 'mlp/fc2/input'}

    def by_hand(call, args, kwargs, context):
        last = '/'.join(context.module.path[-2:])
        if last == 'mlp/fc2':
            return call(args[0] * scale['backbone/block0/mlp/fc2/input'])
        if last in ('attn/key', 'attn/value'):
            return call(*args) * scale[f'backbone/block0/{last}/output']
        return call(*args, **kwargs)

    def expected(variables):
        with nn.intercept_methods(by_hand):
            return model.apply(variables, batch, train=False)['logits']

    base = {'params': {key: variables['params'][key] for key in ('backbone', 'head')}}
    found = jit(lambda v: adapted.apply(v, batch, train=False)['logits'])(variables)
    np.testing.assert_allclose(found, jit(expected)(base), rtol=0, atol=1e-6 * np.abs(found).max())


def test_ia3_starts_at_one():
    own = jax.tree.leaves(fresh(build('mlp', ia3={}), FAMILIES['mlp'][1]))
    assert own and all((x == 1).all() for x in own)


def test_trained_numbers_are_those_of_the_formulas():
    """d_k + d_v + d_ff a block, the paper's; of a convolutional network the channels of every convolution."""
    assert trained('vit', ia3={}) == trained('bert', ia3={}) == 8 + 8 + 12
    assert trained('vit', ia3={}, depth=3) == 3 * (8 + 8 + 12)
    assert trained('resnet', ia3={}) == 6 + 2 * 6 + 2 * 12
    assert trained('mlp', ia3={}) == 7 + 9
    assert trained('vit', ia3={'layers': (), 'feedforward': '.*mlp/fc1'}) == 8
    assert trained('vit', ia3={'layers': '.*attn/out', 'feedforward': ()}) == 8


def test_ia3_scales_outputs_of_grouped_convolutions_but_not_their_inputs():
    of = lambda **ia3: models.build('mobilenetv1', 2, ia3=ia3)
    batch = {'image': np.zeros((1, 32, 32, 3), np.float32)}
    own = tree.flatten(outlined(of(layers='block0/.*conv'), batch)['params']['ia3'])
    assert own['backbone/block0/depthwise/conv/output'].shape == (32,)
    with pytest.raises(UserError, match=r"ia3\.feedforward: 'block0/depthwise/conv' is a grouped convolution"):
        outlined(of(feedforward='block0/.*conv'), batch)


def test_ia3_merges_into_convolutions_with_and_without_a_bias():
    """Inputs and outputs of the same layers, in numpy: W ← l_in W l_out, b ← b l_out."""
    model = models.build('conv4', 2, width=3, ia3={'layers': 'block1/conv', 'feedforward': 'block[12]/conv'})
    batch = {'image': PICTURES['image']}
    params = variables_of(model, batch)['params']
    merged, base, own = model.merge(params), params['backbone'], params['ia3']['backbone']
    conv, scale = base['block1']['conv'], own['block1']['conv']
    expected = np.einsum('hwio,i,o->hwio', conv['kernel'], scale['input'], scale['output'])
    np.testing.assert_allclose(merged['backbone']['block1']['conv']['kernel'], expected, rtol=1e-6)
    np.testing.assert_allclose(merged['backbone']['block1']['conv']['bias'], conv['bias'] * scale['output'], rtol=1e-6)
    expected = np.einsum('hwio,i->hwio', base['block2']['conv']['kernel'], own['block2']['conv']['input'])
    np.testing.assert_allclose(merged['backbone']['block2']['conv']['kernel'], expected, rtol=1e-6)
    np.testing.assert_array_equal(merged['backbone']['block2']['conv']['bias'], base['block2']['conv']['bias'])
    at = lambda m, p: m.apply({**variables_of(model, batch), 'params': p}, batch, train=False)['logits']
    with_bias = jit(lambda p: at(model, p))(params)
    np.testing.assert_allclose(jit(lambda p: at(model.model, p))(merged), with_bias, rtol=0, atol=1e-5)
