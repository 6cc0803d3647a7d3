"""What every family refuses alike: odd values in a config.json, and shapes of which no network should be built."""

import contextlib
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.models import IMAGENET_COLOURS, build
from jtl.pretrained import settings
from jtl.pretrained.names import bert, bit, mobilenetv1, mobilenetv2, resnet, resnetv2, vit
from jtl.pretrained.recognise import dialects, families, recognise
from jtl.pretrained.table import export, translate

TINY = {  # for every file of names that has a model of its own: one that it finds, whatever else the settings say
    resnet: ({'name': 'resnet', 'stages': (1, 2), 'width': 4, 'block': 'bottleneck', 'shortcut': 'projection'}, {}),
    resnetv2: ({'name': 'resnetv2_50', 'stages': (1, 2), 'width': 4}, {}),
    bit: ({'name': 'bit_r50x1', 'stages': (1, 2), 'width': 4, 'groups': 2}, {'groups': 2}),
    mobilenetv1: ({'name': 'mobilenetv1_0.25'}, {}),
    mobilenetv2: ({'name': 'mobilenetv2_0.35'}, {}),
    vit: ({'name': 'vit', 'patch': 8, 'width': 64, 'depth': 2, 'heads': 1}, {'pool': 'token'}),
    bert: ({'name': 'bert', 'vocab': 9, 'positions': 8, 'width': 64, 'depth': 2, 'heads': 2}, {'heads': 2}),
}
FAMILIES = pytest.mark.parametrize('family', TINY, ids=lambda family: family.__name__.rpartition('.')[2])


@functools.cache
def shapes_of(family):
    model = build(num_classes=3, **TINY[family][0])
    batch = {'tokens': jnp.ones((1, 3), jnp.int32)} if family is bert else {'image': jnp.zeros((1, 32, 32, 3))}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    whole = {**variables['params'], 'model': {k: x for k, x in variables.items() if k != 'params'}}
    return {path: leaf.shape for path, leaf in tree.flatten(whole).items()}


def found(family, change):
    """`family.model` for the shapes of a tiny network with a change, in seconds."""
    return family.model({**shapes_of(family), **change}, TINY[family][1])


def test_every_family_is_tried_here():
    assert {family.FAMILY for family in families()} == {family.FAMILY for family in TINY}


@FAMILIES
def test_model_finds_the_tiny_one(family):
    assert found(family, {})['name'] == TINY[family][0]['name']


def blocks(family, stage, block):
    """A leaf of a block, and its shape; where there are no stages, `stage` is not used."""
    parts = {
        mobilenetv1: 'pointwise/bn/scale',
        mobilenetv2: 'project/bn/scale',
        vit: 'norm1/scale',
        bert: 'norm1/scale',
    }
    place = f'block{block}' if family in parts else f'stage{stage}/block{block}'
    return f'backbone/{place}/{parts.get(family, "conv1/kernel")}'


@FAMILIES
@pytest.mark.parametrize('stage, block', [(1, 100_000), (99_999, 0), (999_999, 999_999)])
def test_model_refuses_a_block_with_a_large_number(family, stage, block):
    if block == 0 and '/stage' not in blocks(family, 1, 0):
        stage, block = 1, 99_999
    start = time.monotonic()
    with pytest.raises(UserError, match=r'backbone/(stage|block)\S*\d{5,6} is there, but only \d+ of \d+ up to it'):
        found(family, {blocks(family, stage, block): shapes_of(family)[blocks(family, 1, 0)]})
    assert time.monotonic() - start < 1


@pytest.mark.parametrize('family', [resnet, resnetv2, bit])
def test_model_refuses_a_stage_that_is_not_there(family):
    shape = shapes_of(family)[blocks(family, 1, 0)]
    with pytest.raises(UserError, match='backbone/stage4 is there, but nothing of backbone/stage3'):
        found(family, {blocks(family, 4, 0): shape})


@pytest.mark.parametrize('family', [resnet, resnetv2, bit])
def test_model_refuses_stages_without_a_width(family):
    """Every stage doubles the channels, so twenty tiny tensors could ask for a million of them."""
    shape = shapes_of(family)[blocks(family, 1, 0)]
    with pytest.raises(UserError, match=rf'backbone/stage20 would have {4 * 2**19} channels, and nothing'):
        found(family, {blocks(family, stage, 0): shape for stage in range(3, 21)})


@FAMILIES
def test_model_counts_a_block_that_weights_lack(family):
    """Block 0 of 2 is missing, of the last stage where there are any."""
    lost = blocks(family, 2, 0).rpartition('block0')[0] + 'block0/'
    if family in (mobilenetv1, mobilenetv2):
        lost = lost.replace('block0', 'block3')
    kept = {path: shape for path, shape in shapes_of(family).items() if lost not in path}
    assert len(kept) < len(shapes_of(family))
    assert family.model(kept, TINY[family][1]) == found(family, {})


@FAMILIES
def test_model_refuses_empty_leaves_and_scalars(family):
    for path, shape in shapes_of(family).items():
        for odd in ((0, *shape[1:]), (*shape[:-1], 0), ()):
            with pytest.raises(UserError, match=f'{path} is of shape'):
                found(family, {path: odd})


DIALECTS = [(family, dialect) for family, dialect in dialects() if dialect.name not in ('google', 'big_vision')]
DIALECTS += [(bit, next(dialect for dialect in bit.DIALECTS if dialect.name == 'google'))]


