"""ResNet v2 under other libraries' names: Gluon's, which ONNX files keep, and timm's."""

import re

import numpy as np

from jtl.errors import UserError
from jtl.models import resnetv2
from jtl.pretrained.names.resnet import BLOCK, check_widths
from jtl.pretrained.settings import Shapes, check_shapes, stages
from jtl.pretrained.table import CONV, DENSE, GLUON_ENDS, OIHW_DENSE, Arrays, Dialect, Row, Way, batch_norm

FAMILY = 'resnetv2'

NET = 'resnetv2{net=0}_'  # Gluon counts the networks of a process: resnetv20_, resnetv21_, …
STAGE = NET + 'stage{stage}_'


def statistics(gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The BatchNorm of the input has no parameters: Gluon writes the ones and zeros that it never trains."""
    if (gamma != 1).any() or (beta != 0).any():
        raise ValueError('the input is scaled or shifted')
    return mean, var


INPUT = Way('', statistics, lambda mean, var: (np.ones_like(mean), np.zeros_like(mean), mean, var))


def kernel(size: int) -> Way:
    """A convolution of one size of kernel: what tells a bottleneck, 1×1 3×3 1×1, from a basic block."""

    def here(x: np.ndarray) -> np.ndarray:
        if x.ndim != 4 or x.shape[2:] != (size, size):
            raise ValueError(f'of shape {x.shape}, expected a kernel of {size}×{size}')
        return CONV.here(x)

    return Way(CONV.name, here, CONV.there)


def around(blocks: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of a network in Gluon around those of its blocks."""
    return (
        Row(
            tuple(f'{NET}batchnorm0_{leaf}' for leaf in ('gamma', 'beta', 'running_mean', 'running_var')),
            tuple(f'model/batch_stats/backbone/input_bn/{leaf}' for leaf in ('mean', 'var')),
            INPUT,
        ),
        Row(f'{NET}conv0_weight', 'backbone/stem/conv/kernel', CONV),
        *batch_norm(f'{NET}batchnorm1', 'backbone/stem/bn', GLUON_ENDS),
        *blocks,
        *batch_norm(f'{NET}batchnorm2', 'backbone/norm', GLUON_ENDS),
        Row(f'{NET}dense0_weight', 'head/kernel', DENSE),
        Row(f'{NET}dense0_bias', 'head/bias'),
    )


def conv(theirs: str, ours: str, size: int) -> Row:
    """The row of a convolution in Gluon."""
    return Row(f'{theirs}_weight', f'{ours}/kernel', kernel(size))


# Gluon numbers the layers of a stage in the order of their making: the convolutions of the first block, its shortcut,
# the convolutions of the second block, … The rows of the first block come first; what they leave is of later ones.
FIRST = 'backbone/stage{stage}/block0'
BOTTLENECK = (
    conv(f'{STAGE}conv0', f'{FIRST}/conv1', 1),
    conv(f'{STAGE}conv1', f'{FIRST}/conv2', 3),
    conv(f'{STAGE}conv2', f'{FIRST}/conv3', 1),
    conv(f'{STAGE}conv3', f'{FIRST}/shortcut', 1),
    conv(STAGE + 'conv{3*block+1}', f'{BLOCK}/conv1', 1),
    conv(STAGE + 'conv{3*block+2}', f'{BLOCK}/conv2', 3),
    conv(STAGE + 'conv{3*block+3}', f'{BLOCK}/conv3', 1),
    *batch_norm(STAGE + 'batchnorm{3*block}', f'{BLOCK}/bn1', GLUON_ENDS),
    *batch_norm(STAGE + 'batchnorm{3*block+1}', f'{BLOCK}/bn2', GLUON_ENDS),
    *batch_norm(STAGE + 'batchnorm{3*block+2}', f'{BLOCK}/bn3', GLUON_ENDS),
)
BASIC = (  # the first stage has no shortcut, since nothing changes its shape
    conv(NET + 'stage1_conv{2*block}', 'backbone/stage1/block{block}/conv1', 3),
    conv(NET + 'stage1_conv{2*block+1}', 'backbone/stage1/block{block}/conv2', 3),
    conv(f'{STAGE}conv0', f'{FIRST}/conv1', 3),
    conv(f'{STAGE}conv1', f'{FIRST}/conv2', 3),
    conv(f'{STAGE}conv2', f'{FIRST}/shortcut', 1),
    conv(STAGE + 'conv{2*block+1}', f'{BLOCK}/conv1', 3),
    conv(STAGE + 'conv{2*block+2}', f'{BLOCK}/conv2', 3),
    *batch_norm(STAGE + 'batchnorm{2*block}', f'{BLOCK}/bn1', GLUON_ENDS),
    *batch_norm(STAGE + 'batchnorm{2*block+1}', f'{BLOCK}/bn2', GLUON_ENDS),
)

LAYER = 'stages.{stage-1}.blocks.{block}'
TIMM = (
    Row('stem.conv.weight', 'backbone/stem/conv/kernel', CONV),
    Row(f'{LAYER}.conv{{i}}.weight', f'{BLOCK}/conv{{i}}/kernel', CONV),
    Row(f'{LAYER}.downsample.conv.weight', f'{BLOCK}/shortcut/kernel', CONV),
    Row('head.fc.weight', 'head/kernel', OIHW_DENSE),
    Row('head.fc.bias', 'head/bias'),
)  # what BiT has as well


def preprocess_timm(tensors: Arrays, config: dict) -> dict:
    """In timm neither the image nor the first convolution is normalised, and pictures are resized bicubically."""
    return {**resnetv2.preprocess('_50'), 'interpolation': 'bicubic'}


DIALECTS = (
    Dialect(
        'timm',
        (*TIMM, *batch_norm(f'{LAYER}.norm{{i}}', f'{BLOCK}/bn{{i}}'), *batch_norm('norm', 'backbone/norm')),
        preprocess=preprocess_timm,
    ),
    Dialect('gluon', around(BOTTLENECK)),
    Dialect('gluon-basic', around(BASIC)),
)


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no ResNet v2 that we build has them.
    """
    block = 'bottleneck' if any(path.endswith('/conv3/kernel') for path in shapes) else 'basic'
    variants = {f'resnetv2{v}': known for v, known in resnetv2.VARIANTS.items() if known['block'] == block}
    stem = {} if 'backbone/stem/bn/scale' in shapes else {'stem': 'plain'}
    return {**named(trunk(shapes), variants), **stem, **settings}


def trunk(shapes: Shapes) -> dict:
    """The stages and the width of a pre-activation network, and its `depth` if it is one that was cut.

    Raises:
        UserError: it has no stem or no first block, or its channels are not those that we build.
    """
    check_shapes(shapes)
    if not {'backbone/stem/conv/kernel', 'backbone/stage1/block0/conv2/kernel'} <= set(shapes):
        raise UserError(
            'looks like a ResNet v2 whose stem or first block is missing or is of a kind jtl does not build.'
        )
    width, blocks = shapes['backbone/stem/conv/kernel'][3], stages(shapes)
    last = [path for path in shapes if f'/stage{len(blocks)}/' in path]
    cut = {'depth': len(blocks) - 1} if all(re.search(r'/block0/[bg]n1/', path) for path in last) else {}
    check_widths(shapes, width, cut.get('depth', len(blocks)))
    return {'stages': blocks, 'width': width, **cut}


def named(built: dict, variants: dict[str, dict]) -> dict:
    """The variant with these stages and this width, or the first of `variants` and what to change in it.

    A network that was cut says nothing of the stages behind the cut: those before it decide.
    """
    cut = built.get('depth')
    depth = {} if cut is None else {'depth': cut}
    for name, known in variants.items():
        same = len(known['stages']) == len(built['stages']) if cut is None else cut < len(known['stages'])
        if same and known['stages'][:cut] == built['stages'][:cut] and known['width'] == built['width']:
            return {'name': name, **depth}
    return {'name': next(iter(variants)), **built}
