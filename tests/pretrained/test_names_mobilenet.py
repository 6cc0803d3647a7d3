"""Which MobileNet it is, from the shapes of its leaves and its config.json."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.models import build, mobilenet
from jtl.pretrained.names import mobilenetv1, mobilenetv2
from jtl.pretrained.recognise import recognise
from jtl.pretrained.table import export, translate

FAMILIES = {'v1': mobilenetv1, 'v2': mobilenetv2}


@functools.cache
def shapes(name, **kwargs):
    """By our paths."""
    model = build(name, 3, **kwargs)
    x = {'image': jnp.zeros((1, 32, 32, 3))}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    whole = {**variables['params'], 'model': {'batch_stats': variables['batch_stats']}}
    return {path: leaf.shape for path, leaf in tree.flatten(whole).items()}


def found(name, drop=(), settings=(), **kwargs):
    kept = {path: shape for path, shape in shapes(name, **kwargs).items() if not path.startswith(tuple(drop) or '-')}
    return FAMILIES[name.removeprefix('mobilenet')[:2]].model(kept, dict(settings))


@pytest.mark.parametrize('name', mobilenet.NAMES)
def test_model_names_every_published_width(name):
    assert found(name) == {'name': name}


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('mobilenetv1', {'stem': 16, 'channels': (16, 32, 32, 64, 64)}),
        ('mobilenetv1', {'depth': 6}),
        ('mobilenetv1_0.5', {'depth': 1}),
        ('mobilenetv2', {'channels': (8, 8, 8, 16, 16, 16, 24), 'last': 56, 'expansion': 3}),
        ('mobilenetv2', {'channels': (8, 16, 24, 32, 40, 48, 56), 'repeats': (1, 3, 4, 5, 4, 4, 1)}),
        ('mobilenetv2', {'expand_first': True}),
        ('mobilenetv2', {'depth': 17}),
        ('mobilenetv2_0.35', {'depth': 9, 'expand_first': True}),
    ],
)
def test_model_gives_what_differs(name, kwargs):
    assert found(name, **kwargs) == {'name': name, **kwargs}


def test_model_leaves_out_settings_that_are_defaults():
    assert found('mobilenetv1', settings={'eps': 1e-5, 'padding': 'same'}) == {'name': 'mobilenetv1', 'padding': 'same'}


@pytest.mark.parametrize(
    'name, drop',
    [
        ('mobilenetv1_0.75', ['backbone/stem', 'backbone/block4']),
        ('mobilenetv1_0.75', ['backbone/block12']),  # the head shows that there was more
        ('mobilenetv2_1.4', ['backbone/block3', 'model/']),
        ('mobilenetv2_1.4', ['backbone/last', 'model/batch_stats/backbone/last']),
        ('mobilenetv2_0.35', ['head']),
    ],
)
def test_model_knows_a_partial_network(name, drop):
    assert found(name, drop=drop) == {'name': name}


@pytest.mark.parametrize(
    'family, change, message',
    [
        ('v1', {'backbone/block1/depthwise/conv/kernel': (5, 5, 1, 64)}, r'block1/depthwise.*\(3, 3, 1, C\)'),
        ('v1', {'backbone/block1/pointwise/conv/kernel': (1, 1, 64, 99)}, 'other widths'),
        ('v1', {'backbone/block13/pointwise/conv/kernel': (1, 1, 64, 99)}, 'with 6 stages'),
        ('v2', {'backbone/block4/depthwise/conv/kernel': (3, 3, 1, 99)}, 'wider inside'),
    ],
)
def test_model_refuses_what_cannot_be_built(family, change, message):
    drop = [path.rsplit('/', 2)[0] for path in change]
    kept = {path: shape for path, shape in shapes(f'mobilenet{family}').items() if not any(d in path for d in drop)}
    with pytest.raises(UserError, match=message):
        FAMILIES[family].model({**kept, **change}, {})


def test_model_refuses_an_empty_network():
    with pytest.raises(UserError, match='without a single block'):
        mobilenetv1.model({'backbone/stem/conv/kernel': (3, 3, 3, 32)}, {})


@pytest.mark.parametrize(
    'config, message',
    [
        ({'hidden_act': 'swish'}, "hidden_act='swish' is not supported: .*relu6"),
        ({'layer_norm_eps': -1.0}, r'layer_norm_eps=-1\.0 should be a number from 1e-20 to 1'),
        ({'output_stride': 16}, 'output_stride=16 is not supported, only 32'),
    ],
)
def test_settings_refuse_what_cannot_be_built(config, message):
    with pytest.raises(UserError, match=message):
        mobilenetv2.settings_huggingface({}, config)


def test_settings_refuse_a_first_block_that_adds_nothing():
    """Hugging Face never adds the stem to it; others do where the shapes agree."""
    kernel = np.zeros((8, 8, 1, 1))
    with pytest.raises(UserError, match=r'\(8, 8, 1, 1\)'):
        mobilenetv2.settings_huggingface({'mobilenet_v2.conv_stem.reduce_1x1.convolution.weight': kernel}, {})


UNUSUAL = {
    ('v2', 'gluon'): {'expand_first': True},
    ('v2', 'timm-110d'): {'repeats': (1, 3, 4, 5, 4, 4, 1)},
    ('v2', 'timm-120d'): {'repeats': (1, 3, 5, 6, 5, 5, 1)},
}
DIALECTS = [(version, dialect) for version, family in FAMILIES.items() for dialect in family.DIALECTS]


@pytest.mark.parametrize('version, dialect', DIALECTS, ids=[f'{v} {d.name}' for v, d in DIALECTS])
def test_recognise_tells_dialects_apart(version, dialect):
    """What a dialect wrote is read as that dialect, with the same bits."""
    kwargs = UNUSUAL.get((version, dialect.name), {})
    rng = np.random.default_rng(0)
    sizes = shapes(f'mobilenet{version}', **kwargs)
    ours = {path: rng.normal(size=size).astype(np.float32) for path, size in sizes.items()}
    if version == 'v2' and dialect.name == 'gluon':
        ours['head/bias'][:] = 0  # it has none
    known = recognise(export(ours, dialect), {}, 'the test')
    assert known.dialect.name == dialect.name and known.family == f'mobilenet{version}'
    assert not known.translation.unknown
    assert {k: known.model.get(k) for k in kwargs} == kwargs and known.model['name'] == f'mobilenet{version}'
    assert known.translation.leaves.keys() == ours.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(known.translation.leaves[path], leaf)


def test_gluon_head_without_bias():
    gluon = next(d for d in mobilenetv2.DIALECTS if d.name == 'gluon')
    kernel = np.arange(6.0).reshape(2, 3, 1, 1)
    found = translate({'mobilenetv21_output_pred_weight': kernel}, gluon).leaves
    np.testing.assert_array_equal(found['head/kernel'], kernel[:, :, 0, 0].T)
    np.testing.assert_array_equal(found['head/bias'], np.zeros(2))
    with pytest.raises(UserError, match='head'):
        export({'head/kernel': found['head/kernel'], 'head/bias': np.ones(2)}, gluon)


def test_keras_names_of_2018():
    keras = next(d for d in mobilenetv2.DIALECTS if d.name == 'keras')
    tensors = {'Logits/kernel': np.ones((3, 2)), 'Logits/bias': np.ones(2)}
    leaves = translate(tensors, keras).leaves
    assert set(leaves) == {'head/kernel', 'head/bias'}
    assert set(export(leaves, keras)) == {'predictions/kernel', 'predictions/bias'}
