"""Residual networks under other libraries' names: torchvision and timm, Hugging Face, and akamaster's for CIFAR."""

import re

import numpy as np

from jtl.errors import UserError
from jtl.models import IMAGENET_COLOURS, resnet
from jtl.pretrained.settings import Shapes, architecture, check_shapes, only, stages
from jtl.pretrained.table import CONV, Arrays, Dialect, Row, batch_norm, dense

FAMILY = 'resnet'
BLOCK = 'backbone/stage{stage}/block{block}'
TORCHVISION = (
    Row('conv1.weight', 'backbone/stem/conv/kernel', CONV),
    *batch_norm('bn1', 'backbone/stem/bn'),
    Row('layer{stage}.{block}.conv{i}.weight', f'{BLOCK}/conv{{i}}/kernel', CONV),
    *batch_norm('layer{stage}.{block}.bn{i}', f'{BLOCK}/bn{{i}}'),
    Row('layer{stage}.{block}.downsample.0.weight', f'{BLOCK}/shortcut/conv/kernel', CONV),
    *batch_norm('layer{stage}.{block}.downsample.1', f'{BLOCK}/shortcut/bn'),
)
LAYER = 'encoder.stages.{stage-1}.layers.{block}'


def large(kernel: np.ndarray) -> np.ndarray:
    """A stem's kernel on the way there, where it can only be 7×7."""
    if kernel.shape[:2] != (7, 7):
        raise ValueError(f'a stem of {kernel.shape[0]}×{kernel.shape[1]}, which is 7×7 there')
    return CONV.there(kernel)


LARGE = CONV._replace(there=large)
HUGGINGFACE = (
    Row('[resnet.]embedder.embedder.convolution.weight', 'backbone/stem/conv/kernel', LARGE),
    *batch_norm('[resnet.]embedder.embedder.normalization', 'backbone/stem/bn'),
    Row(f'[resnet.]{LAYER}.layer.{{i-1}}.convolution.weight', f'{BLOCK}/conv{{i}}/kernel', CONV),
    *batch_norm(f'[resnet.]{LAYER}.layer.{{i-1}}.normalization', f'{BLOCK}/bn{{i}}'),
    Row(f'[resnet.]{LAYER}.shortcut.convolution.weight', f'{BLOCK}/shortcut/conv/kernel', CONV),
    *batch_norm(f'[resnet.]{LAYER}.shortcut.normalization', f'{BLOCK}/shortcut/bn'),
    *dense('classifier.1', 'head'),
)


def settings_huggingface(tensors: Arrays, config: dict) -> dict:
    """Refuses the variants that we do not build."""
    only(config, downsample_in_first_stage=False, downsample_in_bottleneck=False, hidden_act='relu')
    return {}


def settings_torchvision(tensors: Arrays, config: dict) -> dict:
    """timm's names are the same. Some of its variants have the same shapes too and compute something else.

    `resnetaa50` and `resnetblur50` blur where they halve the resolution, for instance.
    """
    name = architecture(config)
    if name and not re.fullmatch(r'(tv_)?resnet\d+', name):
        raise UserError(f'config.json: architecture={name!r} is not supported, only plain ones such as resnet50.')
    return {}


def preprocess_torchvision(tensors: Arrays, config: dict) -> dict:
    """Resized bilinearly in training and evaluation; the names of one for CIFAR are akamaster's but for its head."""
    if 'conv1.weight' in tensors and tensors['conv1.weight'].shape[2:] == (3, 3):
        return preprocess_akamaster(tensors, config)
    return {**resnet.preprocess('50'), 'interpolation': 'bilinear'}


def preprocess_akamaster(tensors: Arrays, config: dict) -> dict:
    """CIFAR pictures normalised by ImageNet's mean and standard deviation."""
    return {**resnet.preprocess('20'), **IMAGENET_COLOURS}


DIALECTS = (
    Dialect('torchvision', (*TORCHVISION, *dense('fc', 'head')), settings_torchvision, preprocess_torchvision),
    Dialect('huggingface', HUGGINGFACE, settings_huggingface),
    Dialect('akamaster', (*TORCHVISION, *dense('linear', 'head')), preprocess=preprocess_akamaster),
)


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no ResNet that we build has them.
    """
    check_shapes(shapes)
    blocks = stages(shapes)
    first = 'backbone/stage1/block0/conv1/kernel'
    if first not in shapes or 'backbone/stem/conv/kernel' not in shapes:
        raise UserError('looks like a ResNet without its stem or its first block.')
    stem = shapes['backbone/stem/conv/kernel']
    check_widths(shapes, stem[3], len(blocks))
    built = {
        'stages': blocks,
        'width': stem[3],
        'stem': 'cifar' if stem[0] == 3 else 'imagenet',
        'block': 'bottleneck' if any(path.endswith('/conv3/kernel') for path in shapes) else 'basic',
        'shortcut': 'projection' if any('/shortcut/' in path for path in shapes) else 'pad',
    }
    for variant, known in resnet.VARIANTS.items():
        if variant and all(known[key] == value for key, value in built.items()):
            return {'name': f'resnet{variant}', **settings}
    return {'name': 'resnet', **built, **settings}


def check_widths(shapes: Shapes, width: int, last: int) -> None:
    """Refuses 3×3 convolutions whose channels do not double from stage to stage, up to the last one.

    Raises:
        UserError: they do not, or nothing in the last stage has as many channels as it would be built with.
    """
    inner = {path: re.fullmatch(r'backbone/stage(\d+)/block\d+/conv2/kernel', path) for path in shapes}
    stage = {path: int(match[1]) for path, match in inner.items() if match}
    for path, i in stage.items():
        channels = width * 2 ** (i - 1)
        if shapes[path] != (3, 3, channels, channels):
            raise UserError(
                'looks like a wide ResNet, a ResNeXt or one of other widths that jtl does not build: '
                f'{path} is {shapes[path]}, expected {(3, 3, channels, channels)}.'
            )
    channels = width * 2 ** (last - 1)
    if not any(channels in shape for path, shape in shapes.items() if f'/stage{last}/' in path):
        raise UserError(f'backbone/stage{last} would have {channels} channels, and nothing there has as many.')
