import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.models import build
from jtl.models.resnet import Block, conv, max_pool_3x3_s2, pad_shortcut


def shapes(name, classes, size, **kwargs):
    model = build(name, classes, **kwargs)
    batch = {'image': jnp.zeros((1, size, size, 3))}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))


@pytest.mark.parametrize(
    'name, classes, size, expected',
    [
        ('resnet18', 1000, 224, 11_689_512),  # torchvision
        ('resnet34', 1000, 224, 21_797_672),
        ('resnet50', 1000, 224, 25_557_032),
        ('resnet101', 1000, 224, 44_549_160),
        ('resnet152', 1000, 224, 60_192_808),
        ('resnet20', 10, 32, 269_722),  # option A, akamaster/pytorch_resnet_cifar10
        ('resnet32', 10, 32, 464_154),
        ('resnet44', 10, 32, 658_586),
        ('resnet56', 10, 32, 853_018),
        ('resnet110', 10, 32, 1_727_962),
    ],
)
def test_resnet_parameter_count(name, classes, size, expected):
    assert tree.count(shapes(name, classes, size)['params']) == expected


def test_resnet_parameter_names():
    small = tree.flatten(shapes('resnet', 10, 8, stages=(1, 1), width=4)['params'])
    block = [f'{part}/{leaf}' for part in ('bn1', 'bn2') for leaf in ('bias', 'scale')]
    block += ['conv1/kernel', 'conv2/kernel']
    stem = [f'backbone/stem/{leaf}' for leaf in ('bn/bias', 'bn/scale', 'conv/kernel')]
    stages = [f'backbone/stage{i}/block0/{leaf}' for i in (1, 2) for leaf in block]
    assert sorted(small) == sorted([*stages, *stem, 'head/bias', 'head/kernel'])

    large = shapes('resnet50', 1000, 64)
    params, stats = tree.flatten(large['params']), tree.flatten(large['batch_stats'])
    assert params['backbone/stem/conv/kernel'].shape == (7, 7, 3, 64)
    assert params['backbone/stage1/block0/shortcut/conv/kernel'].shape == (1, 1, 64, 256)
    assert params['backbone/stage4/block2/conv3/kernel'].shape == (1, 1, 512, 2048)
    assert stats['backbone/stage2/block0/shortcut/bn/mean'].shape == (512,)
    assert 'backbone/stage1/block1/shortcut/conv/kernel' not in params


@pytest.mark.parametrize('size, expected', [(224, 7), (65, 3), (8, 1), (1, 1)])
def test_resnet_resolution_of_the_last_stage(size, expected):
    """As in torch: each of five halvings rounds up, 65 -> 33 -> 17 -> 9 -> 5 -> 3."""
    model = build('resnet18', 10)
    batch = {'image': jnp.zeros((1, size, size, 3))}
    run = lambda: model.init_with_output(jax.random.key(0), batch, train=False, capture_intermediates=True)
    last = jax.eval_shape(run)[1]['intermediates']['backbone']['stage4']['__call__'][0]
    assert last.shape == (1, expected, expected, 512)


def test_resnet_zero_init_residual_by_default_for_imagenet_only():
    scale = lambda name, **kwargs: build(name, 10, **kwargs).backbone.zero_init_residual
    assert scale('resnet50') and scale('resnet18') and not scale('resnet20') and not scale('resnet')
    assert not scale('resnet50', zero_init_residual=False)
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 4, 4, 8)))
    block = Block(8, 1, 'basic', 'pad', True, 'float32')
    y, _ = jit(block.init_with_output, static_argnums=2)(jax.random.key(0), x, False)
    np.testing.assert_array_equal(y, x)


def value_and_gradient(pool, x):
    """The pooled image, and the gradient of a weighted sum of it; whole numbers, so that it is exact."""
    weigh = lambda y: (y * (jnp.arange(y.size).reshape(y.shape) % 9)).sum()
    return jit(lambda x: (pool(x), jax.grad(lambda x: weigh(pool(x)))(x)))(x)


