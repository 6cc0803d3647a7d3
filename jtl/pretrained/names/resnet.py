"""Residual networks under other libraries' names: torchvision and timm, Hugging Face, and akamaster's for CIFAR."""

import re
from collections.abc import Mapping

from jtl.errors import UserError
from jtl.models import resnet
from jtl.pretrained.table import CONV, DENSE, Arrays, Dialect, Row, left_out

FAMILY = 'resnet'


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a BatchNorm in PyTorch: two parameters, two statistics, and a count that nothing reads."""
    return (
        Row(f'{theirs}.weight', f'backbone/{ours}/scale'),
        Row(f'{theirs}.bias', f'backbone/{ours}/bias'),
        Row(f'{theirs}.running_mean', f'model/batch_stats/backbone/{ours}/mean'),
        Row(f'{theirs}.running_var', f'model/batch_stats/backbone/{ours}/var'),
        left_out(f'{theirs}.num_batches_tracked', 'a count of batches'),
    )


def dense(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a linear layer in PyTorch."""
    return Row(f'{theirs}.weight', f'{ours}/kernel', DENSE), Row(f'{theirs}.bias', f'{ours}/bias')


BLOCK = 'stage{stage}/block{block}'
TORCHVISION = (
    Row('conv1.weight', 'backbone/stem/conv/kernel', CONV),
    *norm('bn1', 'stem/bn'),
    Row('layer{stage}.{block}.conv{i}.weight', f'backbone/{BLOCK}/conv{{i}}/kernel', CONV),
    *norm('layer{stage}.{block}.bn{i}', f'{BLOCK}/bn{{i}}'),
    Row('layer{stage}.{block}.downsample.0.weight', f'backbone/{BLOCK}/shortcut/conv/kernel', CONV),
    *norm('layer{stage}.{block}.downsample.1', f'{BLOCK}/shortcut/bn'),
)
LAYER = 'encoder.stages.{stage-1}.layers.{block}'
HUGGINGFACE = (
    Row('[resnet.]embedder.embedder.convolution.weight', 'backbone/stem/conv/kernel', CONV),
    *norm('[resnet.]embedder.embedder.normalization', 'stem/bn'),
    Row(f'[resnet.]{LAYER}.layer.{{i-1}}.convolution.weight', f'backbone/{BLOCK}/conv{{i}}/kernel', CONV),
    *norm(f'[resnet.]{LAYER}.layer.{{i-1}}.normalization', f'{BLOCK}/bn{{i}}'),
    Row(f'[resnet.]{LAYER}.shortcut.convolution.weight', f'backbone/{BLOCK}/shortcut/conv/kernel', CONV),
    *norm(f'[resnet.]{LAYER}.shortcut.normalization', f'{BLOCK}/shortcut/bn'),
    *dense('classifier.1', 'head'),
)


def huggingface(tensors: Arrays, config: dict) -> dict:
    """Refuses the variants that we do not build."""
    ours = {'downsample_in_first_stage': False, 'downsample_in_bottleneck': False, 'hidden_act': 'relu'}
    for key, value in ours.items():
        if config.get(key, value) != value:
            raise UserError(f'config.json: {key} is {config[key]!r}; only {value!r} can be built.')
    return {}


def torchvision(tensors: Arrays, config: dict) -> dict:
    """Resized bilinearly in training and evaluation."""
    return {**resnet.preprocess('50'), 'interpolation': 'bilinear'}


def akamaster(tensors: Arrays, config: dict) -> dict:
    """CIFAR pictures normalised by ImageNet's mean and standard deviation."""
    return {**resnet.preprocess('20'), **{key: resnet.preprocess('50')[key] for key in ('mean', 'std')}}


DIALECTS = (
    Dialect('torchvision', (*TORCHVISION, *dense('fc', 'head')), preprocess=torchvision),
    Dialect('huggingface', HUGGINGFACE, huggingface),
    Dialect('akamaster', (*TORCHVISION, *dense('linear', 'head')), preprocess=akamaster),
)


def model(shapes: Mapping[str, tuple[int, ...]], settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no ResNet that we build has them.
    """
    found = {tuple(map(int, m.groups())) for path in shapes if (m := re.search(r'/stage(\d+)/block(\d+)/', path))}
    stages = tuple(sum(stage == i for stage, _ in found) for i in range(1, max(found, default=(0,))[0] + 1))
    first = 'backbone/stage1/block0/conv1/kernel'
    if first not in shapes or 'backbone/stem/conv/kernel' not in shapes:
        raise UserError('looks like a ResNet without its stem or its first block.')
    stem, (_, _, _, width) = shapes['backbone/stem/conv/kernel'], shapes[first]
    built = {
        'stages': stages,
        'width': width,
        'stem': 'cifar' if stem[0] == 3 else 'imagenet',
        'block': 'bottleneck' if any(path.endswith('/conv3/kernel') for path in shapes) else 'basic',
        'shortcut': 'projection' if any('/shortcut/' in path for path in shapes) else 'pad',
    }
    if stem[3] != width or any(shape[2] < width for path, shape in shapes.items() if path.endswith('/conv2/kernel')):
        raise UserError('looks like a wide ResNet or a ResNeXt, which jtl does not build.')
    for variant, known in resnet.VARIANTS.items():
        if variant and all(known[key] == value for key, value in built.items()):
            return {'name': f'resnet{variant}', **settings}
    return {'name': 'resnet', **built, **settings}
