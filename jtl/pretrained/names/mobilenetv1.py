"""MobileNet v1 under other libraries' names: Keras, Gluon, timm and Hugging Face; and what v2 shares with it."""

import itertools
import re
from collections.abc import Mapping

import numpy as np

from jtl.errors import UserError
from jtl.models import mobilenet
from jtl.pretrained.names.resnet import dense, norm
from jtl.pretrained.table import CONV, DENSE, Arrays, Dialect, Row, Way

FAMILY = 'mobilenetv1'


def depthwise(kernel: np.ndarray) -> np.ndarray:
    """Keras's [h, w, C, 1] <-> [h, w, 1, C]; its own inverse."""
    if kernel.ndim != 4:
        raise ValueError(f'of shape {kernel.shape}, expected 4 axes')
    return kernel.transpose(0, 1, 3, 2)


def pointwise(kernel: np.ndarray) -> np.ndarray:
    """[1, 1, D, K] -> [D, K]: a 1×1 convolution after the pooling is a linear layer."""
    if kernel.ndim != 4 or kernel.shape[:2] != (1, 1):
        raise ValueError(f'of shape {kernel.shape}, expected (1, 1, D, K)')
    return kernel[0, 0]


DEPTHWISE = Way('last two axes swapped', depthwise, depthwise)
POINTWISE = Way('a 1×1 convolution', pointwise, lambda kernel: kernel[None, None])


def torch_layer(conv: str, bn: str, ours: str) -> tuple[Row, ...]:
    """The rows of a convolution and its BatchNorm in PyTorch."""
    return Row(f'{conv}.weight', f'backbone/{ours}/conv/kernel', CONV), *norm(bn, f'{ours}/bn')


def keras_layer(conv: str, bn: str, ours: str) -> tuple[Row, ...]:
    """The same in Keras; a depthwise kernel was called `depthwise_kernel` before Keras 3."""
    thin = ours.endswith('/depthwise')
    kernel = 'backbone/' + ours + '/conv/kernel'
    return (
        Row(f'{conv}/[depthwise_]kernel', kernel, DEPTHWISE) if thin else Row(f'{conv}/kernel', kernel),
        Row(f'{bn}/gamma', f'backbone/{ours}/bn/scale'),
        Row(f'{bn}/beta', f'backbone/{ours}/bn/bias'),
        Row(f'{bn}/moving_mean', f'model/batch_stats/backbone/{ours}/bn/mean'),
        Row(f'{bn}/moving_variance', f'model/batch_stats/backbone/{ours}/bn/var'),
    )


def gluon_layer(scope: str, number: str, ours: str) -> tuple[Row, ...]:
    """The same in Gluon, which numbers the layers of a scope."""
    bn = f'{scope}batchnorm{number}'
    return (
        Row(f'{scope}conv{number}_weight', f'backbone/{ours}/conv/kernel', CONV),
        Row(f'{bn}_gamma', f'backbone/{ours}/bn/scale'),
        Row(f'{bn}_beta', f'backbone/{ours}/bn/bias'),
        Row(f'{bn}_running_mean', f'model/batch_stats/backbone/{ours}/bn/mean'),
        Row(f'{bn}_running_var', f'model/batch_stats/backbone/{ours}/bn/var'),
    )


KERAS = (
    *keras_layer('conv1', 'conv1_bn', 'stem'),
    *keras_layer('conv_dw_{block+1}', 'conv_dw_{block+1}_bn', 'block{block}/depthwise'),
    *keras_layer('conv_pw_{block+1}', 'conv_pw_{block+1}_bn', 'block{block}/pointwise'),
    Row('conv_preds/kernel', 'head/kernel', POINTWISE),
    Row('conv_preds/bias', 'head/bias'),
)
GLUON = (
    *gluon_layer('mobilenet{net=0}_', '0', 'stem'),
    *gluon_layer('mobilenet{net=0}_', '{2*block+1}', 'block{block}/depthwise'),
    *gluon_layer('mobilenet{net=0}_', '{2*block+2}', 'block{block}/pointwise'),
    Row('mobilenet{net=0}_dense0_weight', 'head/kernel', DENSE),
    Row('mobilenet{net=0}_dense0_bias', 'head/bias'),
)
LAYER = '[mobilenet_v1.]layer'
HUGGINGFACE = (
    *torch_layer('[mobilenet_v1.]conv_stem.convolution', '[mobilenet_v1.]conv_stem.normalization', 'stem'),
    *torch_layer(f'{LAYER}.{{2*block}}.convolution', f'{LAYER}.{{2*block}}.normalization', 'block{block}/depthwise'),
    *torch_layer(
        f'{LAYER}.{{2*block+1}}.convolution', f'{LAYER}.{{2*block+1}}.normalization', 'block{block}/pointwise'
    ),
    *dense('classifier', 'head'),
)


