import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit

from jtl import tree
from jtl.errors import UserError
from jtl.models import build

PARTS = ('query', 'key', 'value')
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 12, 2))


@pytest.mark.parametrize(
    'name, expected',  # timm, 1000 classes at 224
    [('vit_ti16', 5_717_416), ('vit_s16', 22_050_664), ('vit_b16', 86_567_656), ('vit_l16', 304_326_632)],
)
def test_vit_parameter_count(name, expected):
    model = build(name, 1000)
    batch = {'image': jnp.zeros((1, 224, 224, 3))}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    assert tree.count(variables['params']) == expected


def tiny(**kwargs):
    """Two blocks with random parameters, biases and scales included."""
    model = build('vit', 5, **{'patch': 4, 'width': 12, 'depth': 2, 'heads': 3, 'mlp_ratio': 2, **kwargs})
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), {'image': IMAGES}, train=False))
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: np.float32(path.endswith('scale') + 0.3 * rng.normal(size=leaf.shape))
    return model, tree.map_paths(draw, variables)


@functools.partial(jit, static_argnames=('model', 'train'))
def features_of(model, variables, images=IMAGES, train=False, seed=0):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(variables, {'image': images}, train, method='features', rngs=rngs)


def test_vit_parameter_names():
    _, variables = tiny()
    params = {path: leaf.shape for path, leaf in tree.flatten(variables['params']['backbone']).items()}
    assert params['patch/kernel'] == (4, 4, 2, 12)
    assert params['class_token'] == (1, 1, 12)
    assert params['position'] == (1, 7, 12)  # 8×12 pixels in patches of 4: 2 · 3 + 1 tokens
    for name in ('query', 'key', 'value', 'out'):
        assert params[f'block1/attn/{name}/kernel'] == (12, 12)
    assert params['block0/mlp/fc1/kernel'] == (12, 24) and params['block0/mlp/fc2/kernel'] == (24, 12)
    expected = {'patch', 'class_token', 'position', 'block0', 'block1', 'norm'}
    assert {path.split('/')[0] for path in params} == expected
    assert params['block0/norm1/scale'] == params['block0/norm2/bias'] == params['norm/scale'] == (12,)