@pytest.mark.parametrize('family, dialect', DIALECTS, ids=[f'{f.FAMILY} {d.name}' for f, d in DIALECTS])
def test_tensors_of_any_rank_are_recognised_or_refused(family, dialect):
    """Names that fit with arrays that do not: no exception but UserError."""
    tensors = {}
    for path, shape in shapes_of(family).items():  # what the library has a name for
        with contextlib.suppress(UserError):
            tensors |= export({path: np.zeros(shape, np.float32)}, dialect)
    assert len(tensors) > 10
    ours = list(shapes_of(family))
    for shape in [(), (1,), (3,), (2, 3), (0, 3), (1, 2, 3), (1, 2, 3, 0), (3, 3, 1, 4), (1, 1, 1, 1), (1,) * 6]:
        odd = {name: np.zeros(shape, np.float32) for name in tensors}
        with contextlib.suppress(UserError):
            leaves = translate(odd, dialect).leaves
            dialect.preprocess(odd, {})
            family.model({path: leaf.shape for path, leaf in leaves.items()}, dialect.settings(odd, {}))
        for path in ours[:: 1 + len(ours) // 40]:
            with contextlib.suppress(UserError):
                found(family, {path: shape})


def test_only_takes_one_value_and_no_value():
    settings.only({'stride': 32, 'act': None, 'other': 3}, stride=32, act='relu', absent=1)
    with pytest.raises(UserError, match=r"config\.json: act='gelu' is not supported, only 'relu'\."):
        settings.only({'act': 'gelu'}, act='relu')


def test_chosen_translates():
    known = {'gelu_new': 'gelu_tanh', 'relu': 'relu'}
    assert settings.chosen({'act': 'gelu_new'}, 'act', known, 'relu') == 'gelu_tanh'
    assert settings.chosen({'act': None}, 'act', known, 'relu') == settings.chosen({}, 'act', known, 'relu') == 'relu'
    for odd in ('gelu_nwe', '', ['relu'], 3, {}):
        with pytest.raises(UserError, match=r'config\.json: act=.* is not supported: .*Known: gelu_new, relu'):
            settings.chosen({'act': odd}, 'act', known, 'relu')


def test_number_is_whole_or_not():
    assert settings.number({}, 'n', 7, 1) == settings.number({'n': None}, 'n', 7, 1) == 7
    assert settings.number({'n': 3}, 'n', 7, 1) == 3
    for odd in (0, -1, 1.5, True, '3', [3], 10**400, math.nan):
        with pytest.raises(UserError, match=r'config\.json: n=.* should be a whole number from 1 to 1000000'):
            settings.number({'n': odd}, 'n', 7, 1)


def test_eps_is_small_and_above_zero():
    assert settings.eps({}, 'e', 1e-6) == settings.eps({'e': None}, 'e', 1e-6) == 1e-6
    assert settings.eps({'e': 1e-12}, 'e', 1e-6) == 1e-12 and isinstance(settings.eps({'e': 1}, 'e', 1e-6), float)
    for odd in (0, 0.0, -1.0, -1e-12, 1.1, 1e30, math.inf, -math.inf, math.nan, '1e-12', True, [1e-6]):
        with pytest.raises(UserError, match=r'config\.json: e=.* should be a number from 1e-20 to 1'):
            settings.eps({'e': odd}, 'e', 1e-6)


@pytest.mark.parametrize('name', ['resnetaa50', 'resnetblur50', 'resnet50d', 'wide_resnet50_2', 'seresnet50', 'resnet'])
def test_resnet_of_timm_with_the_same_shapes_is_refused(name):
    """`resnetaa50` and `resnetblur50` have the very tensors of a `resnet50`."""
    with pytest.raises(UserError, match=f"architecture='{name}' is not supported"):
        resnet.settings_torchvision({}, {'architecture': name})


@pytest.mark.parametrize(
    'config', [{'architecture': n} for n in ('resnet50', 'tv_resnet101', 'resnet18.a1_in1k')] + [{}]
)
def test_resnet_of_timm_is_taken(config):
    assert resnet.settings_torchvision({}, config) == {}


def test_resnet_for_cifar_without_a_head_expects_small_pictures():
    """It has the names of torchvision's and of akamaster's alike."""
    variables = {path: np.zeros(shape, np.float32) for path, shape in shapes_of(resnet).items() if 'head' not in path}
    small, large = (
        export({**variables, 'backbone/stem/conv/kernel': np.zeros((k, k, 3, 4))}, resnet.DIALECTS[0]) for k in (3, 7)
    )
    small, large = recognise(small, {}, 'x'), recognise(large, {}, 'x')
    assert small.dialect == large.dialect and (small.model['stem'], large.model['stem']) == ('cifar', 'imagenet')
    assert small.preprocess['size'] == 32 and large.preprocess['size'] == 224
    assert {**IMAGENET_COLOURS, 'crop': 1.0}.items() <= small.preprocess.items()


@pytest.mark.parametrize(
    'name, taken',
    [
        ('vit_base_patch16_224', True),
        ('vit_base_patch16_siglip_gap_224', True),
        ('vit_so400m_patch14_siglip_gap_384', True),
        ('vit_base_patch32_siglip_gap_256', False),
        ('vit_large_patch16_siglip_gap_512', False),
        ('vit_so400m_patch16_siglip_gap_256', False),
        ('vit_giantopt_patch16_siglip_gap_256', False),
        ('vit_base_patch16_rpn_224', False),
        ('test_vit', False),
    ],
)
def test_vit_of_timm_whose_config_does_not_say_what_it_computes_is_refused(name, taken):
    with contextlib.nullcontext() if taken else pytest.raises(UserError, match=f"architecture='{name}', with"):
        assert vit.settings_timm({}, {'architecture': name})['pool'] == 'mean'