def timm_blocks(repeats: tuple[int, ...]) -> list[tuple[int, str]]:
    """Our number of every block, and timm's name, which counts within stages: (1, `blocks.1.0`)."""
    places = [f'blocks.{stage}.{i}' for stage, count in enumerate(repeats) for i in range(count)]
    return list(enumerate(places))


TIMM = (
    *torch_layer('conv_stem', 'bn1', 'stem'),
    *itertools.chain.from_iterable(
        (
            *torch_layer(f'{place}.conv_dw', f'{place}.bn1', f'block{i}/depthwise'),
            *torch_layer(f'{place}.conv_pw', f'{place}.bn2', f'block{i}/pointwise'),
        )
        for i, place in timm_blocks(mobilenet.MobileNetV1.repeats)
    ),
    *dense('classifier', 'head'),
)


def keras(tensors: Arrays, config: dict) -> dict:
    """A row of zeros after, and none before, whatever the size."""
    return {'padding': 'after', 'eps': 1e-3, 'momentum': 0.99}


def gluon(tensors: Arrays, config: dict) -> dict:
    """Without the upper limit of relu6."""
    return {'activation': 'relu'}


def huggingface(tensors: Arrays, config: dict) -> dict:
    """As its config.json says; the momentum is that of the original training in TensorFlow."""
    activation = config.get('hidden_act', 'relu6')
    if activation not in ('relu6', 'relu'):
        raise UserError(f"config.json: hidden_act is {activation!r}; only 'relu6' and 'relu' can be built.")
    padding = 'same' if config.get('tf_padding', True) else 'symmetric'
    return {
        'padding': padding,
        'activation': activation,
        'eps': config.get('layer_norm_eps', 1e-3),
        'momentum': 0.9997,
    }


def tensorflow_pixels(tensors: Arrays, config: dict) -> dict:
    """Pixels from -1 to 1, in Keras and in what was converted from TensorFlow."""
    return {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


def timm_pixels(tensors: Arrays, config: dict) -> dict:
    """timm resizes bicubically."""
    return {'interpolation': 'bicubic'}


DIALECTS = (
    Dialect('timm', TIMM, preprocess=timm_pixels),
    Dialect('huggingface', HUGGINGFACE, huggingface, tensorflow_pixels),
    Dialect('keras', KERAS, keras, tensorflow_pixels),
    Dialect('gluon', GLUON, gluon),
)


def model(shapes: Mapping[str, tuple[int, ...]], settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no MobileNet v1 that we build has them.
    """
    check_kernels(shapes)
    ends = block_widths(shapes, 'pointwise')
    repeats, channels = stages(ends, mobilenet.MobileNetV1.repeats)
    depth = max(ends) + 1
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
    if max(ends) >= sum(repeats):  # a deeper one: a stage ends where the width changes
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


def block_widths(shapes: Mapping[str, tuple[int, ...]], part: str) -> dict[int, int]:
    """By the number of the block, the channels that leave a part of it: the last axis of any of its leaves."""
    found = ((re.search(rf'/block(\d+)/{part}/', path), shape) for path, shape in shapes.items())
    return {int(match[1]): shape[-1] for match, shape in found if match}


def width(shapes: Mapping[str, tuple[int, ...]], part: str) -> int | None:
    """The channels that leave the stem, or the last convolution."""
    return next((shape[-1] for path, shape in shapes.items() if f'backbone/{part}/' in path), None)


def check_kernels(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what is built from the same parts with other kernels, such as MnasNet and EfficientNet-Lite."""
    for path, shape in shapes.items():
        if path.endswith('/depthwise/conv/kernel') and shape[:3] != (3, 3, 1):
            raise UserError(f'{path} is {shape}; the depthwise kernels of a MobileNet are (3, 3, 1, C).')
