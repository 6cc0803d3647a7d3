import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import init, jit, shapes

from jtl import tree
from jtl.errors import UserError
from jtl.models import build, preprocess
from jtl.models.bit import StdConv, Stem, standardise
from jtl.models.resnet import conv

IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
BATCH = {'image': IMAGES}
TINY = {'name': 'bit_r50x1', 'stages': (2, 1), 'width': 8, 'groups': 4}


@pytest.mark.parametrize(
    'name, expected',  # timm's, in millions: 25.55, 217.32, 44.54, 387.93, 236.34, 936.53
    [
        ('bit_r50x1', 25_549_352),
        ('bit_r50x3', 217_319_080),
        ('bit_r101x1', 44_541_480),
        ('bit_r101x3', 387_934_888),
        ('bit_r152x2', 236_335_208),
        ('bit_r152x4', 936_533_224),
    ],
)
def test_bit_parameter_count(name, expected):
    variables = shapes(build(name, 1000))
    assert tree.count(variables['params']) == expected and set(variables) == {'params'}


def test_bit_parameter_names():
    params = tree.flatten(shapes(build(num_classes=10, **TINY))['params'])
    block = [
        f'{kind}{i}/{leaf}' for i in (1, 2, 3) for kind, leaf in (('gn', 'scale'), ('gn', 'bias'), ('conv', 'kernel'))
    ]
    expected = [f'stage1/block{i}/{leaf}' for i in (0, 1) for leaf in block] + [
        f'stage2/block0/{leaf}' for leaf in block
    ]
    expected += [f'stage{i}/block0/shortcut/kernel' for i in (1, 2)]
    expected += ['stem/conv/kernel', 'norm/scale', 'norm/bias']
    assert sorted(params) == sorted([*(f'backbone/{path}' for path in expected), 'head/kernel', 'head/bias'])


