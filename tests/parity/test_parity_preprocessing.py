"""Preprocessing, bit by bit, against Hugging Face's own image processors and timm's transform as it is defined."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from jtl.data.pipeline import Preprocess
from jtl.pretrained.preprocessing import described, fraction

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil  # noqa: E402
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil  # noqa: E402
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil  # noqa: E402
from transformers.models.mobilenet_v1.image_processing_pil_mobilenet_v1 import MobileNetV1ImageProcessorPil  # noqa: E402
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402

# Smaller and larger than the target, both orientations, square, and margins of every remainder modulo 4.
SIZES = [(50, 61), (61, 50), (48, 48), (64, 64), (37, 90), (120, 71), (200, 301), (303, 200), (73, 205)]
IMAGENET = {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]}


def pictures() -> list[np.ndarray]:
    """Smooth colours under noise, so that filters and shifts by one pixel show."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in SIZES:
        y, x, _ = np.mgrid[:height, :width, :1]
        wave = 90 + 60 * np.sin(x / 7 + np.arange(3)) + 40 * np.cos(y / 5)  # [H, W, 3]
        made.append(np.clip(wave + rng.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8))
    return made


@pytest.mark.parametrize(
    'make, settings',
    [
        (ViTImageProcessorPil, {}),
        (ViTImageProcessorPil, {'size': 47, 'resample': 3, **IMAGENET}),
        (ViTImageProcessorPil, {'size': {'height': 40, 'width': 40}, 'resample': 0, 'do_normalize': False}),
        (ViTImageProcessorPil, {'size': 40, 'resample': 1, 'do_rescale': False, 'image_mean': [127, 120, 99]}),
        (ViTImageProcessorPil, {'size': 40, 'rescale_factor': 1 / 127.5, 'image_mean': [1.0] * 3}),
        (DeiTImageProcessorPil, {}),
        (DeiTImageProcessorPil, {'size': 64, 'crop_size': 47, **IMAGENET}),  # squashed, with an odd margin
        (BitImageProcessorPil, {}),
        (BitImageProcessorPil, {'size': {'shortest_edge': 49}, 'crop_size': 48, **IMAGENET}),
        (BitImageProcessorPil, {'size': {'shortest_edge': 40}, 'crop_size': 40}),
        (MobileNetV1ImageProcessorPil, {'size': {'shortest_edge': 55}, 'crop_size': 48}),
        (MobileNetV2ImageProcessorPil, {'size': {'shortest_edge': 256}, 'crop_size': 224}),
        (ConvNextImageProcessorPil, {'size': {'shortest_edge': 224}, 'crop_pct': 0.875, **IMAGENET}),
        (ConvNextImageProcessorPil, {'size': {'shortest_edge': 48}, 'crop_pct': 0.9}),
        (ConvNextImageProcessorPil, {'size': {'shortest_edge': 384}}),
    ],
    ids=lambda v: v.__name__[:4] if isinstance(v, type) else '',
)
def test_described_is_hugging_faces_processor(make, settings, tmp_path):
    processor = make(**settings)
    processor.save_pretrained(tmp_path)
    preprocess = Preprocess(**described({}, json.loads((tmp_path / 'preprocessor_config.json').read_text())))
    assert preprocess.channels == 3
    plain = {'do_rescale': False, 'do_normalize': False}
    for picture in pictures():
        theirs = processor(Image.fromarray(picture), **plain)['pixel_values'][0].transpose(1, 2, 0)
        ours = preprocess.fit(picture)
        np.testing.assert_array_equal(ours, theirs, err_msg=str(picture.shape))  # bytes: no tolerance
        theirs = processor(Image.fromarray(picture))['pixel_values'][0].transpose(1, 2, 0)
        # Both round to float32 in another order: a few units in the last place of the largest number.
        np.testing.assert_allclose(preprocess.normalise([ours])[0], theirs, rtol=0, atol=5e-7 * abs(theirs).max())


@pytest.mark.parametrize('name', ['ViTFeatureExtractor', None])
def test_described_reads_the_oldest_files(name, tmp_path):
    # What google/vit-base-patch16-224 has: a plain number, and in some no name of the processor.
    old = {'do_normalize': True, 'do_resize': True, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3, 'resample': 2}
    old = {**old, 'size': 224, **({'feature_extractor_type': name} if name else {})}
    preprocess = Preprocess(**described({'model_type': 'vit'}, old))
    processor = ViTImageProcessorPil(**{k: v for k, v in old.items() if k != 'feature_extractor_type'})
    for picture in pictures():
        theirs = processor(picture, input_data_format='channels_last')['pixel_values'][0].transpose(1, 2, 0)
        np.testing.assert_allclose(preprocess.normalise([preprocess.fit(picture)])[0], theirs, rtol=0, atol=5e-7)


def timms(picture: np.ndarray, size: int, crop: float, mode: str, filter: Image.Resampling) -> np.ndarray:
    """timm.data.transforms_factory.transforms_imagenet_eval on torchvision's Resize and CenterCrop, as published."""
    image = Image.fromarray(picture)
    scaled = math.floor(size / crop)
    if mode == 'squash':
        image = image.resize((scaled, scaled), filter)
    else:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        other = int(scaled * long / short)
        image = image.resize((scaled, other) if width <= height else (other, scaled), filter)
    width, height = image.size
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize('mode', ['center', 'squash'])
@pytest.mark.parametrize('size, crop', [(224, 0.875), (224, 0.95), (224, 0.9), (47, 0.9), (48, 1.0), (45, 0.965)])
@pytest.mark.parametrize('filter', ['bilinear', 'bicubic'])
def test_described_is_timms_transform(mode, size, crop, filter):
    said = {'input_size': [3, size, size], 'crop_pct': crop, 'crop_mode': mode, 'interpolation': filter}
    preprocess = Preprocess(**described({'architecture': 'resnet18', 'pretrained_cfg': said}, {}))
    for picture in pictures():
        expected = timms(picture, size, crop, mode, Image.Resampling[filter.upper()])
        np.testing.assert_array_equal(preprocess.fit(picture), expected, err_msg=str(picture.shape))


def test_described_catches_a_pixel():
    # A margin of 3: its half is rounded to 2 (even) or 1 (floor). And 224 / 0.9 = 248.9 is 248 for all of them.
    picture = pictures()[3][:51, :51]
    even, floor = (Preprocess(size=48, crop=fraction(48, 51), centre=c).fit(picture) for c in ('even', 'floor'))
    np.testing.assert_array_equal(even, picture[2:50, 2:50])
    np.testing.assert_array_equal(floor, picture[1:49, 1:49])
    rounded = timms(picture, 224, 224 / 249, 'center', Image.Resampling.BICUBIC)
    assert not np.array_equal(Preprocess(size=224, crop=0.9).fit(picture), rounded)