def test_max_pool_equals_flax_in_value_and_gradient():
    for height, width in ((7, 8), (1, 2)):
        count = 2 * height * width * 3
        x = jax.random.permutation(jax.random.key(0), count).astype(jnp.float32)  # distinct: no ties
        x = x.reshape(2, height, width, 3) - count / 2
        reference = lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        y, gradient = value_and_gradient(max_pool_3x3_s2, x)
        y_reference, gradient_reference = value_and_gradient(reference, x)
        np.testing.assert_array_equal(y, y_reference)
        np.testing.assert_array_equal(gradient, gradient_reference)


def test_pad_shortcut_subsamples_and_pads_with_zeros():
    x = np.arange(1 * 5 * 4 * 2, dtype=np.float32).reshape(1, 5, 4, 2) + 1
    y = np.asarray(pad_shortcut(jnp.asarray(x), 4, 2))
    assert y.shape == (1, 3, 2, 4)
    np.testing.assert_array_equal(y[..., 1:3], x[:, [0, 2, 4]][:, :, [0, 2]])  # planes // 4 = 1 zero channel before
    assert not y[..., [0, 3]].any()


def conv_reference(x, kernel, stride):
    """Cross-correlation with (k - 1)/2 zeros on every side, in float64."""
    k = len(kernel)
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = np.einsum('bhwc,hwcd->bd', window, kernel)
    return y


@pytest.mark.parametrize('kernel, stride', [(7, 2), (3, 1), (3, 2), (1, 2)])
def test_conv_pads_both_sides_alike(kernel, stride):
    """On even sizes 'SAME' would pad a strided convolution on one side only."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 8, 7, 3)), rng.normal(size=(kernel, kernel, 3, 2))
    y = jit(conv(2, kernel, stride, 'float32', name='conv').apply)({'params': {'kernel': weights}}, x)
    np.testing.assert_allclose(y, conv_reference(x, weights, stride), atol=5e-5)


def norm_reference(x, params, stats, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats['mean'], stats['var'])
    return (x - mean) / np.sqrt(var + 1e-5) * params['scale'] + params['bias']


def draw(path, noise):
    """Parameters and statistics from noise, away from their defaults: scales about 1, variances positive."""
    if path.endswith('var'):
        return np.float32(np.exp(noise / 2))
    return np.float32(path.endswith('scale') + 0.3 * noise)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('kind, shortcut', [('basic', 'pad'), ('basic', 'projection'), ('bottleneck', 'projection')])
def test_block_equals_numpy(kind, shortcut, train):
    """Stride 2 on odd and even sizes, BatchNorm away from its defaults; the stride belongs to the 3×3 (v1.5)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 6, 4))
    block = Block(8, 2, kind, shortcut, False, 'float32')
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.zeros(x.shape), False))
    variables = tree.map_paths(lambda path, leaf: draw(path, rng.normal(size=leaf.shape)), variables)
    apply = jit(lambda v, x: block.apply(v, x, train, mutable=['batch_stats']))
    y, updates = apply(variables, jnp.asarray(x, jnp.float32))

    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, stats = exact['params'], exact['batch_stats']
    strides = (1, 2, 1) if kind == 'bottleneck' else (2, 1)
    h = x
    for i, stride in enumerate(strides, 1):
        h = conv_reference(h, params[f'conv{i}']['kernel'], stride)
        if train and i == 1:  # the running averages keep 0.9 of their value
            expected = 0.9 * stats['bn1']['mean'] + 0.1 * h.mean((0, 1, 2))
            np.testing.assert_allclose(updates['batch_stats']['bn1']['mean'], expected, atol=1e-5)
        h = norm_reference(h, params[f'bn{i}'], stats[f'bn{i}'], train)
        h = h if i == len(strides) else np.maximum(h, 0)
    if shortcut == 'pad':
        skip = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    else:
        skip = conv_reference(x, params['shortcut']['conv']['kernel'], 2)
        skip = norm_reference(skip, params['shortcut']['bn'], stats['shortcut']['bn'], train)
    np.testing.assert_allclose(y, np.maximum(h + skip, 0), atol=2e-5, rtol=1e-5)
    assert y.shape == (3, 4, 3, 32 if kind == 'bottleneck' else 8)
