"""BiT under Google's names (npz), timm's and Hugging Face's."""

from jtl.models import bit
from jtl.pretrained.names.resnetv2 import BLOCK, LAYER, TIMM, named, trunk
from jtl.pretrained.settings import Shapes, number, only
from jtl.pretrained.table import CONV, HWIO_DENSE, Arrays, Dialect, Row, dense, norm

FAMILY = 'bit'


def unit(theirs: str, block: str) -> tuple[Row, ...]:
    """The rows of a block in Google's files: its three layers are `a`, `b` and `c`, the shortcut is of `a`."""
    theirs, ours = f'resnet/block{{stage}}/{theirs}', f'backbone/stage{{stage}}/{block}'
    kernel = 'standardized_conv2d/kernel'
    return (
        Row(f'{theirs}/a/proj/{kernel}', f'{ours}/shortcut/kernel'),
        *(Row(f'{theirs}/{x}/{kernel}', f'{ours}/conv{i}/kernel') for i, x in enumerate('abc', 1)),
        *(row for i, x in enumerate('abc', 1) for row in google_norm(f'{theirs}/{x}', f'{ours}/gn{i}')),
    )


def google_norm(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a GroupNorm in Google's files."""
    return norm(f'{theirs}/group_norm', ours, '/gamma', '/beta')


GOOGLE = (
    Row('resnet/root_block/standardized_conv2d/kernel', 'backbone/stem/conv/kernel'),
    *(row for i in range(9) for row in unit(f'unit0{i + 1}', f'block{i}')),  # two digits: unit01, …, unit09
    *unit('unit{block+1}', 'block{block}'),  # unit10, …
    *google_norm('resnet', 'backbone/norm'),
    Row('resnet/head/conv2d/kernel', 'head/kernel', HWIO_DENSE),
    Row('resnet/head/conv2d/bias', 'head/bias'),
)
HF_LAYER = '[bit.]encoder.stages.{stage-1}.layers.{block}'
HUGGINGFACE = (
    Row('[bit.]embedder.convolution.weight', 'backbone/stem/conv/kernel', CONV),
    Row(f'{HF_LAYER}.conv{{i}}.weight', f'{BLOCK}/conv{{i}}/kernel', CONV),
    Row(f'{HF_LAYER}.downsample.conv.weight', f'{BLOCK}/shortcut/kernel', CONV),
    *norm(f'{HF_LAYER}.norm{{i}}', f'{BLOCK}/gn{{i}}'),
    *norm('[bit.]norm', 'backbone/norm'),
    *dense('classifier.1', 'head'),
)


def settings_timm(tensors: Arrays, config: dict) -> dict:
    """timm standardises with another eps than Google."""
    return {'std_eps': 1e-8}


def settings_huggingface(tensors: Arrays, config: dict) -> dict:
    """Refuses the variants that we do not build, those of hybrid ViTs above all."""
    only(
        config,
        layer_type='preactivation',
        hidden_act='relu',
        global_padding=None,
        embedding_dynamic_padding=False,
        output_stride=32,
    )
    groups = number(config, 'num_groups', 32, 1)
    return {'std_eps': 1e-8} if groups == 32 else {'std_eps': 1e-8, 'groups': groups}


DIALECTS = (
    Dialect(
        'timm', (*TIMM, *norm(f'{LAYER}.norm{{i}}', f'{BLOCK}/gn{{i}}'), *norm('norm', 'backbone/norm')), settings_timm
    ),
    Dialect('huggingface', HUGGINGFACE, settings_huggingface),
    Dialect('google', GOOGLE),
)


def model(shapes: Shapes, settings: dict) -> dict:
    """`config.model` for the shapes of our leaves.

    Raises:
        UserError: no BiT that we build has them.
    """
    return {**named(trunk(shapes), {f'bit{variant}': known for variant, known in bit.VARIANTS.items()}), **settings}