def test_standardise_by_hand():
    """Two inputs of one output channel, 1 and 5: mean 3, variance 4; and with an eps of 5, 2 / sqrt(4 + 5)."""
    kernel = np.array([1.0, 5.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(standardise(kernel, 0.0).ravel(), [-1, 1], rtol=1e-6)
    np.testing.assert_allclose(standardise(kernel, 5.0).ravel(), [-2 / 3, 2 / 3], rtol=1e-6)


def test_standardise_is_by_output_channel_and_blind_to_scale_and_shift():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    once = np.asarray(standardise(kernel, 1e-10))
    np.testing.assert_allclose(once.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(once.var((0, 1, 2)), 1, rtol=1e-5)
    factors, shifts = np.arange(1, 6, dtype=np.float32), np.arange(5, dtype=np.float32)
    np.testing.assert_allclose(standardise(kernel * factors + shifts, 1e-10), once, atol=1e-5)


@pytest.mark.parametrize('kernel, stride', [(7, 2), (3, 2), (1, 2), (3, 1)])
def test_std_conv_is_a_convolution_by_the_standardised_kernel(kernel, stride):
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    module = StdConv(4, kernel, stride, 1e-10, 'float32')
    variables = module.init(jax.random.key(1), x)
    plain = conv(4, kernel, stride, 'float32', name=None)
    standard = {'params': {'kernel': standardise(variables['params']['kernel'], 1e-10)}}
    expected = jit(plain.apply)(standard, x)
    np.testing.assert_allclose(jit(module.apply)(variables, x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize('size', [8, 9, 10, 1])
def test_bit_stem_pools_over_zeros(size):
    """Negative everywhere, the border would stay negative under padding by -inf; it becomes 0."""
    x = jnp.ones((1, size, size, 1))
    stem = Stem(1, 1e-10, 'float32')
    variables = {'params': {'conv': {'kernel': jnp.zeros((7, 7, 1, 1)).at[3, 3].set(-1.0)}}}  # standardised: −6.9 there
    y = np.asarray(stem.apply(variables, x)[0, ..., 0])
    inner = StdConv(1, 7, 2, 1e-10, 'float32').apply({'params': variables['params']['conv']}, x)[0, ..., 0]
    assert y.shape == (((size + 1) // 2 + 1) // 2,) * 2
    padded = np.pad(inner, 1)  # zeros
    for i, j in np.ndindex(*y.shape):
        assert y[i, j] == padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max()
    assert (y[0] >= 0).all() and (y[:, 0] >= 0).all()


def test_bit_knows_no_batch():
    """An example's features are the same whatever it is with, in training too."""
    model = build(num_classes=3, **TINY)
    variables = init(model, BATCH)
    run = jit(lambda x, train: model.apply(variables, {'image': x}, train=train)['features'], static_argnums=1)
    together = run(IMAGES, False)
    np.testing.assert_array_equal(run(IMAGES, True), together)
    other = np.concatenate([IMAGES[:1], 5 * IMAGES[1:]])
    np.testing.assert_allclose(run(other, True)[0], together[0], rtol=0, atol=1e-6 * np.abs(together).max())


def test_bit_cut_ends_with_the_norm_of_the_next_block():
    whole, cut = build(num_classes=5, **TINY), build(num_classes=5, **TINY, depth=1)
    variables = init(whole, BATCH)
    flat, kept = tree.flatten(variables['params']), tree.flatten(shapes(cut)['params'])
    backbone = {path for path in kept if path.startswith('backbone/')}
    assert all(flat[path].shape == kept[path].shape for path in backbone)
    assert {path for path in backbone if '/stage1/' not in path and '/stem/' not in path} == {
        f'backbone/stage2/block0/gn1/{leaf}' for leaf in ('scale', 'bias')
    }
    run = lambda v: whole.apply(v, BATCH, False, capture_intermediates=True, mutable=['intermediates'])
    opening = jit(run)(variables)[1]['intermediates']['backbone']['stage2']['block0']['gn1']['__call__'][0]
    some = tree.unflatten({path: flat[path] if path in backbone else np.zeros(x.shape) for path, x in kept.items()})
    features = jit(lambda v: cut.apply(v, BATCH, False)['features'])({'params': some})
    expected = np.maximum(opening, 0).mean((1, 2))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_bit_remat_and_bfloat16_are_nearly_the_same_model():
    small = {**TINY, 'stages': (1,)}
    kept, remade, coarse = (build(num_classes=3, **small, **kw) for kw in ({}, {'remat': True}, {'dtype': 'bfloat16'}))
    variables = init(kept, BATCH)

    def gradient(model):
        loss = lambda p: (model.apply({'params': p}, BATCH, True)['logits'] ** 2).sum()
        return tree.flatten(jit(jax.grad(loss))(variables['params']))

    a, b = gradient(kept), gradient(remade)
    atol = 1e-5 * max(np.abs(x).max() for x in a.values())
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)

    run = lambda model: model.apply(variables, BATCH, False, capture_intermediates=True, mutable=['intermediates'])
    exact = jit(lambda: kept.apply(variables, BATCH, False)['features'])()
    features, captured = jit(lambda: (lambda o, c: (o['features'], c['intermediates']['backbone']))(*run(coarse)))()
    layers = {path: x.dtype for path, x in tree.flatten(captured).items() if not path.startswith('__call__')}
    assert set(layers.values()) == {jnp.dtype('bfloat16')} and features.dtype == jnp.float32
    assert 1e-5 < np.abs(features - exact).max() / np.abs(exact).max() < 0.05


def test_bit_overfits_one_batch():
    """4 random images with labels that have nothing to do with them: chance is a loss of log 4."""
    model = build(num_classes=4, **{**TINY, 'stages': (1,)})
    params = jit(lambda: model.init(jax.random.key(0), BATCH, train=False))()['params']
    tx = optax.adam(1e-2)

    def loss_fn(params):
        logits = model.apply({'params': params}, BATCH, True)['logits']
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.arange(4)).mean()

    @jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = tx.init(params)
    for _ in range(40):
        params, opt_state, loss = step(params, opt_state)
    assert loss < np.log(4) / 10


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'name': 'bit_r50x2'}, "'bit_r50x2'.*did you mean 'bit_r"),
        ({'name': 'bit'}, "'bit'.*Known: bit_r101x1"),
        ({'name': 'bit_r50x1', 'block': 'basic'}, 'config.model.block'),
        ({'name': 'bit_r50x1', 'width': 48}, 'width 48 is not divisible by 32 groups'),
        ({'name': 'bit_r50x1', 'groups': 0}, 'by 0 groups'),
        ({'name': 'bit_r50x1', 'depth': 5}, 'config.model.depth: 5 should be 1 to 4'),
    ],
)
def test_bit_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(num_classes=2, **kwargs)


def test_bit_preprocess_is_of_pixels_around_zero():
    assert preprocess('bit_r50x1')['mean'] == preprocess('bit_r50x1')['std'] == (0.5, 0.5, 0.5)
