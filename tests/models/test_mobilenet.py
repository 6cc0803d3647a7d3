import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.models import build, preprocess
from jtl.models.mobilenet import ConvNorm, Style, divisible

TINY = {  # every kind of block, a residual one included, for tiny images
    'mobilenetv1': {'stem': 8, 'channels': (8, 8, 16, 16, 16), 'repeats': (1, 1, 1, 1, 1), 'depth': 3},
    'mobilenetv2': {
        'stem': 8, 'channels': (4, 8, 8, 8, 8, 8, 8), 'repeats': (1, 2, 1, 1, 1, 1, 1), 'last': 24, 'expansion': 2,
        'depth': 3,
    },
}  # fmt: skip


def images(count, size=16):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def shapes(name, **kwargs):
    model = build(name, 1000, **kwargs)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), {'image': jnp.zeros((1, 32, 32, 3))}, train=False))


@pytest.mark.parametrize(
    'name, trained, all_',
    [
        ('mobilenetv1', 4_231_976, 4_253_864),  # Keras, without and with the statistics
        ('mobilenetv1_0.75', 2_585_560, 2_601_976),
        ('mobilenetv2', 3_504_872, 3_538_984),  # torchvision, Keras
        ('mobilenetv2_1.4', 6_108_776, 6_156_712),
    ],
)
def test_mobilenet_parameter_count(name, trained, all_):
    variables = shapes(name)
    assert tree.count(variables['params']) == trained
    assert tree.count(variables) == all_


def test_mobilenet_parameter_names():
    params = tree.flatten(shapes('mobilenetv1')['params']['backbone'])
    assert params['stem/conv/kernel'].shape == (3, 3, 3, 32)
    assert params['block0/depthwise/conv/kernel'].shape == (3, 3, 1, 32)
    assert params['block12/pointwise/conv/kernel'].shape == (1, 1, 1024, 1024)
    assert params['block12/pointwise/bn/scale'].shape == (1024,) and len(params) == 3 * 27

    params = tree.flatten(shapes('mobilenetv2')['params']['backbone'])
    assert params['block1/expand/conv/kernel'].shape == (1, 1, 16, 96)
    assert params['block1/depthwise/conv/kernel'].shape == (3, 3, 1, 96)
    assert params['block16/project/conv/kernel'].shape == (1, 1, 960, 320)
    assert params['last/conv/kernel'].shape == (1, 1, 320, 1280)
    assert 'block0/expand/conv/kernel' not in params and len(params) == 3 * 52
    gluon = tree.flatten(shapes('mobilenetv2', expand_first=True)['params']['backbone'])
    assert gluon['block0/expand/conv/kernel'].shape == (1, 1, 32, 32) and len(gluon) == 3 * 53


@pytest.mark.parametrize('channels, expected', [(3.2, 8), (11.2, 16), (33.6, 32), (44.8, 48), (134.4, 136)])
def test_divisible_loses_at_most_a_tenth(channels, expected):
    assert divisible(channels) == expected


@pytest.mark.parametrize(
    'name, padding, size, expected',
    [
        ('mobilenetv2', 'symmetric', 65, 3),  # rounds up five times: 33, 17, 9, 5, 3
        ('mobilenetv2', 'same', 65, 3),
        ('mobilenetv1', 'symmetric', 65, 3),
        ('mobilenetv1', 'after', 65, 2),  # only the stem does: 33, 16, 8, 4, 2
        ('mobilenetv1', 'after', 64, 2),
    ],
)
def test_mobilenet_resolution_of_the_last_block(name, padding, size, expected):
    model = build(name, 10, padding=padding)
    batch = {'image': jnp.zeros((1, size, size, 3))}
    run = lambda: model.init_with_output(jax.random.key(0), batch, train=False, capture_intermediates=True)
    blocks = jax.eval_shape(run)[1]['intermediates']['backbone']
    last = blocks['block12' if name == 'mobilenetv1' else 'block16']['__call__'][0]
    assert last.shape[1:3] == (expected, expected)


