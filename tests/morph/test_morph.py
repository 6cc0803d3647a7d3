"""Growth of whole networks: each family computes what it computed before."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
import tiny

from jtl import models, morph, tree
from jtl.errors import UserError

CLASSES = 3
MLP = {'name': 'mlp', 'hidden': (7, 5)}
PAD = {'name': 'resnet', 'stages': (2, 1), 'width': 4}  # the shortcut without parameters
BOTTLENECK = {'name': 'resnet', 'stages': (1, 1), 'width': 4, 'block': 'bottleneck', 'shortcut': 'projection'}
PAD_BOTTLENECK = {**BOTTLENECK, 'shortcut': 'pad'}
VIT = {'name': 'vit', 'width': 12, 'heads': 2, 'depth': 1, 'mlp_ratio': 1.5, 'patch': 4}
BERT = {'name': 'bert', 'width': 12, 'heads': 2, 'depth': 1, 'mlp': 10, 'vocab': 20, 'positions': 8}
GROWTH = {
    'mlp wider and deeper': (MLP, {'hidden': (16, 8, 9, 5)}),
    'mlp with a head of layers': ({**MLP, 'head': {'name': 'mlp', 'hidden': (9,)}}, {'hidden': (7, 11)}),
    'mlp with a cosine head': ({**MLP, 'head': {'name': 'cosine'}}, {'hidden': (9, 10)}),
    'conv4': ({'name': 'conv4', 'width': 4}, {'width': 7}),
    'resnet of option A': (PAD, {'width': 9, 'stages': (2, 3)}),
    'resnet of projections': (BOTTLENECK, {'width': 6, 'stages': (2, 1)}),
    'resnet of bottlenecks and option A': (PAD_BOTTLENECK, {'width': 7}),
    'vit wider, with more heads': ({**VIT, 'pre_logits': 5}, {'width': 36, 'heads': 4, 'pre_logits': 8}),
    'vit deeper and wider, with larger heads': (
        {**VIT, 'distilled': True, 'pool': 'both'},
        {'width': 24, 'depth': 3, 'mlp_ratio': 1},
    ),
    'bert': (BERT, {'width': 36, 'heads': 3, 'depth': 3, 'mlp': 13, 'vocab': 25, 'positions': 9}),
}
IN_FLOAT64 = ('resnet of option A', 'vit wider, with more heads', 'bert')


def batch_for(model):
    rng = np.random.default_rng(2)
    if model['name'] == 'bert':
        return {'tokens': np.array([[1, 5, 19, 3, 0, 0], [2, 7, 7, 4, 9, 11]])}
    return {'image': rng.normal(size=(2, 16, 16, 3) if model['name'] == 'conv4' else (2, 8, 8, 3)).astype(np.float32)}


@functools.cache
def shapes_of(model):
    model = json.loads(model)
    init = functools.partial(models.build(num_classes=CLASSES, **model).init, train=False)
    shapes = dict(jax.eval_shape(init, jax.random.key(0), batch_for(model)))
    params = shapes.pop('params')
    return tree.flatten({**params, 'model': shapes})


def leaves_of(model, seed):
    """Leaves by path: kernels of a usual size, and biases, scales and statistics of their own."""
    rng = np.random.default_rng(seed)
    made = {}
    for path, leaf in shapes_of(json.dumps(model)).items():
        x = rng.uniform(0.3, 1.2, leaf.shape)  # scales and statistics
        if path.endswith('kernel'):
            x = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        made[path] = (x - 0.75 if path.endswith(('bias', 'mean')) else x).astype('f4')
    return made


def initialised(model):
    """Those of a new network, random, so that what must be zero would show; new norms are the identity."""
    new = dict(leaves_of(model, 7))
    if model['name'] == 'bert':
        for path, x in new.items():
            if '/norm' in path:
                new[path] = np.ones_like(x) if path.endswith('scale') else np.zeros_like(x)
    return new


def outputs(model, leaves, dtype='float32'):
    whole = tree.unflatten(leaves)
    state = whole.pop('model', {})
    net = models.build(num_classes=CLASSES, **model)
    net = net.clone(backbone=net.backbone.clone(dtype=dtype))
    out = tiny.jit(functools.partial(net.apply, train=False))({'params': whole, **state}, batch_for(model))
    return {name: np.asarray(x) for name, x in out.items()}


@pytest.mark.parametrize('name', GROWTH)
def test_grow_keeps_the_function(name):
    old, changes = GROWTH[name]
    new = {**old, **changes}
    small, fresh = leaves_of(old, 1), initialised(new)
    made = morph.grow(small, fresh, old, new, noise=0.5)
    assert {path: x.shape for path, x in made.items()} == {path: x.shape for path, x in fresh.items()}
    assert {x.dtype for x in made.values()} == {np.dtype('f4')}
    before, after = outputs(old, small), outputs(new, made)
    assert np.ptp(before['logits'], axis=0).max() > 1e-2  # the examples are told apart
    np.testing.assert_allclose(after['logits'], before['logits'], atol=1e-5, rtol=0)
    features = before['features']
    if features.shape == after['features'].shape:
        np.testing.assert_allclose(after['features'], features, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', IN_FLOAT64)
def test_grow_is_exact_in_float64(name):
    # features and logits are float32 at the end: one in the last place of the largest, 1.2e-7, is all that may differ
    old, changes = GROWTH[name]
    new = {**old, **changes}
    with jax.enable_x64():
        small, fresh = ({path: x.astype('f8') for path, x in leaves.items()}
                        for leaves in (leaves_of(old, 1), initialised(new)))  # fmt: skip
        small = {path: x * 1.1 for path, x in small.items()}  # with all their digits
        before, after = outputs(old, small, 'float64'), outputs(new, morph.grow(small, fresh, old, new, 0.5), 'float64')
    error = np.abs(after['logits'] - before['logits']).max() / np.abs(before['logits']).max()
    assert error < 4e-7


def test_grow_of_a_resnet_keeps_what_it_does_in_training_and_its_new_blocks_learn():
    old, new = {**PAD, 'stages': (1, 1)}, {**PAD, 'width': 6, 'stages': (1, 2)}
    small = leaves_of(old, 1)
    fresh = initialised(new)
    made = morph.grow(small, fresh, old, new)
    batch = batch_for(old)

    def loss(params, state, model):
        net = models.build(num_classes=CLASSES, **model)
        out, moved = net.apply({'params': params, **state}, batch, train=True, mutable=['batch_stats'])
        return out['logits'].var(), (out['logits'], moved)

    def trained(leaves, model):
        whole = tree.unflatten(leaves)
        state = whole.pop('model')
        differentiate = tiny.jit(jax.grad(functools.partial(loss, model=model), has_aux=True))
        gradient, (logits, moved) = differentiate(whole, state)
        return tree.flatten(gradient), logits, tree.flatten(moved)

    _, before, moved = trained(small, old)
    gradient, after, moved_too = trained(made, new)
    np.testing.assert_allclose(after, before, atol=1e-5, rtol=0)
    path = 'batch_stats/backbone/stage1/block0/bn1/mean'
    np.testing.assert_allclose(moved_too[path][:4], moved[path], atol=1e-6, rtol=0)  # the first four are themselves
    assert np.abs(gradient['backbone/stage2/block1/bn2/scale']).max() > 1e-4
    assert np.abs(gradient['backbone/stage2/block1/bn2/bias']).max() > 1e-4
    assert np.abs(gradient['backbone/stage2/block1/conv1/kernel']).max() == 0  # until the scale has moved
    path = 'model/batch_stats/backbone/stage2/block1/bn2/var'
    np.testing.assert_array_equal(made[path], fresh[path])  # 0 would make it explode then


@pytest.mark.parametrize('noise', [0.0, 0.5])
def test_grow_with_noise_lets_copies_become_different(noise):
    old, new = {**MLP, 'hidden': (7,)}, {**MLP, 'hidden': (14,)}
    made = morph.grow(leaves_of(old, 1), initialised(new), old, new, noise)
    of = np.array([np.flatnonzero(made['backbone/fc1/bias'][:7] == b)[0] for b in made['backbone/fc1/bias']])
    params, x, net = tree.unflatten(made), batch_for(old), models.build(num_classes=CLASSES, **new)
    tx = optax.adam(0.01)  # whose steps do not depend on the size of a gradient, only on its direction

    @tiny.jit
    def step(params, slots):
        log_p = lambda params: jax.nn.log_softmax(net.apply({'params': params}, x, train=True)['logits'])
        loss = lambda params: -log_p(params)[np.arange(2), np.array([1, 2])].mean()
        updates, slots = tx.update(jax.grad(loss)(params), slots)
        return optax.apply_updates(params, updates), slots

    slots = tx.init(params)
    for _ in range(2):
        params, slots = step(params, slots)
    kernel = np.asarray(params['backbone']['fc1']['kernel'])
    assert np.abs(kernel - made['backbone/fc1/kernel']).max() > 0.01
    apart = np.abs(kernel - kernel[:, of]).max()
    assert apart > 0.01 if noise else apart < 1e-6


def test_grow_copies_each_channel_of_a_stage_at_its_place():
    # option A, 4 -> 8 channels: the stream of stage 1 sits in 2..5 of stage 2; of 6 -> 12, in 3..8
    old, new = PAD, {**PAD, 'width': 6}
    small = leaves_of(old, 1)
    made = morph.grow(small, initialised(new), old, new)
    find = lambda path: [int(np.flatnonzero(small[path] == x)[0]) for x in made[path]]
    first, second = find('backbone/stage1/block0/bn2/bias'), find('backbone/stage2/block0/bn2/bias')
    assert first[:4] == [0, 1, 2, 3] and sorted(set(first)) == [0, 1, 2, 3]
    assert second[3:9] == [2 + channel for channel in first]
    assert set(second[:3] + second[9:]) == {0, 1, 6, 7}


@pytest.mark.parametrize(
    'old, changes, message',
    [
        (MLP, {'hidden': (7,)}, r'config\.model\.hidden: 1 layers is below the 2 of the weights; growth only adds'),
        (MLP, {'hidden': (7, 4)}, r'config\.model\.hidden\[1\]: 4 is below the 5 of the weights'),
        (MLP, {'hidden': (7, 5, 4)}, r'config\.model\.hidden\[2\]: 4 is below the 5'),
        ({**MLP, 'hidden': ()}, {'hidden': (4,)}, 'relu'),
        (MLP, VIT, 'the weights are of mlp, which grows into a larger mlp, not into vit'),
        ({'name': 'conv4', 'width': 16}, {'width': 8}, r'config\.model\.width: 8 is below the 16 of the weights'),
        (PAD, {'width': 3}, r'config\.model\.width: 3 is below the 4'),
        (PAD, {'stages': (2, 1, 1)}, r'config\.model\.stages: 3 stages, and the weights have 2'),
        (PAD, {'stages': (1, 1)}, r'config\.model\.stages\[0\]: 1 blocks is below the 2'),
        (PAD, {'depth': 1}, r'config\.model\.stages: 1 stages, and the weights have 2'),
        ({**PAD, 'stages': (1, 0)}, {'stages': (1, 1)}, r'stages\[1\]: the weights have no block there'),
        (PAD, {'shortcut': 'projection'}, r"config\.model\.shortcut: 'projection' is not the 'pad' of the weights"),
        ({'name': 'resnet56'}, {'name': 'resnet20'}, r'config\.model\.stages\[0\]: 3 blocks is below the 9'),
        (VIT, {'depth': 0}, r'config\.model\.depth: 0 is below the 1'),
        (VIT, {'width': 18, 'heads': 3}, r'width: 18 is no multiple of the 12 of the weights.* use 12 or 24'),
        (VIT, {'heads': 3}, r'heads: 3 heads of a width of 12 have 4 numbers.* 6.* at most 2 heads, or a width of 24'),
        (VIT, {'heads': 1}, r'config\.model\.heads: 1 is below the 2'),
        (VIT, {'mlp_ratio': 1}, r'config\.model\.mlp_ratio: 12 hidden units is below the 18'),
        (VIT, {'patch': 8}, r'config\.model\.patch: 8 is not the 4 of the weights; growth keeps it, and changes depth'),
        (VIT, {'pre_logits': 8}, r'config\.model\.pre_logits: 8 is not the None of the weights'),
        ({**BERT, 'eps': 1e-3}, {'depth': 2, 'eps': 1e-3}, r'config\.model\.depth: 2 blocks.*eps 0\.001'),
        (BERT, {'vocab': 19}, r'config\.model\.vocab: 19 is below the 20'),
        ({'name': 'bit_r50x1'}, {'name': 'bit_r50x3'}, 'bit is not known to grow.* bert, conv4, mlp, resnet, vit'),
    ],
)  # fmt: skip
def test_check_refuses_what_cannot_be_exact(old, changes, message):
    with pytest.raises(UserError, match=message):
        morph.check(old, {**old, **changes} if changes.get('name', old['name']) == old['name'] else changes)


def test_grow_refuses_copies_of_unequal_number_before_a_cosine_head():
    old = {**MLP, 'head': {'name': 'cosine'}}
    new = {**old, 'hidden': (7, 8)}
    with pytest.raises(UserError, match='a cosine head sees'):
        morph.grow(leaves_of(old, 1), initialised(new), old, new)


def test_grow_refuses_weights_with_adapters():
    small = {**leaves_of(MLP, 1), 'lora/backbone/fc1/a': np.zeros((2, 2))}
    with pytest.raises(UserError, match='the weights have lora besides backbone and head'):
        morph.grow(small, leaves_of(MLP, 2), MLP, MLP)
