"""MobileNet v2 under other libraries' names: Keras, Gluon, torchvision, timm and Hugging Face."""

import itertools
import math

import numpy as np

from jtl.errors import UserError
from jtl.models import mobilenet
from jtl.pretrained.names import mobilenetv1
from jtl.pretrained.names.mobilenetv1 import (
    gluon_layer,
    keras_layer,
    preprocess_tensorflow,
    preprocess_timm,
    torch_layer,
)
from jtl.pretrained.settings import Shapes, only
from jtl.pretrained.table import OIHW_DENSE, Arrays, Dialect, Row, Way, dense

FAMILY = 'mobilenetv2'
PARTS = ('expand', 'depthwise', 'project')


def head(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gluon's [K, D, 1, 1], a 1×1 convolution without bias -> [D, K] and a bias of zeros."""
    return OIHW_DENSE.here(kernel), np.zeros(len(kernel), kernel.dtype)


def biasless(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The way back, for a bias of zeros."""
    if bias.any():
        raise ValueError('the head of this network has no bias there, and this one is not zero')
    return OIHW_DENSE.there(kernel)


HEAD = Way('a 1×1 convolution without bias', head, biasless)

KERAS = (
    *keras_layer('Conv1', 'bn_Conv1', 'backbone/stem'),
    *keras_layer('expanded_conv_depthwise', 'expanded_conv_depthwise_BN', 'backbone/block0/depthwise'),
    *keras_layer('expanded_conv_project', 'expanded_conv_project_BN', 'backbone/block0/project'),
    *itertools.chain.from_iterable(
        keras_layer(f'block_{{block}}_{part}', f'block_{{block}}_{part}_BN', f'backbone/block{{block}}/{part}')
        for part in PARTS
    ),
    *keras_layer('Conv_1', 'Conv_1_bn', 'backbone/last'),
    Row('predictions/kernel', 'head/kernel'),
    Row('predictions/bias', 'head/bias'),
    Row('Logits/kernel', 'head/kernel'),  # its name in the files of 2018
    Row('Logits/bias', 'head/bias'),
)
SCOPE = 'mobilenetv2{net=0}_features_'
GLUON = (
    *gluon_layer(SCOPE, '0', 'backbone/stem'),
    *itertools.chain.from_iterable(
        gluon_layer(f'{SCOPE}linearbottleneck{{block}}_', str(i), f'backbone/block{{block}}/{part}')
        for i, part in enumerate(PARTS)
    ),
    *gluon_layer(SCOPE, '1', 'backbone/last'),
    Row('mobilenetv2{net=0}_output_pred_weight', ('head/kernel', 'head/bias'), HEAD),
)
TORCHVISION = (
    *torch_layer('features.0.0', 'features.0.1', 'backbone/stem'),
    *torch_layer('features.1.conv.0.0', 'features.1.conv.0.1', 'backbone/block0/depthwise'),
    *torch_layer('features.1.conv.1', 'features.1.conv.2', 'backbone/block0/project'),
    *torch_layer('features.18.0', 'features.18.1', 'backbone/last'),
    *torch_layer('features.{block+1}.conv.0.0', 'features.{block+1}.conv.0.1', 'backbone/block{block}/expand'),
    *torch_layer('features.{block+1}.conv.1.0', 'features.{block+1}.conv.1.1', 'backbone/block{block}/depthwise'),
    *torch_layer('features.{block+1}.conv.2', 'features.{block+1}.conv.3', 'backbone/block{block}/project'),
    *dense('classifier.1', 'head'),
)
NET = '[mobilenet_v2.]'
LAYERS = {'expand_1x1': 'expand', 'conv_3x3': 'depthwise', 'reduce_1x1': 'project'}


def huggingface_layer(theirs: str, ours: str) -> tuple[Row, ...]:
    return torch_layer(f'{NET}{theirs}.convolution', f'{NET}{theirs}.normalization', ours)


HUGGINGFACE = (
    *huggingface_layer('conv_stem.first_conv', 'backbone/stem'),
    *itertools.chain.from_iterable(
        huggingface_layer(f'conv_stem.{k}', f'backbone/block0/{v}') for k, v in LAYERS.items()
    ),
    *itertools.chain.from_iterable(
        huggingface_layer(f'layer.{{block-1}}.{k}', f'backbone/block{{block}}/{v}') for k, v in LAYERS.items()
    ),
    *huggingface_layer('conv_1x1', 'backbone/last'),
    *dense('classifier', 'head'),
)


def timm_rows(repeats: tuple[int, ...]) -> tuple[Row, ...]:
    """timm's rows for a network with so many blocks in each stage."""
    first, *blocks = mobilenetv1.timm_blocks(repeats)
    return (
        *torch_layer('conv_stem', 'bn1', 'backbone/stem'),
        *torch_layer(f'{first[1]}.conv_dw', f'{first[1]}.bn1', 'backbone/block0/depthwise'),
        *torch_layer(f'{first[1]}.conv_pw', f'{first[1]}.bn2', 'backbone/block0/project'),
        *itertools.chain.from_iterable(
            (
                *torch_layer(f'{place}.conv_pw', f'{place}.bn1', f'backbone/block{i}/expand'),
                *torch_layer(f'{place}.conv_dw', f'{place}.bn2', f'backbone/block{i}/depthwise'),
                *torch_layer(f'{place}.conv_pwl', f'{place}.bn3', f'backbone/block{i}/project'),
            )
            for i, place in blocks
        ),
        *torch_layer('conv_head', 'bn2', 'backbone/last'),
        *dense('classifier', 'head'),
    )


def deeper(times: float) -> tuple[int, ...]:
    """The repeats of timm's deeper variants: all stages but the first and the last have `times` as many blocks."""
    first, *middle, last = mobilenet.MobileNetV2.repeats
    return first, *(math.ceil(count * times) for count in middle), last


def settings_keras(tensors: Arrays, config: dict) -> dict:
    return {'padding': 'same', 'eps': 1e-3, 'momentum': 0.999}


def settings_huggingface(tensors: Arrays, config: dict) -> dict:
    """As its config.json says; the momentum is that of the original training in TensorFlow.

    Raises:
        UserError: it is dilated, or has a first block that does not narrow: it is not added to what it is given there.
    """
    only(config, output_stride=32)
    name = 'conv_stem.reduce_1x1.convolution.weight'
    first = next((x for key, x in tensors.items() if key.endswith(name)), None)
    if first is not None and first.ndim == 4 and first.shape[0] == first.shape[1]:
        raise UserError(
            f'{name} is {first.shape}; only a first block that changes the number of channels can be built.'
        )
    return {**mobilenetv1.settings_huggingface(tensors, config), 'momentum': 0.997}


DIALECTS = (
    Dialect('torchvision', TORCHVISION),
    Dialect('timm', timm_rows(mobilenet.MobileNetV2.repeats), preprocess=preprocess_timm),
    Dialect('timm-110d', timm_rows(deeper(1.2)), preprocess=preprocess_timm),  # 1.2 times as deep
    Dialect('timm-120d', timm_rows(deeper(1.4)), preprocess=preprocess_timm),  # 1.4 times as deep
    Dialect('huggingface', HUGGINGFACE, settings_huggingface, preprocess_tensorflow),
    Dialect('keras', KERAS, settings_keras, preprocess_tensorflow),
    Dialect('gluon', GLUON),
)


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no MobileNet v2 that we build has them.
    """
    mobilenetv1.check_kernels(shapes)
    ends, inner = (mobilenetv1.block_widths(shapes, part) for part in ('project', 'depthwise'))
    repeats, channels = mobilenetv1.stages(ends, mobilenet.MobileNetV2.repeats)
    stem, last, depth = mobilenetv1.width(shapes, 'stem'), mobilenetv1.width(shapes, 'last'), max(ends) + 1
    cut = last is None and shapes.get('head/kernel', (ends[depth - 1],))[0] == ends[depth - 1]
    factors = {inner[i] / ends[i - 1] for i in inner if i and i - 1 in ends}
    if len(factors) > 1 or any(factor % 1 for factor in factors) or inner.get(0, stem) != (stem or inner.get(0)):
        raise UserError('looks like a MobileNet v2 whose blocks are not all wider inside by the same whole number.')
    built = {
        'stem': stem,
        'channels': channels,
        'repeats': repeats,
        'last': last,
        'expansion': int(min(factors)) if factors else None,
    }
    expand_first = any('/block0/expand/' in path for path in shapes)
    return mobilenetv1.named(
        'v2', built, {**settings, 'expand_first': expand_first, **({'depth': depth} if cut else {})}
    )