def conv_reference(x, kernel, stride, pads, depthwise):
    """Cross-correlation with zeros around, `((above, below), (left, right))`, in float64."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    k = len(kernel)
    height, width = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            if depthwise:
                y[:, i, j] = (window * kernel[:, :, 0]).sum((1, 2))
            else:
                y[:, i, j] = np.einsum('bhwc,hwcd->bd', window, kernel)
    return y


@pytest.mark.parametrize(
    'padding, stride, pads',
    [
        ('symmetric', 2, ((1, 1), (1, 1))),
        ('same', 2, ((0, 1), (1, 1))),  # height 6 is even, width 7 odd
        ('after', 2, ((0, 1), (0, 1))),
        ('same', 1, ((1, 1), (1, 1))),
        ('after', 1, ((1, 1), (1, 1))),
    ],
)
@pytest.mark.parametrize('depthwise', [True, False])
def test_conv_norm_equals_numpy(padding, stride, pads, depthwise):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 7, 4))
    kernel = rng.normal(size=(3, 3, 1 if depthwise else 4, 4))
    scale, bias, mean, noise = rng.normal(size=(4, 4))
    params = {'conv': {'kernel': kernel}, 'bn': {'scale': 3 * scale, 'bias': bias}}
    variables = {'params': params, 'batch_stats': {'bn': {'mean': mean, 'var': noise**2}}}
    layer = ConvNorm(4, Style(padding, 'relu6', 0.01, 0.9, 'float32'), 3, stride, depthwise)
    y = jit(lambda v, x: layer.apply(v, x, False))(jax.tree.map(np.float32, variables), np.float32(x))
    expected = conv_reference(x, kernel, stride, pads, depthwise)
    expected = (expected - mean) / np.sqrt(noise**2 + 0.01) * 3 * scale + bias
    assert (expected > 6).any()  # relu6 has something to cut
    np.testing.assert_allclose(y, np.clip(expected, 0, 6), atol=2e-4)


def test_conv_norm_activation_and_momentum():
    x = images(4)
    outputs = {}
    for activation in ('relu6', 'relu', 'none'):
        layer = ConvNorm(8, Style('symmetric', activation, 1e-5, 0.75, 'float32'))
        variables = jit(layer.init, static_argnums=2)(jax.random.key(0), x, False)
        variables['params']['bn']['scale'] = jnp.full(8, 5.0)
        apply = jit(lambda v, x, layer=layer: layer.apply(v, x, True, mutable=['batch_stats']))
        outputs[activation], updates = apply(variables, x)
    y = outputs['none']
    assert y.min() < -6 and y.max() > 6
    np.testing.assert_array_equal(outputs['relu'], jnp.maximum(y, 0))
    np.testing.assert_array_equal(outputs['relu6'], jnp.clip(y, 0, 6))
    seen = (x @ variables['params']['conv']['kernel'][0, 0]).mean((0, 1, 2))
    np.testing.assert_allclose(updates['batch_stats']['bn']['mean'], 0.25 * seen, atol=1e-6)  # 0.75 of 0 is kept


def test_mobilenetv2_adds_where_the_shape_stays():
    """A block whose last BatchNorm has scale 0 gives what it was given, or zeros."""
    model = build('mobilenetv2', 5, **TINY['mobilenetv2'])
    batch = {'image': images(2)}
    variables = jit(model.init, static_argnames='train')(jax.random.key(0), batch, train=False)
    zero = lambda path, leaf: jnp.zeros_like(leaf) if path.endswith('project/bn/scale') else leaf
    variables = tree.map_paths(
        lambda path, leaf: leaf + 1 if path.endswith('block1/project/bn/bias') else leaf, variables
    )
    variables = tree.map_paths(zero, variables)
    run = jit(lambda v: model.apply(v, batch, train=False, capture_intermediates=True)[1]['intermediates'])
    blocks = run(variables)['backbone']
    first, second = (blocks[f'block{i}']['__call__'][0] for i in (1, 2))
    np.testing.assert_array_equal(first, jnp.ones((2, 4, 4, 8)))  # its stride is 2
    np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize(
    'name, depth, features', [('mobilenetv1', 5, 256), ('mobilenetv2', 4, 32), ('mobilenetv2', 17, 320)]
)
def test_mobilenet_depth_keeps_the_first_blocks(name, depth, features):
    whole, cut = (tree.flatten(shapes(name, depth=d)['params']['backbone']) for d in (None, depth))
    kept = {path for path in whole if path.startswith(('stem/', *(f'block{i}/' for i in range(depth))))}
    assert set(cut) == kept
    assert all(cut[path].shape == whole[path].shape for path in cut)
    assert shapes(name, depth=depth)['params']['head']['kernel'].shape == (features, 1000)


@pytest.mark.parametrize('name', TINY)
def test_mobilenet_remat_computes_the_same(name):
    batch, results = {'image': images(4)}, []
    for remat in (False, True):
        model = build(name, 5, **{**TINY[name], 'depth': 2}, remat=remat)
        variables = jit(model.init, static_argnames='train')(jax.random.key(0), batch, train=False)

        def loss(params, model=model, state=variables['batch_stats']):
            variables = {'params': params, 'batch_stats': state}
            outputs, updates = model.apply(variables, batch, train=True, mutable=['batch_stats'])
            return (outputs['logits'] ** 2).sum(), updates

        results.append(jit(jax.grad(loss, has_aux=True))(variables['params']))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize('name', TINY)
def test_mobilenet_bfloat16_is_in_every_layer(name):
    batch = {'image': images(2)}
    model = build(name, 5, **TINY[name], dtype='bfloat16')
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    run = lambda v: model.apply(v, batch, train=False, capture_intermediates=True)
    outputs, inner = jax.eval_shape(run, variables)
    assert outputs['features'].dtype == outputs['logits'].dtype == jnp.float32
    layers = {p: x.dtype for p, x in tree.flatten(inner['intermediates']['backbone']).items() if p[:2] != '__'}
    assert layers and set(layers.values()) == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('name', TINY)
def test_mobilenet_overfits_one_batch(name):
    """16 random images with labels that have nothing to do with them, 4 classes: chance is 25 %, learning is 100 %."""
    batch, labels = {'image': images(16)}, np.arange(16) % 4
    model = build(name, 4, **TINY[name])
    variables = jit(model.init, static_argnames='train')(jax.random.key(0), batch, train=False)
    params, state, tx = variables['params'], variables['batch_stats'], optax.adam(1e-2)

    def loss_fn(params, state):
        variables = {'params': params, 'batch_stats': state}
        outputs, updates = model.apply(variables, batch, train=True, mutable=['batch_stats'])
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs['logits'], labels).mean()
        return loss, (updates['batch_stats'], outputs['logits'])

    @jit
    def step(params, state, opt_state):
        (_, (state, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, (logits.argmax(-1) == labels).mean()

    opt_state = tx.init(params)
    for _ in range(60):
        params, state, opt_state, accuracy = step(params, state, opt_state)
    assert accuracy == 1.0


@pytest.mark.parametrize(
    'name, message',
    [
        ('mobilenetv3', "'mobilenetv3'.*did you mean 'mobilenetv"),
        ('mobilenet', "'mobilenet'.*did you mean 'mobilenetv"),
        ('mobilenetv2-1.4', "did you mean 'mobilenetv2_1.4'"),
        ('mobilenetv1_0', "'mobilenetv1_0'"),
        ('mobilenetv1_0.0', "'mobilenetv1_0.0'"),
    ],
)
def test_mobilenet_unknown_name_suggests_the_nearest(name, message):
    for function in (lambda: build(name, 10), lambda: preprocess(name)):
        with pytest.raises(UserError, match=message):
            function()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'padding': 'smae'}, "padding 'smae': did you mean 'same'"),
        ({'activation': 'relu7'}, "activation 'relu7': did you mean 'relu'|'relu6'"),
        ({'channels': (8, 16)}, 'channels: .* should be 7 numbers'),
        ({'repeats': (1, 1, 1)}, 'repeats: .* should be 7 numbers'),
        ({'depth': 18}, 'depth: 18 should be 1 to 17'),
        ({'depth': 0}, 'depth: 0 should be 1 to 17'),
        ({'expanson': 6}, "config.model.expanson: did you mean 'expansion'"),
    ],
)
def test_mobilenet_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build('mobilenetv2', 10, **kwargs)


def test_mobilenet_takes_any_width():
    assert build('mobilenetv1_0.33', 10).backbone.channels == (21, 42, 84, 168, 337)  # ⌊0.33 · 64⌋, …
    assert build('mobilenetv2_1.1', 10).backbone.last == 1408
    assert build('mobilenetv2_1.0', 10) == build('mobilenetv2', 10)
    assert preprocess('mobilenetv2_1.1')['size'] == 224
