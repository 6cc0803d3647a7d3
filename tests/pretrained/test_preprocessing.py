"""Descriptions of preprocessing that people publish, and those that make no sense."""

import dataclasses
import itertools
import math

import pytest

from jtl.data.pipeline import Preprocess
from jtl.errors import UserError
from jtl.pretrained.preprocessing import described, fraction

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def timm(**said):
    return described({'architecture': 'resnet18', 'pretrained_cfg': said}, {})


def hf(kind, **said):
    return described({}, {'image_processor_type': f'{kind}ImageProcessor', **said})


def test_described_reads_timm():
    # As in timm/resnet18.a1_in1k, with what is not about pictures.
    said = {
        'input_size': [3, 224, 224],
        'test_input_size': [3, 288, 288],
        'fixed_input_size': False,
        'interpolation': 'bicubic',
        'crop_pct': 0.95,
        'test_crop_pct': 1.0,
        'crop_mode': 'center',
        'mean': list(MEAN),
        'std': list(STD),
        'first_conv': 'conv1',
    }
    expected = {
        'size': 224,
        'mean': MEAN,
        'std': STD,
        'interpolation': 'bicubic',
        'crop': 0.95,
        'channels': 3,
        'resize': 'short',
        'centre': 'even',
    }
    assert timm(**said) == expected
    assert described({'architecture': 'resnet18', **said}, {}) == expected  # as older files have it
    assert timm(**{**said, 'crop_mode': 'squash', 'crop_pct': 1.0}) == {**expected, 'crop': 1.0, 'resize': 'squash'}


def test_described_has_timms_defaults():
    got = timm(crop_pct=None, crop_mode=None)
    assert (got['size'], got['crop'], got['mean'], got['interpolation']) == (224, 0.875, MEAN, 'bicubic')


@pytest.mark.parametrize(
    'got, expected',
    [
        # (size, crop, resize, interpolation) of what the hub has under these names
        (hf('ViT', size={'height': 224, 'width': 224}, resample=2), (224, 1.0, 'squash', 'bilinear')),
        (hf('ViT', size=384, resample=2), (384, 1.0, 'squash', 'bilinear')),
        (hf('DeiT', size=256, crop_size=224, resample=3, do_center_crop=True), (224, 0.875, 'squash', 'bicubic')),
        (hf('ConvNext', size=224, crop_pct=0.875, resample=3), (224, 0.875, 'short', 'bicubic')),
        (hf('ConvNext', size={'shortest_edge': 384}), (384, 1.0, 'squash', 'bicubic')),
        (hf('Bit', size={'shortest_edge': 448}, crop_size={'height': 448, 'width': 448}), (448, 1, 'short', 'bicubic')),
        (hf('MobileNetV2', size={'shortest_edge': 256}, resample=2), (224, 0.875, 'short', 'bilinear')),
        (hf('MobileNetV1', size=256), (224, 0.875, 'short', 'bilinear')),
    ],
)
def test_described_reads_hugging_face(got, expected):
    assert (got['size'], got['crop'], got['resize'], got['interpolation']) == expected
    assert got['channels'] == 3 and got['centre'] == 'floor'


def test_described_takes_every_spelling_of_a_processor():
    for name in ('ViTImageProcessor', 'ViTImageProcessorFast', 'ViTFeatureExtractor', 'ViTImageProcessorPil'):
        assert described({}, {'image_processor_type': name})['size'] == 224
    assert described({'model_type': 'resnet'}, {'size': 224, 'crop_pct': 0.875})['crop'] == 0.875


