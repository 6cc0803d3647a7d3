"""Residual networks whose blocks normalise first: ResNet v2 (18 … 152).

A block is y = x + F(x), F = (BatchNorm, relu, convolution) twice or thrice, so that nothing stands between the input
of a stage and its end but additions. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. Where the
shape changes, the shortcut is a 1×1 convolution of relu(bn1(x)), which the branch begins with as well. A bottleneck
halves the resolution in its 3×3 convolution, as in Gluon and timm.

No block ends with a normalisation, so the network does. One that is cut, by `depth`, ends with the normalisation that
its next block would begin with: the trained one, under the path that it has in the whole network.

Parameters: `stem/conv/kernel`, `stem/bn/scale`, `stage1/block0/bn1/scale`, `stage1/block0/conv1/kernel`,
`stage1/block0/shortcut/kernel`, …, `norm/scale`; cut to `depth=3`: `stage4/block0/bn1/scale` at the end.

Legend: B batch, H and W height and width, C channels, D features.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest
from jtl.models import IMAGENET_COLOURS
from jtl.models.resnet import batch_norm, check_depth, conv, convolutions, max_pool_3x3_s2

BASIC = {'block': 'basic', 'width': 64}
BOTTLENECK = {'block': 'bottleneck', 'width': 64}
VARIANTS = {
    '_18': {**BASIC, 'stages': (2, 2, 2, 2)},
    '_34': {**BASIC, 'stages': (3, 4, 6, 3)},
    '_50': {**BOTTLENECK, 'stages': (3, 4, 6, 3)},
    '_101': {**BOTTLENECK, 'stages': (3, 4, 23, 3)},
    '_152': {**BOTTLENECK, 'stages': (3, 8, 36, 3)},
}
NAMES = tuple(f'resnetv2{variant}' for variant in VARIANTS)
CHOICES = {'block': ('basic', 'bottleneck'), 'stem': ('normed', 'plain')}


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The ResNet v2 of a variant, `_50` for instance; keyword arguments override what the variant says."""
    if variant not in VARIANTS:
        raise UserError(f'unknown model {f"resnetv2{variant}"!r}: {nearest(f"resnetv2{variant}", NAMES)}')
    check_kwargs(ResNetV2, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    for key, known in CHOICES.items():
        if kwargs.get(key, known[0]) not in known:
            raise UserError(f'unknown config.model.{key} {kwargs[key]!r}: {nearest(str(kwargs[key]), known)}')
    network = ResNetV2(**{**VARIANTS[variant], **kwargs}, dtype=dtype)
    check_depth(network.depth, network.stages)
    return network


def preprocess(variant: str) -> dict[str, Any]:
    """The images that a variant was made for: those of Gluon, which resizes bilinearly."""
    return {'size': 224, **IMAGENET_COLOURS, 'interpolation': 'bilinear', 'crop': 0.875}


class ResNetV2(nn.Module):
    """Stem, stages of pre-activation blocks, BatchNorm and relu, global average pooling: [B, H, W, C] -> [B, D].

    Attributes:
        stages: the number of blocks in each; every stage but the first halves H and W and doubles the channels.
        width: channels of the stem, and of the first stage (of its 3×3 convolutions, if bottleneck).
        block: `basic` is two 3×3 convolutions; `bottleneck` is 1×1, 3×3, 1×1 with four times the channels at its end.
        stem: `normed` normalises the image (by running statistics, without parameters) and the first convolution, as
            in Gluon; `plain` is a convolution and max pooling alone, as in timm.
        depth: keep the first so many stages; None keeps all.
        dtype: of the computation; parameters and statistics are float32.
        remat: keep each block's input alone and compute the rest again when its gradient needs it: the same model in
            less memory, for about a third more work.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    block: str = 'bottleneck'
    stem: str = 'normed'
    depth: int | None = None
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.stem == 'normed':
            fixed = nn.BatchNorm(
                momentum=0.9, epsilon=1e-5, use_scale=False, use_bias=False, dtype=self.dtype, name='input_bn'
            )
            x = fixed(x, use_running_average=not train)
        x = Stem(self.width, self.stem == 'normed', self.dtype, name='stem')(x, train)  # [B, H/4, W/4, C]
        x = residual_stages(
            x,
            train,
            stages=self.stages,
            width=self.width,
            block=self.block,
            norm=functools.partial(norm_relu, dtype=self.dtype),
            conv=functools.partial(conv, dtype=self.dtype),
            depth=self.depth,
            remat=self.remat,
        )
        return x.mean((1, 2), dtype=jnp.float32)  # [B, D]


def norm_relu(x: jax.Array, train: bool, i: int | None, dtype: str) -> jax.Array:
    """relu(BatchNorm(x)), `bn1` for instance: the i-th of a block; None is the network's last, `norm`."""
    name = 'norm' if i is None else f'bn{i}'
    return nn.relu(batch_norm(dtype, name=name)(x, use_running_average=not train))


class Stem(nn.Module):
    """7×7 convolution, BatchNorm and relu if `normed`, max pooling: [B, H, W, C] -> [B, H/4, W/4, C']."""

    width: int
    normed: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = conv(self.width, kernel=7, stride=2, dtype=self.dtype, name='conv')(x)  # [B, H/2, W/2, C']
        if self.normed:
            x = nn.relu(batch_norm(self.dtype, name='bn')(x, use_running_average=not train))
        return max_pool_3x3_s2(x)


def residual_stages(
    x: jax.Array,
    train: bool,
    *,
    stages: tuple[int, ...],
    width: int,
    block: str,
    norm: Callable,
    conv: Callable,
    depth: int | None,
    remat: bool,
) -> jax.Array:
    """Pre-activation stages with a normalisation at their end: [B, H, W, C] -> [B, H', W', D]. Called in a module.

    Args:
        norm: `(x, train, i) -> x`, normalised and rectified: see `norm_relu`.
        conv: `(channels, kernel, stride, name=…)` -> a module: see `jtl.models.resnet.conv`.
        stages, width, block, depth, remat: see `ResNetV2`.
    """
    depth = len(stages) if depth is None else depth
    for i, blocks in enumerate(stages[:depth]):
        stride = 1 if i == 0 else 2
        x = Stage(blocks, width * 2**i, stride, block, norm, conv, remat, name=f'stage{i + 1}')(x, train)
    if depth == len(stages):
        return norm(x, train, None)
    return Stage(0, 0, 1, block, norm, conv, False, name=f'stage{depth + 1}')(x, train)


class Stage(nn.Module):
    """Blocks of one resolution; the first of them changes the shape. No blocks: the first one's normalisation alone.

    Attributes: see `residual_stages` and `Block`.
    """

    blocks: int
    width: int
    stride: int
    block: str
    norm: Callable
    conv: Callable
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.blocks:
            return Opening(self.norm, name='block0')(x, train)
        make = nn.remat(Block, static_argnums=2) if self.remat else Block  # 2 is `train`
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = make(self.width, stride, self.block, self.norm, self.conv, name=f'block{i}')(x, train)
        return x


class Opening(nn.Module):
    """What a block begins with: its first normalisation, and relu."""

    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(x, train, 1)


class Block(nn.Module):
    """F(x) + shortcut(x), F = (normalisation, relu, convolution) …: [B, H, W, C] -> [B, H/stride, W/stride, C']."""

    width: int
    stride: int
    kind: str
    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers = convolutions(self.kind, self.width, self.stride)
        y = self.norm(x, train, 1)
        if self.stride > 1 or x.shape[-1] != layers[-1][0]:
            x = self.conv(layers[-1][0], 1, self.stride, name='shortcut')(y)
        for i, (channels, kernel, stride) in enumerate(layers, 1):
            y = y if i == 1 else self.norm(y, train, i)
            y = self.conv(channels, kernel, stride, name=f'conv{i}')(y)
        return x + y