def vit_reference(params, images, patch, heads, pool, eps=1e-6, activation='gelu'):
    """The forward pass in float64, written with loops over patches and heads; what there is, the parameters say."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    norm = lambda x, q: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * q['scale'] + q['bias']
    )
    linear = lambda x, q: x @ q['kernel'] + q.get('bias', 0)
    gelu = {
        'gelu': lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        'gelu_tanh': lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    }[activation]
    front = [p[name][0, 0] for name in ('class_token', 'distillation_token') if name in p]
    features = []
    for image in np.asarray(images, np.float64):
        rows, columns = image.shape[0] // patch, image.shape[1] // patch
        tokens = [*front]
        for i in range(rows):
            for j in range(columns):
                pixels = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                tokens.append(np.einsum('hwc,hwcd->d', pixels, p['patch']['kernel']) + p['patch']['bias'])
        z = np.stack(tokens) + p['position'][0]
        for block in ('block0', 'block1'):
            q = p[block]
            y = norm(z, q['norm1'])
            query, key, value = (np.split(linear(y, q['attn'][n]), heads, -1) for n in ('query', 'key', 'value'))
            mixed = []
            for n in range(heads):
                weights = np.exp(query[n] @ key[n].T / math.sqrt(query[n].shape[-1]))
                mixed.append(weights / weights.sum(-1, keepdims=True) @ value[n])
            z = z + linear(np.concatenate(mixed, -1), q['attn']['out'])
            z = z + linear(gelu(linear(norm(z, q['norm2']), q['mlp']['fc1'])), q['mlp']['fc2'])
        z = norm(z, p['norm']) if 'norm' in p else z
        z = {'token': z[0], 'both': np.append(z[0], z[1]), 'mean': z[len(front) :].mean(0)}[pool]
        z = norm(z, p['fc_norm']) if 'fc_norm' in p else z
        features.append(np.tanh(linear(z, p['pre_logits'])) if 'pre_logits' in p else z)
    return np.stack(features)


@pytest.mark.parametrize('pool', ['token', 'mean'])
def test_vit_equals_numpy(pool):
    model, variables = tiny(pool=pool)
    features = features_of(model, variables)
    expected = vit_reference(variables['params']['backbone'], IMAGES, 4, 3, pool)
    np.testing.assert_allclose(features, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.3  # and it is not nothing


OPTIONS = {  # and the parameters that the default has not, and those that only it has
    'no class token': ({'class_token': False, 'pool': 'mean'}, '', 'class_token'),
    'distilled, class token': ({'distilled': True}, 'distillation_token', ''),
    'distilled, both': ({'distilled': True, 'pool': 'both'}, 'distillation_token', ''),
    'distilled, mean': ({'distilled': True, 'pool': 'mean'}, 'distillation_token', ''),
    'fc_norm': ({'fc_norm': True, 'pool': 'mean'}, 'fc_norm/scale fc_norm/bias', 'norm/scale norm/bias'),
    'pre_logits': ({'pre_logits': 7}, 'pre_logits/kernel pre_logits/bias', ''),
    'no bias': ({'qkv_bias': False}, '', ' '.join(f'block{i}/attn/{n}/bias' for i in '01' for n in PARTS)),
    'gelu_tanh': ({'activation': 'gelu_tanh'}, '', ''),
    'eps': ({'eps': 0.1}, '', ''),
    'ratio': ({'mlp_ratio': 22 / 12}, '', ''),
}


@pytest.mark.parametrize('case', OPTIONS)
def test_vit_option_equals_numpy(case):
    kwargs, more, less = OPTIONS[case]
    model, variables = tiny(**kwargs)
    backbone, default = variables['params']['backbone'], tiny()[1]['params']['backbone']
    assert set(tree.flatten(backbone)) == (set(tree.flatten(default)) | set(more.split())) - set(less.split())
    assert backbone['block0']['mlp']['fc1']['kernel'].shape == (12, round(12 * kwargs.get('mlp_ratio', 2)))
    features = features_of(model, variables)
    rest = {key: kwargs[key] for key in ('eps', 'activation') if key in kwargs}
    expected = vit_reference(backbone, IMAGES, 4, 3, kwargs.get('pool', 'token'), **rest)
    np.testing.assert_allclose(features, expected, atol=2e-5)
    if rest:  # or these are as if they were not given
        assert np.abs(expected - vit_reference(backbone, IMAGES, 4, 3, 'token')).max() > 1e-4


def test_vit_head_on_both_tokens_is_the_mean_of_two_heads():
    """DeiT: (x₁ W₁ + x₂ W₂) / 2 = [x₁, x₂] [W₁; W₂] / 2."""
    model, variables = tiny(distilled=True, pool='both')
    kernel, bias = variables['params']['head']['kernel'], variables['params']['head']['bias']
    assert kernel.shape == (24, 5)
    first, second = 2 * kernel[:12], 2 * kernel[12:]
    features = features_of(model, variables)
    expected = ((features[:, :12] @ first + bias) + (features[:, 12:] @ second + bias)) / 2
    logits = jit(lambda v: model.apply(v, {'image': IMAGES}, train=False)['logits'])(variables)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'class_token': False}, "pool 'token' needs a class token"),
        ({'class_token': False, 'pool': 'mean', 'distilled': True}, 'distilled needs a class token'),
        ({'pool': 'both'}, "pool 'both' needs distilled=True"),
        ({'pool': 'both', 'distilled': True, 'fc_norm': True}, "pool 'both' needs .*fc_norm=False"),
        ({'activation': 'gelu_tan'}, "activation 'gelu_tan': did you mean 'gelu_tanh'"),
        ({'pool': 'boths'}, "pool 'boths': did you mean 'both'"),
    ],
)
def test_vit_options_that_do_not_go_together_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build('vit', 5, **kwargs)


@pytest.mark.parametrize('kwargs', [{'class_token': False, 'pool': 'mean'}, {'distilled': True, 'pool': 'both'}])
def test_vit_image_of_another_size_counts_the_patches_alone(kwargs):
    model, variables = tiny(**kwargs)
    with pytest.raises(UserError, match='images of 4 patches, but backbone/position was made for 6'):
        model.apply(variables, {'image': IMAGES[:, :, :8]}, train=False)


def test_vit_pools_have_the_same_parameters():
    shapes = lambda variables: jax.tree.map(jnp.shape, variables)
    assert shapes(tiny(pool='token')[1]) == shapes(tiny(pool='mean')[1])


def test_vit_drop_path_grows_from_the_first_block_to_the_last():
    """Rate 0 at block 0 and 1 at block 1: in training, the features of a network that ends after block 0."""
    model, variables = tiny(drop_path=1.0)
    short = build('vit', 5, patch=4, width=12, depth=1, heads=3, mlp_ratio=2)
    backbone = {key: value for key, value in variables['params']['backbone'].items() if key != 'block1'}
    expected = features_of(short, {'params': {'backbone': backbone}})
    trained = features_of(model, variables, train=True)
    np.testing.assert_array_equal(trained, expected)
    evaluated = features_of(model, variables)
    assert jnp.abs(evaluated - expected).max() > 0.1


def test_vit_drop_path_drops_whole_examples_and_rescales():
    """With rate 1/2 at the last of two blocks, an image loses both, one or none of that block's branches."""
    model, variables = tiny(drop_path=0.5)
    images = jnp.tile(IMAGES[:1], (64, 1, 1, 1))
    features = features_of(model, variables, images, train=True)
    assert len(np.unique(np.asarray(features).round(4), axis=0)) == 4  # attention dropped or not × MLP dropped or not


def test_vit_dropout_acts_in_training_only():
    model, variables = tiny(dropout=0.5)
    run = lambda train, seed: features_of(model, variables, train=train, seed=seed)
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    np.testing.assert_array_equal(run(True, 0), run(True, 0))
    assert (run(True, 0) != run(True, 1)).any()


def test_vit_image_of_broken_patches_names_both_and_the_nearest():
    model = build('vit_ti16', 10)
    init = lambda size: jax.eval_shape(
        lambda: model.init(jax.random.key(0), {'image': jnp.zeros((1, *size, 3))}, train=False)
    )
    with pytest.raises(UserError, match='225×225 pixels are not whole patches of 16×16: use 224×224 or 240×240'):
        init((225, 225))
    with pytest.raises(UserError, match='32×40 pixels .* use 32×32 or 32×48'):
        init((32, 40))
    with pytest.raises(UserError, match='8×8 pixels .* use 16×16[.]'):
        init((8, 8))
    init((32, 48))


def test_vit_image_of_another_size_than_the_position_embedding():
    model, variables = tiny()
    with pytest.raises(UserError, match='images of 4 patches, but backbone/position was made for 6'):
        model.apply(variables, {'image': IMAGES[:, :, :8]}, train=False)