def test_described_scales_as_told():
    # Without rescaling the model sees (x - mean) / std = (x / 255 - mean / 255) / (std / 255).
    assert hf('ViT', do_rescale=False, image_mean=[127.5], image_std=[51])['mean'] == (0.5,)
    assert hf('ViT', do_rescale=False, image_mean=[127.5], image_std=[51])['std'] == (0.2,)
    assert hf('ViT', do_normalize=False)['mean'] == (0.0,) and hf('ViT', do_normalize=False)['std'] == (1.0,)
    assert hf('ViT')['mean'] == (0.5, 0.5, 0.5)
    assert hf('ViT', do_resize=False)['size'] is None
    gray = {'image_processor_type': 'ViTImageProcessor', 'image_mean': 0.5, 'image_std': 1}
    assert described({'num_channels': 1}, gray)['channels'] == 1


def test_described_is_silent_on_text():
    assert described({}, {}) == {}
    assert described({'model_type': 'bert', 'vocab_size': 9}, {}) == {}
    assert described({'model_type': 'vit'}, {}) == {}


def test_described_makes_a_preprocess():
    fields = {'size', 'mean', 'std', 'interpolation', 'crop', 'channels', 'resize', 'centre'}
    assert fields <= {field.name for field in dataclasses.fields(Preprocess)}
    for got in (timm(), hf('ViT'), hf('DeiT'), hf('Bit'), hf('ConvNext'), hf('MobileNetV1'), hf('MobileNetV2')):
        assert set(got) == fields
        Preprocess(**got)


def test_preprocess_of_an_older_run_loads():
    old = {'size': 224, 'mean': MEAN, 'std': STD, 'interpolation': 'bicubic', 'crop': 0.875, 'channels': 3}
    assert (Preprocess(**old).resize, Preprocess(**old).centre) == ('short', 'even')
    with pytest.raises(UserError, match='config.preprocess.resize: .crop. should be short or squash'):
        Preprocess(**old, resize='crop')
    with pytest.raises(UserError, match='config.preprocess.centre: .up. should be even or floor'):
        Preprocess(**old, centre='up')


def test_fraction_gives_the_side():
    # The quotient falls below the whole number for some: floor(s / (s / 49)) is 48 for s = 41 … without care.
    sides = [(size, side) for size in range(1, 130) for side in range(size, 260)]
    assert any(math.floor(size / (size / side)) != side for size, side in sides)
    assert all(math.floor(size / fraction(size, side)) == side for size, side in sides)


@pytest.mark.parametrize(
    'said, message',
    [
        ({'input_size': [3, 224]}, r'input_size=\[3, 224\] should be 3 whole numbers'),
        ({'input_size': [3, 224, 192]}, 'pictures of 224 × 192 are not supported, only square'),
        ({'input_size': [3, -1, -1]}, 'should be 3 whole numbers in 1 … 4096'),
        ({'input_size': [3, 10**9, 10**9]}, 'should be 3 whole numbers in 1 … 4096'),
        ({'input_size': 'big'}, "input_size='big'"),
        ({'input_size': [4, 64, 64]}, 'pictures of 4 channels'),
        ({'mean': [0.5, 0.5]}, 'mean has 2 values, expected 1 or 3'),
        ({'mean': 'grey'}, "mean: 'grey' should be a number"),
        ({'mean': [math.nan] * 3}, 'mean: nan should be a number'),
        ({'std': [0, 1, 1]}, 'should be above 0'),
        ({'std': [10**400]}, 'should be a number'),
        ({'crop_pct': 1.1}, 'crop_pct=1.1 should be at most 1'),
        ({'crop_pct': 1e-9}, 'crop_pct=1e-09 should be .* 224 / 4096 at least'),
        ({'crop_pct': True}, 'crop_pct: True should be a number'),
        ({'crop_mode': 'border'}, "crop_mode='border' is not supported"),
        ({'crop_mode': ['center']}, r"crop_mode=\['center'\] is not supported"),
        ({'crop_border_pixels': 4}, 'crop_border_pixels=4 is not supported'),
        ({'interpolation': 'bicubik'}, "did you mean 'bicubic'"),
    ],
)
def test_described_refuses_timm(said, message):
    with pytest.raises(UserError, match=message):
        timm(**said)
    with pytest.raises(UserError, match='pretrained_cfg is 3'):
        described({'architecture': 'resnet18', 'pretrained_cfg': 3}, {})


