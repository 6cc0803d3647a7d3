import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import init, jit, shapes

from jtl import tree
from jtl.errors import UserError
from jtl.models import build, preprocess
from jtl.models.norm import hold_still

IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
BATCH = {'image': IMAGES}
TINY = {
    'basic': {'name': 'resnetv2_18', 'stages': (1, 2), 'width': 4},
    'bottleneck': {'name': 'resnetv2_50', 'stages': (2, 1), 'width': 4},
    'plain': {'name': 'resnetv2_50', 'stages': (1, 1), 'width': 4, 'stem': 'plain'},
}


@pytest.mark.parametrize(
    'name, stem, expected',
    [
        # v1 has 11,689,512, of which go the BatchNorm of the stem and of three shortcuts, 128 + 2·(128 + 256 + 512);
        # that of the end comes, 2·512, and bn1 is as wide as the input where that is half: − 2·(64 + 128 + 256)
        ('resnetv2_18', 'plain', 11_687_720),
        ('resnetv2_34', 'plain', 21_795_880),  # v1 has 21,797,672: the same again
        ('resnetv2_50', 'plain', 25_549_352),  # as BiT, which has GroupNorm in the same places
        ('resnetv2_101', 'plain', 44_541_480),
        ('resnetv2_152', 'plain', 60_185_128),
        ('resnetv2_50', 'normed', 25_549_480),  # and the 128 of the stem
    ],
)
def test_resnetv2_parameter_count(name, stem, expected):
    assert tree.count(shapes(build(name, 1000, stem=stem))['params']) == expected


def test_resnetv2_parameter_names():
    variables = shapes(build('resnetv2_50', 10, stages=(2, 1), width=4))
    params, stats = tree.flatten(variables['params']), tree.flatten(variables['batch_stats'])
    block = [
        f'{kind}{i}/{leaf}' for i in (1, 2, 3) for kind, leaf in (('bn', 'scale'), ('bn', 'bias'), ('conv', 'kernel'))
    ]
    expected = [f'stage1/block{i}/{leaf}' for i in (0, 1) for leaf in block] + [
        f'stage2/block0/{leaf}' for leaf in block
    ]
    expected += [f'stage{i}/block0/shortcut/kernel' for i in (1, 2)]
    expected += ['stem/conv/kernel', 'stem/bn/scale', 'stem/bn/bias', 'norm/scale', 'norm/bias']
    assert sorted(params) == sorted([*(f'backbone/{path}' for path in expected), 'head/kernel', 'head/bias'])
    assert {path for path in stats if 'input' in path} == {'backbone/input_bn/mean', 'backbone/input_bn/var'}
    assert params['backbone/stage2/block0/shortcut/kernel'].shape == (1, 1, 16, 32)

    basic = tree.flatten(shapes(build('resnetv2_18', 10, stages=(2, 1), width=4))['params'])
    assert [path for path in basic if 'shortcut' in path] == ['backbone/stage2/block0/shortcut/kernel']
    assert 'backbone/stem/bn/scale' not in tree.flatten(shapes(build(num_classes=2, **TINY['plain']))['params'])


@pytest.mark.parametrize('size, expected', [(224, 7), (65, 3), (8, 1), (1, 1)])
def test_resnetv2_resolution_of_the_last_stage(size, expected):
    """Each of five halvings rounds up, 65 -> 33 -> 17 -> 9 -> 5 -> 3."""
    model = build('resnetv2_18', 10)
    batch = {'image': jnp.zeros((1, size, size, 3))}
    run = lambda: model.init_with_output(jax.random.key(0), batch, train=False, capture_intermediates=True)
    last = jax.eval_shape(run)[1]['intermediates']['backbone']['stage4']['__call__'][0]
    assert last.shape == (1, expected, expected, 512)


