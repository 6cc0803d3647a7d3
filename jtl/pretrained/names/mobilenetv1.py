"""MobileNet v1 under other libraries' names: Keras, Gluon, timm and Hugging Face; and what v2 shares with it."""

import itertools
import re
from collections.abc import Mapping

import numpy as np

from jtl.errors import UserError
from jtl.models import mobilenet
from jtl.pretrained.settings import Shapes, check_shapes, chosen, count, eps
from jtl.pretrained.table import (
    CONV,
    DENSE,
    GLUON_ENDS,
    HWIO_DENSE,
    KERAS_ENDS,
    Arrays,
    Dialect,
    Row,
    Way,
    batch_norm,
    dense,
)

FAMILY = 'mobilenetv1'


def depthwise(kernel: np.ndarray) -> np.ndarray:
    """Keras's [h, w, C, 1] <-> [h, w, 1, C]; its own inverse."""
    if kernel.ndim != 4:
        raise ValueError(f'of shape {kernel.shape}, expected 4 axes')
    return kernel.transpose(0, 1, 3, 2)


DEPTHWISE = Way('last two axes swapped', depthwise, depthwise)


def torch_layer(conv: str, bn: str, ours: str) -> tuple[Row, ...]:
    """The rows of a convolution and its BatchNorm in PyTorch."""
    return Row(f'{conv}.weight', f'{ours}/conv/kernel', CONV), *batch_norm(bn, f'{ours}/bn')


def keras_layer(conv: str, bn: str, ours: str) -> tuple[Row, ...]:
    """The same in Keras; a depthwise kernel was called `depthwise_kernel` before Keras 3."""
    thin, kernel = ours.endswith('/depthwise'), f'{ours}/conv/kernel'
    return (
        Row(f'{conv}/[depthwise_]kernel', kernel, DEPTHWISE) if thin else Row(f'{conv}/kernel', kernel),
        *batch_norm(bn, f'{ours}/bn', KERAS_ENDS),
    )


def gluon_layer(scope: str, number: str, ours: str) -> tuple[Row, ...]:
    """The same in Gluon, which numbers the layers of a scope."""
    return (
        Row(f'{scope}conv{number}_weight', f'{ours}/conv/kernel', CONV),
        *batch_norm(f'{scope}batchnorm{number}', f'{ours}/bn', GLUON_ENDS),
    )


KERAS = (
    *keras_layer('conv1', 'conv1_bn', 'backbone/stem'),
    *keras_layer('conv_dw_{block+1}', 'conv_dw_{block+1}_bn', 'backbone/block{block}/depthwise'),
    *keras_layer('conv_pw_{block+1}', 'conv_pw_{block+1}_bn', 'backbone/block{block}/pointwise'),
    Row('conv_preds/kernel', 'head/kernel', HWIO_DENSE),
    Row('conv_preds/bias', 'head/bias'),
)
GLUON = (
    *gluon_layer('mobilenet{net=0}_', '0', 'backbone/stem'),
    *gluon_layer('mobilenet{net=0}_', '{2*block+1}', 'backbone/block{block}/depthwise'),
    *gluon_layer('mobilenet{net=0}_', '{2*block+2}', 'backbone/block{block}/pointwise'),
    Row('mobilenet{net=0}_dense0_weight', 'head/kernel', DENSE),
    Row('mobilenet{net=0}_dense0_bias', 'head/bias'),
)
LAYER = '[mobilenet_v1.]layer'
HUGGINGFACE = (
    *torch_layer('[mobilenet_v1.]conv_stem.convolution', '[mobilenet_v1.]conv_stem.normalization', 'backbone/stem'),
    *torch_layer(
        f'{LAYER}.{{2*block}}.convolution', f'{LAYER}.{{2*block}}.normalization', 'backbone/block{block}/depthwise'
    ),
    *torch_layer(
        f'{LAYER}.{{2*block+1}}.convolution', f'{LAYER}.{{2*block+1}}.normalization', 'backbone/block{block}/pointwise'
    ),
    *dense('classifier', 'head'),
)


def timm_blocks(repeats: tuple[int, ...]) -> list[tuple[int, str]]:
    """Our number of every block, and timm's name, which counts within stages: (1, `blocks.1.0`)."""
    places = [f'blocks.{stage}.{i}' for stage, count in enumerate(repeats) for i in range(count)]
    return list(enumerate(places))


TIMM = (
    *torch_layer('conv_stem', 'bn1', 'backbone/stem'),
    *itertools.chain.from_iterable(
        (
            *torch_layer(f'{place}.conv_dw', f'{place}.bn1', f'backbone/block{i}/depthwise'),
            *torch_layer(f'{place}.conv_pw', f'{place}.bn2', f'backbone/block{i}/pointwise'),
        )
        for i, place in timm_blocks(mobilenet.MobileNetV1.repeats)
    ),
    *dense('classifier', 'head'),
)


ACTIVATIONS = {'relu6': 'relu6', 'relu': 'relu'}


def settings_keras(tensors: Arrays, config: dict) -> dict:
    """A row of zeros after, and none before, whatever the size."""
    return {'padding': 'after', 'eps': 1e-3, 'momentum': 0.99}


def settings_gluon(tensors: Arrays, config: dict) -> dict:
    """Without the upper limit of relu6."""
    return {'activation': 'relu'}