@pytest.mark.parametrize(
    'kind, said, message',
    [
        ('Vit', {}, "'VitImageProcessor' is not supported: did you mean 'ViT'"),
        (3, {}, "'3ImageProcessor' is not supported"),
        ('ViT', {'size': {'shortest_edge': 224}}, 'nothing is cut'),
        ('ViT', {'size': {'longest_edge': 224}}, 'size=.* is not supported'),
        ('ViT', {'size': {'height': 224, 'width': 192}}, 'only square'),
        ('ViT', {'size': '224'}, 'size=.* should be 1 whole number'),
        ('ViT', {'size': {'height': True, 'width': True}}, 'should be 2 whole numbers'),
        ('ViT', {'resample': 5}, 'resample=5 is not supported: Known: 0, 1, 2, 3'),
        ('ViT', {'resample': [3]}, 'resample=.* is not supported'),
        ('ViT', {'do_resize': 'yes'}, "do_resize='yes' should be true or false"),
        ('ViT', {'do_resize': False, 'do_center_crop': True}, 'do_center_crop without do_resize'),
        ('ViT', {'do_pad': True}, 'do_pad=True is not supported'),
        ('ViT', {'rescale_factor': 0}, 'rescale_factor=0.0 should be above 0'),
        ('ViT', {'rescale_factor': 'x'}, "rescale_factor: 'x' should be a number"),
        ('ViT', {'image_mean': {'r': 1}}, 'mean: .* should be a number'),
        ('DeiT', {'size': 200}, 'crop_size 224 is larger than size 200'),
        ('ConvNext', {'size': 224, 'crop_pct': 0}, 'crop_pct=0 should be'),
        ('ConvNext', {'size': 224, 'do_center_crop': True}, 'a ConvNext processor with a crop'),
    ],
)
def test_described_refuses_hugging_face(kind, said, message):
    with pytest.raises(UserError, match=message):
        hf(kind, **said)


def test_described_wants_a_processor_it_knows():
    with pytest.raises(UserError, match="model_type='swin' of config.json"):
        described({'model_type': 'swin'}, {'size': 224})
    with pytest.raises(UserError, match=r"model_type=\['vit'\]"):
        described({'model_type': ['vit']}, {'size': 224})


def test_described_is_not_upset_by_nonsense():
    # Every key with every value that JSON can have: fields of a Preprocess, or an error that a person can read.
    odd = (
        None,
        True,
        0,
        -3,
        7,
        1e308,
        math.inf,
        math.nan,
        10**500,
        '',
        'x',
        [],
        [[]],
        [None],
        [3, 4],
        {},
        {'height': 1},
    )
    old = {
        'mean': [0.5],
        'std': [0.5],
        'input_size': [3, 8, 8],
        'crop_pct': 1,
        'crop_mode': '',
        'interpolation': 'nearest',
    }
    new = (*(f'do_{what}' for what in ('resize', 'center_crop', 'rescale', 'normalize', 'pad')), 'size', 'crop_size')
    new = (*new, 'crop_pct', 'resample', 'image_mean', 'image_std', 'rescale_factor', 'image_processor_type')
    tried = [lambda k=k, v=v: timm(**{**old, k: v}) for k, v in itertools.product(old, odd)]
    for kind in ('ViT', 'DeiT', 'Bit', 'ConvNext', 'MobileNetV2'):
        tried += [lambda kind=kind, k=k, v=v: hf(kind, **{k: v}) for k, v in itertools.product(new, odd)]
    tried += [lambda v=v: described({'num_channels': v, 'model_type': v}, {'size': v}) for v in odd]
    outcomes = {'refused': 0, 'read': 0}
    for call in tried:
        try:
            got = Preprocess(**call())
        except UserError:
            outcomes['refused'] += 1
        else:
            outcomes['read'] += 1
            assert got.size is None or got.size / got.crop <= 4097
    assert min(outcomes.values()) > 100