@pytest.mark.parametrize('case, train', [('basic', True), ('bottleneck', False)])
def test_resnetv2_cut_ends_with_the_norm_of_the_next_block(case, train):
    """Its features are those that the whole network's next block begins with; its paths are a part of the whole's."""
    whole, cut = build(num_classes=5, **TINY[case]), build(num_classes=5, **TINY[case], depth=1)
    variables = init(whole, BATCH)
    flat, kept = tree.flatten(variables), tree.flatten(shapes(cut))
    backbone = {path for path in kept if '/head' not in path and not path.startswith('params/head')}
    assert all(flat[path].shape == kept[path].shape for path in backbone)
    after = {path.split('backbone/')[1] for path in backbone if '/stage2/' in path or '/norm/' in path}
    assert after == {f'stage2/block0/bn1/{leaf}' for leaf in ('scale', 'bias', 'mean', 'var')}

    run = lambda v: whole.apply(v, BATCH, train, capture_intermediates=True, mutable=['intermediates', 'batch_stats'])
    opening = jit(run)(variables)[1]['intermediates']['backbone']['stage2']['block0']['bn1']['__call__'][0]
    expected = np.maximum(opening, 0).mean((1, 2))
    some = tree.unflatten({path: flat[path] if path in backbone else np.zeros(x.shape) for path, x in kept.items()})
    outputs, _ = jit(lambda v: cut.apply(v, BATCH, train, mutable=['batch_stats']))(some)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(outputs['features'], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_resnetv2_of_full_depth_is_the_whole():
    whole, same = build(num_classes=2, **TINY['basic']), build(num_classes=2, **TINY['basic'], depth=2)
    assert tree.flatten(shapes(whole)).keys() == tree.flatten(shapes(same)).keys()


def test_resnetv2_normalises_the_image_by_its_running_statistics():
    """A shift of the image is a shift of the mean, which only the normed stem has."""
    model = build(num_classes=2, **TINY['bottleneck'])
    variables = init(model, BATCH)
    flat = tree.flatten(variables)
    flat['batch_stats/backbone/input_bn/mean'] = flat['batch_stats/backbone/input_bn/mean'] + 0.5
    run = jit(lambda v, x: model.apply(v, {'image': x}, train=False)['features'])
    before = run(variables, IMAGES)
    np.testing.assert_allclose(run(tree.unflatten(flat), IMAGES + 0.5), before, rtol=0, atol=1e-4 * before.max())
    assert np.abs(run(variables, IMAGES + 0.5) - before).max() > 1e-2 * before.max()


def test_resnetv2_frozen_backbone_holds_its_statistics_still():
    """The input's too, which has no parameters of its own; trained, they all move."""
    model = build(num_classes=2, **TINY['basic'])
    variables = init(model, BATCH)

    def stats_after(frozen):
        with hold_still({path: frozen and path.startswith('backbone/') for path in tree.flatten(variables['params'])}):
            return tree.flatten(model.apply(variables, BATCH, train=True, mutable=['batch_stats'])[1])

    before = tree.flatten({'batch_stats': variables['batch_stats']})
    still, moved = (jit(functools.partial(stats_after, frozen))() for frozen in (True, False))
    for path, x in before.items():
        np.testing.assert_array_equal(still[path], x)
        assert not np.array_equal(moved[path], x), path


def test_resnetv2_remat_is_the_same_model():
    plain, remade = (build(num_classes=3, **{**TINY['plain'], 'stages': (1,)}, remat=remat) for remat in (False, True))
    variables = init(plain, BATCH)
    assert tree.flatten(shapes(plain)).keys() == tree.flatten(shapes(remade)).keys()

    def gradient(model):
        loss = lambda p: (
            model.apply({**variables, 'params': p}, BATCH, True, mutable=['batch_stats'])[0]['logits'] ** 2
        ).sum()
        return tree.flatten(jit(jax.grad(loss))(variables['params']))

    a, b = gradient(plain), gradient(remade)
    atol = 1e-5 * max(np.abs(x).max() for x in a.values())
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize('case', TINY)
def test_resnetv2_bfloat16_is_in_every_layer_and_float32_outside(case):
    model = build(num_classes=3, **TINY[case], dtype='bfloat16')
    variables = shapes(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    run = lambda v: model.apply(v, BATCH, train=False, capture_intermediates=True, mutable=['intermediates'])
    outputs, captured = jax.eval_shape(run, variables)
    layers = tree.flatten(captured['intermediates']['backbone'])
    assert {x.dtype for path, x in layers.items() if not path.startswith('__call__')} == {jnp.dtype('bfloat16')}
    assert outputs['features'].dtype == outputs['logits'].dtype == jnp.float32


def test_resnetv2_overfits_one_batch():
    """8 random images with labels that have nothing to do with them: chance is a loss of log 4."""
    model = build(num_classes=4, **TINY['basic'])
    variables = jit(lambda: model.init(jax.random.key(0), BATCH, train=False))()
    labels, tx = np.arange(8) % 4, optax.adam(1e-2)

    def loss_fn(params, state):
        outputs, updates = model.apply({'params': params, **state}, BATCH, True, mutable=['batch_stats'])
        return optax.softmax_cross_entropy_with_integer_labels(outputs['logits'], labels).mean(), updates

    @jit
    def step(params, state, opt_state):
        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, loss

    params, state = variables['params'], {'batch_stats': variables['batch_stats']}
    opt_state = tx.init(params)
    for _ in range(40):
        params, state, opt_state, loss = step(params, state, opt_state)
    assert loss < np.log(4) / 10


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'name': 'resnetv2_51'}, "'resnetv2_51'.*did you mean 'resnetv2_50'"),
        ({'name': 'resnetv2_50', 'block': 'botleneck'}, "block 'botleneck': did you mean 'bottleneck'"),
        ({'name': 'resnetv2_50', 'stem': 'imagenet'}, "stem 'imagenet'.*Known: normed, plain"),
        ({'name': 'resnetv2_50', 'shortcut': 'pad'}, 'config.model.shortcut'),
        ({'name': 'resnetv2_50', 'depth': 0}, 'config.model.depth: 0 should be 1 to 4'),
        ({'name': 'resnetv2_50', 'depth': 5}, 'config.model.depth: 5 should be 1 to 4'),
        ({'name': 'resnetv2_50', 'depth': '3'}, 'config.model.depth'),
    ],
)
def test_resnetv2_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(num_classes=2, **kwargs)


def test_resnetv2_preprocess_is_gluons():
    assert preprocess('resnetv2_50')['mean'] == (0.485, 0.456, 0.406)
    assert preprocess('resnetv2_50')['size'] == 224 and preprocess('resnetv2_50')['interpolation'] == 'bilinear'