def settings_huggingface(tensors: Arrays, config: dict) -> dict:
    """As its config.json says; the momentum is that of the original training in TensorFlow."""
    return {
        'padding': 'same' if config.get('tf_padding', True) else 'symmetric',
        'activation': chosen(config, 'hidden_act', ACTIVATIONS, 'relu6'),
        'eps': eps(config, 'layer_norm_eps', 1e-3),
        'momentum': 0.9997,
    }


def preprocess_tensorflow(tensors: Arrays, config: dict) -> dict:
    """Pixels from -1 to 1, in Keras and in what was converted from TensorFlow."""
    return {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


def preprocess_timm(tensors: Arrays, config: dict) -> dict:
    """timm resizes bicubically."""
    return {'interpolation': 'bicubic'}


DIALECTS = (
    Dialect('timm', TIMM, preprocess=preprocess_timm),
    Dialect('huggingface', HUGGINGFACE, settings_huggingface, preprocess_tensorflow),
    Dialect('keras', KERAS, settings_keras, preprocess_tensorflow),
    Dialect('gluon', GLUON, settings_gluon),
)


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no MobileNet v1 that we build has them.
    """
    check_kernels(shapes)
    ends = block_widths(shapes, 'pointwise')
    repeats, channels = stages(ends, mobilenet.MobileNetV1.repeats)
    depth = count(ends, 'backbone/block')
    cut = depth < sum(repeats) and shapes.get('head/kernel', (ends[depth - 1],))[0] == ends[depth - 1]
    built = {'stem': width(shapes, 'stem'), 'channels': channels, 'repeats': repeats}
    return named('v1', built, {**settings, **({'depth': depth} if cut else {})})


def named(version: str, built: dict, settings: dict) -> dict:
    """`config.model`: the variant with these numbers, if there is one, and what differs from its defaults.

    Args:
        built: keyword arguments of the model; None for a number that no leaf shows, also within `channels`.
    """
    module = mobilenet.MobileNetV1 if version == 'v1' else mobilenet.MobileNetV2
    defaults = {key: getattr(module, key) for key in (*built, *settings)}
    settings = {key: value for key, value in settings.items() if value != defaults[key]}
    for alpha in mobilenet.WIDTHS[version]:
        variant = {**defaults, **mobilenet.widths(version, alpha)}
        if all(agrees(built[key], variant[key]) for key in built):
            return {'name': f'mobilenet{version}' + ('' if alpha == 1 else f'_{alpha}'), **settings}
    channels = built['channels']
    for i, known in enumerate(channels):  # of stages that are not there: any number will do
        channels = channels if known else (*channels[:i], channels[i - 1] or built['stem'], *channels[i + 1 :])
    built = {key: value for key, value in {**built, 'channels': channels}.items() if value not in (None, defaults[key])}
    return {'name': f'mobilenet{version}', **built, **settings}


def agrees(known, expected) -> bool:
    """Whether a number, or each of several, is as expected or not known."""
    if isinstance(known, tuple):
        return len(known) == len(expected) and all(map(agrees, known, expected))
    return known is None or known == expected


def stages(ends: Mapping[int, int], repeats: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """`(repeats, channels)` of the stages of a network, by the widths of its blocks; `repeats` are the usual ones.

    Raises:
        UserError: the widths change elsewhere.
    """
    if not ends:
        raise UserError('looks like a MobileNet without a single block.')
    if count(ends, 'backbone/block') > sum(repeats):  # a deeper one: a stage ends where the width changes
        usual, runs = len(repeats), [list(run) for _, run in itertools.groupby(sorted(ends), ends.get)]
        repeats = tuple(map(len, runs))
        if len(repeats) != usual or sum(repeats) != max(ends) + 1:
            raise UserError(
                f'looks like a MobileNet with {len(repeats)} stages of blocks; jtl builds those with {usual}.'
            )
    starts = itertools.accumulate(repeats, initial=0)
    found = [{ends[i] for i in range(start, start + count) if i in ends} for start, count in zip(starts, repeats)]
    if any(len(seen) > 1 for seen in found):
        raise UserError('looks like a MobileNet whose blocks have other widths than those of one stage.')
    return repeats, tuple(min(seen, default=None) for seen in found)


def block_widths(shapes: Shapes, part: str) -> dict[int, int]:
    """By the number of the block, the channels that leave a part of it: the last axis of any of its leaves."""
    found = ((re.search(rf'/block(\d+)/{part}/', path), shape) for path, shape in shapes.items())
    return {int(match[1]): shape[-1] for match, shape in found if match}


def width(shapes: Shapes, part: str) -> int | None:
    """The channels that leave the stem, or the last convolution."""
    return next((shape[-1] for path, shape in shapes.items() if f'backbone/{part}/' in path), None)


def check_kernels(shapes: Shapes) -> None:
    """Refuses what is built from the same parts with other kernels, such as MnasNet and EfficientNet-Lite."""
    check_shapes(shapes)
    for path, shape in shapes.items():
        if path.endswith('/depthwise/conv/kernel') and shape[:3] != (3, 3, 1):
            raise UserError(f'{path} is {shape}; the depthwise kernels of a MobileNet are (3, 3, 1, C).')
