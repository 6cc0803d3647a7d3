"""Every family through `build`: names, shapes, dtypes, learning, errors."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import jit

import jtl
from jtl import tree
from jtl.errors import UserError
from jtl.models import build, preprocess

CLASSES = 4
LARGE = {'stem': 'imagenet', 'block': 'bottleneck', 'shortcut': 'projection'}
TINY = {  # one tiny model of each family, for 8×8 images
    'resnet': {'stages': (1, 1), 'width': 8},
    'resnet, large': {'stages': (1,), 'width': 8, **LARGE},
    'vit': {'patch': 4, 'width': 16, 'depth': 1, 'heads': 2},
    'mlp': {'hidden': (32, 16)},
    'conv4': {'width': 8},
}
FEATURES = {'resnet': 16, 'resnet, large': 32, 'vit': 16, 'mlp': 16, 'conv4': 8}


def tiny(case, **kwargs):
    return build(case.split(',')[0], CLASSES, **TINY[case], **kwargs)


def init(model, batch):
    return jit(model.init, static_argnames='train')(jax.random.key(0), batch, train=False)


def images(count):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('case', TINY)
def test_build_shapes_and_dtypes(case, dtype):
    batch = {'image': images(8)}
    model = tiny(case, dtype=dtype)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    assert set(variables['params']) == {'backbone', 'head'}
    assert set(tree.flatten(variables['params']['head'])) == {'kernel', 'bias'}
    assert set(variables) <= {'params', 'batch_stats'}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    for train in (False, True):
        outputs, _ = jax.eval_shape(lambda v, t=train: model.apply(v, batch, t, mutable=['batch_stats']), variables)
        assert outputs['logits'].shape == (8, CLASSES) and outputs['logits'].dtype == jnp.float32
        assert outputs['features'].shape == (8, FEATURES[case]) and outputs['features'].dtype == jnp.float32


@pytest.mark.parametrize('case', TINY)
def test_build_bfloat16_is_in_every_layer_but_the_head(case):
    batch = {'image': images(2)}
    model = tiny(case, dtype='bfloat16')
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    run = lambda v: model.apply(v, batch, train=False, capture_intermediates=True)[1]['intermediates']['backbone']
    inner = tree.flatten(jax.eval_shape(run, variables))
    layers = {path: leaf.dtype for path, leaf in inner.items() if not path.startswith('__call__')}
    assert layers and set(layers.values()) == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('case', ['resnet', 'vit'])
def test_build_bfloat16_computes_nearly_the_same(case):
    batch = {'image': images(8)}
    variables = init(tiny(case), batch)
    features = lambda model: jit(lambda v: model.apply(v, batch, train=False)['features'])(variables)
    exact, coarse = features(tiny(case)), features(tiny(case, dtype='bfloat16'))
    error = np.abs(exact - coarse).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05  # bfloat16 keeps 8 bits: 2⁻⁸ = 0.004 an operation; and it is not float32


@pytest.mark.parametrize('case', ['resnet', 'vit', 'mlp', 'conv4'])
def test_build_overfits_one_batch(case):
    """16 random images with labels that have nothing to do with them, 4 classes: chance is 25 %, learning is 100 %."""
    batch = {'image': images(16)}
    labels = np.arange(16) % CLASSES
    model = tiny(case)
    variables = init(model, batch)
    params, state = variables['params'], variables.get('batch_stats', {})
    tx = optax.adam(1e-2)

    def loss_fn(params, state):
        variables = {'params': params, 'batch_stats': state}
        outputs, updates = model.apply(variables, batch, train=True, mutable=['batch_stats'])
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs['logits'], labels).mean()
        return loss, (updates.get('batch_stats', {}), outputs['logits'])

    @jit
    def step(params, state, opt_state):
        (loss, (state, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, loss, (logits.argmax(-1) == labels).mean()

    opt_state = tx.init(params)
    for _ in range(60):
        params, state, opt_state, loss, accuracy = step(params, state, opt_state)
    assert accuracy == 1.0
    assert loss < np.log(CLASSES) / 10  # chance is log 4


def test_build_equal_arguments_give_equal_hashable_models():
    a, b = build('resnet', 10, stages=[1, 1]), build('resnet', 10, stages=(1, 1))
    jax.eval_shape(lambda: a.init(jax.random.key(0), {'image': images(1)}, train=False))  # use leaves no mark on it
    assert a == b and hash(a) == hash(b)
    assert a != build('resnet', 10, stages=(1, 2)) and a != build('resnet', 11, stages=(1, 1))
    assert a != build('resnet', 10, stages=(1, 1), head={'init': 'zeros'})


@pytest.mark.parametrize(
    'name, message',
    [
        ('resnet51', "'resnet51'.*did you mean 'resnet50'"),
        ('resnetv2', "'resnetv2'.*did you mean 'resnet"),
        ('vit_xx16', "'vit_xx16'.*did you mean 'vit_"),
        ('vit_ti', "'vit_ti'.*did you mean 'vit_ti"),
        ('mlpp', "'mlpp'.*did you mean 'mlp'"),
        ('conv5', "'conv5'.*did you mean 'conv4'"),
        ('norm', "'norm'.*Known: .*resnet18"),
        ('', 'Known: .*resnet18'),
    ],
)
def test_build_unknown_name_suggests_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        build(name, 10)
    with pytest.raises(UserError, match=message):
        preprocess(name)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'name': 'resnet', 'stage': (1,)}, "config.model.stage: did you mean 'stages'"),
        ({'name': 'resnet', 'stem': 'imagnet'}, "stem 'imagnet': did you mean 'imagenet'"),
        ({'name': 'vit', 'width': 10, 'heads': 4}, 'width 10 .* 4 heads'),
        ({'name': 'vit', 'pool': 'men'}, "did you mean 'mean'"),
        ({'name': 'mlp', 'hiden': (1,)}, "did you mean 'hidden'"),
        ({'name': 'conv4', 'parent': None}, 'config.model.parent'),
        ({'name': 'mlp', 'dtype': 'float16'}, "dtype 'float16': did you mean 'bfloat16'"),
        ({'name': 'mlp', 'head': {'dropuot': 0.1}}, "config.model.head.dropuot: did you mean 'dropout'"),
        ({'name': 'mlp', 'head': {'init': 'zero'}}, "did you mean 'zeros'"),
        ({'name': 'mlp', 'head': {'name': 'cosin'}}, "unknown config.model.head.name 'cosin': did you mean 'cosine'"),
        ({'name': 'mlp', 'head': {'name': 3}}, 'unknown config.model.head.name 3: Known: cosine, linear, mlp'),
        ({'name': 'mlp', 'head': {'hidden': (64,)}}, 'unknown key config.model.head.hidden: .*Known: dropout, init'),
        ({'name': 'mlp', 'head': {'name': 'mlp', 'hidden': (64, 0)}}, r'head.hidden: \(64, 0\) should be widths of at'),
        (
            {'name': 'mlp', 'head': {'name': 'mlp', 'hidden': ()}},
            r"head.hidden: \(\) should be .*'linear' has no layers",
        ),
        ({'name': 'mlp', 'head': {'name': 'mlp', 'hidden': 64}}, r'head.hidden: 64 should be tuple'),
        ({'name': 'mlp', 'head': {'name': 'mlp', 'activation': 'rel'}}, "head.activation 'rel': did you mean 'relu'"),
        ({'name': 'mlp', 'head': {'name': 'mlp', 'dropout': 1.0}}, r'head.dropout: 1.0 should be in \[0, 1\)'),
        ({'name': 'mlp', 'head': {'dropout': -0.1}}, r'head.dropout: -0.1 should be in \[0, 1\)'),
        ({'name': 'mlp', 'head': {'name': 'cosine', 'scale': 0}}, 'head.scale: 0 should be above 0'),
        ({'name': 'mlp', 'head': {'name': 'cosine', 'init': 'zeros'}}, "head.init: 'zeros' should be 'lecun'"),
        ({'name': 'mlp', 'num_classes': 0}, 'num_classes=0'),
    ],
)
def test_build_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(**{'num_classes': 10, **kwargs})


def test_preprocess_of_each_kind():
    assert preprocess('resnet50')['size'] == 224 and preprocess('resnet50')['mean'] == (0.485, 0.456, 0.406)
    assert preprocess('resnet20')['size'] == 32 and preprocess('resnet20')['std'] == (0.2470, 0.2435, 0.2616)
    assert preprocess('vit_b32')['size'] == 224 and preprocess('vit_b32')['crop'] == 0.9
    for name in ('resnet', 'vit', 'mlp', 'conv4'):
        assert preprocess(name)['size'] is None and preprocess(name)['mean'] == (0.5,)
    for name in ('resnet18', 'resnet20', 'resnet', 'vit_s16', 'vit', 'mlp', 'conv4'):
        assert set(preprocess(name)) == {'size', 'mean', 'std', 'interpolation', 'crop'}


def test_models_imports_no_family_until_asked():
    code = 'import sys, jtl.models; print([m for m in sys.modules if m.startswith("jtl.models.") or m == "flax"])'
    env = {**os.environ, 'PYTHONPATH': str(pathlib.Path(jtl.__file__).parents[1])}
    assert subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True).stdout == '[]\n'
