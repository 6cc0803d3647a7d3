"""Residual networks: for large images (ResNet-18 … 152) and for CIFAR (ResNet-20 … 110).

A block adds what it computes to what it was given, y = relu(F(x) + shortcut(x)), so that a deep stack starts close to
the identity and gradients reach every layer. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
The large ones are v1.5, as in torchvision: a bottleneck halves the resolution in its 3×3 convolution, not in the
first 1×1. The CIFAR ones follow section 4.2, with the parameter-free shortcut (option A).

Parameters: `stem/conv/kernel`, `stem/bn/scale`, `stage1/block0/conv1/kernel`, `stage1/block0/bn1/scale`,
`stage1/block0/shortcut/conv/kernel`, …

Legend: B batch, H and W height and width, C channels, D features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest
from jtl.models import IMAGENET_COLOURS

IMAGENET = {'stem': 'imagenet', 'shortcut': 'projection', 'width': 64, 'zero_init_residual': True}
CIFAR = {'stem': 'cifar', 'shortcut': 'pad', 'width': 16, 'block': 'basic'}
VARIANTS = {
    '': {},  # whatever the keyword arguments say; by default a tiny one for tiny images
    '18': {**IMAGENET, 'block': 'basic', 'stages': (2, 2, 2, 2)},
    '34': {**IMAGENET, 'block': 'basic', 'stages': (3, 4, 6, 3)},
    '50': {**IMAGENET, 'block': 'bottleneck', 'stages': (3, 4, 6, 3)},
    '101': {**IMAGENET, 'block': 'bottleneck', 'stages': (3, 4, 23, 3)},
    '152': {**IMAGENET, 'block': 'bottleneck', 'stages': (3, 8, 36, 3)},
    '20': {**CIFAR, 'stages': (3, 3, 3)},
    '32': {**CIFAR, 'stages': (5, 5, 5)},
    '44': {**CIFAR, 'stages': (7, 7, 7)},
    '56': {**CIFAR, 'stages': (9, 9, 9)},
    '110': {**CIFAR, 'stages': (18, 18, 18)},
}
NAMES = tuple(f'resnet{variant}' for variant in VARIANTS)
CHOICES = {
    'stem': ('cifar', 'imagenet'),
    'block': ('basic', 'bottleneck'),
    'shortcut': ('pad', 'projection'),
}


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The ResNet of a variant, `50` for instance; keyword arguments override what the variant says."""
    if variant not in VARIANTS:
        depths = [depth for depth in VARIANTS if depth]
        guess = min(depths, key=lambda d: abs(int(d) - int(variant))) if variant.isdecimal() else variant
        raise UserError(f'unknown model {f"resnet{variant}"!r}: {nearest(f"resnet{guess}", NAMES)}')
    check_kwargs(ResNet, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    for key, known in CHOICES.items():
        if kwargs.get(key, known[0]) not in known:
            raise UserError(f'unknown config.model.{key} {kwargs[key]!r}: {nearest(str(kwargs[key]), known)}')
    resnet = ResNet(**{**VARIANTS[variant], **kwargs}, dtype=dtype)
    check_depth(resnet.depth, resnet.stages)
    return resnet


def check_depth(depth: int | None, stages: tuple[int, ...]) -> None:
    """Refuses a cut that leaves nothing, or that is deeper than the network."""
    if depth is not None and not 1 <= depth <= len(stages):
        raise UserError(f'config.model.depth: {depth} should be 1 to {len(stages)}, a number of stages.')


def preprocess(variant: str) -> dict[str, Any]:
    """The images that a variant was made for. A mean of length 1 is for every channel; size None is as they come."""
    stem = VARIANTS.get(variant, {}).get('stem')
    if stem == 'imagenet':
        return {'size': 224, **IMAGENET_COLOURS, 'interpolation': 'bicubic', 'crop': 0.875}
    if stem == 'cifar':
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return {'size': 32, 'mean': mean, 'std': std, 'interpolation': 'bicubic', 'crop': 1.0}
    return {'size': None, 'mean': (0.5,), 'std': (0.5,), 'interpolation': 'bicubic', 'crop': 1.0}


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling: [B, H, W, C] -> [B, D].

    Attributes:
        stages: the number of blocks in each; every stage but the first halves H and W and doubles the channels.
        width: channels of the first stage (of its 3×3 convolutions, if bottleneck).
        stem: `cifar` keeps the resolution, `imagenet` divides it by 4.
        block: `basic` is two 3×3 convolutions; `bottleneck` is 1×1, 3×3, 1×1 with four times the channels at its end.
        shortcut: where the shape changes, `pad` with zero channels (option A) or `projection`, a learned 1×1 (B).
        depth: keep the first so many stages; None keeps all.
        zero_init_residual: start each block as the identity, by a zero scale in its last BatchNorm (Goyal et al.,
            2017). On in the ImageNet variants, off elsewhere.
        dtype: of the computation; parameters and statistics are float32.
        remat: keep each block's input alone and compute the rest again when its gradient needs it: the same model in
            less memory, for about a third more work.
    """

    stages: tuple[int, ...] = (1, 1, 1)
    width: int = 16
    stem: str = 'cifar'
    block: str = 'basic'
    shortcut: str = 'pad'
    depth: int | None = None
    zero_init_residual: bool = False
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.stem == 'imagenet':
            x = ConvNorm(self.width, kernel=7, stride=2, dtype=self.dtype, name='stem')(x, train)  # [B, H/2, W/2, C]
            x = max_pool_3x3_s2(nn.relu(x))  # [B, H/4, W/4, C]
        else:
            x = ConvNorm(self.width, kernel=3, stride=1, dtype=self.dtype, name='stem')(x, train)  # [B, H, W, C]
            x = nn.relu(x)
        for i, blocks in enumerate(self.stages[: self.depth]):
            x = Stage(
                blocks=blocks,
                width=self.width * 2**i,
                stride=1 if i == 0 else 2,
                block=self.block,
                shortcut=self.shortcut,
                zero_init_residual=self.zero_init_residual,
                dtype=self.dtype,
                remat=self.remat,
                name=f'stage{i + 1}',
            )(x, train)
        return x.mean((1, 2), dtype=jnp.float32)  # [B, D]


class Stage(nn.Module):
    """Blocks of one resolution; the first of them changes the shape. Attributes: see `ResNet` and `Block`."""

    blocks: int
    width: int
    stride: int
    block: str
    shortcut: str
    zero_init_residual: bool
    dtype: str
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        make = nn.remat(Block, static_argnums=2) if self.remat else Block  # 2 is `train`
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            block = make(
                self.width, stride, self.block, self.shortcut, self.zero_init_residual, self.dtype, name=f'block{i}'
            )
            x = block(x, train)
        return x


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), F = convolutions with BatchNorm: [B, H, W, C] -> [B, H/stride, W/stride, C']."""

    width: int
    stride: int
    kind: str
    shortcut: str
    zero_init_residual: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers = convolutions(self.kind, self.width, self.stride)
        y = x
        for i, (channels, kernel, stride) in enumerate(layers, 1):
            last = i == len(layers)
            zero = last and self.zero_init_residual
            y = conv(channels, kernel, stride, self.dtype, name=f'conv{i}')(y)
            y = batch_norm(self.dtype, zero=zero, name=f'bn{i}')(y, use_running_average=not train)
            y = y if last else nn.relu(y)
        if y.shape == x.shape:
            return nn.relu(y + x)
        if self.shortcut == 'pad':
            return nn.relu(y + pad_shortcut(x, channels, self.stride))
        return nn.relu(y + ConvNorm(channels, 1, self.stride, self.dtype, name='shortcut')(x, train))


def convolutions(kind: str, width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """(channels, kernel, stride) of each convolution of a block, `basic` or `bottleneck`."""
    if kind == 'bottleneck':
        return (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)
    return (width, 3, stride), (width, 3, 1)


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, `conv` and `bn`: the stem, or a projection shortcut."""

    channels: int
    kernel: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = conv(self.channels, self.kernel, self.stride, self.dtype, name='conv')(x)
        return batch_norm(self.dtype, name='bn')(x, use_running_average=not train)


def conv(channels: int, kernel: int, stride: int, dtype: str, name: str) -> nn.Conv:
    """A k×k convolution without bias, padded by (k - 1)/2 on each side as in PyTorch ('SAME' differs if strided).

    Initialised to N(0, 2 / fan_out), which keeps the gradient's variance through relu (He et al., ICCV 2015).
    """
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=(kernel - 1) // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=HE_NORMAL,
        name=name,
    )


HE_NORMAL = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def batch_norm(dtype: str, name: str, zero: bool = False) -> nn.BatchNorm:
    """BatchNorm whose running averages keep 0.9 of their value a step (PyTorch calls this a momentum of 0.1)."""
    scale_init = nn.initializers.zeros if zero else nn.initializers.ones
    return nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init, name=name)


def pad_shortcut(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option A: every `stride`-th pixel, with zero channels before and after: [B, H, W, C] -> [B, H/s, W/s, C']."""
    x = x[:, ::stride, ::stride]
    before = (channels - x.shape[-1]) // 2
    after = channels - x.shape[-1] - before
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))


def max_pool_3x3_s2(x: jax.Array) -> jax.Array:
    """3×3 max pooling with stride 2 and padding 1: [B, H, W, C] -> [B, H/2, W/2, C], odd sizes rounded up.

    The same as `nn.max_pool`, whose backward pass is slow on a CPU; the maximum of nine strided slices is not. A tie
    shares its gradient where `nn.max_pool` gives it to the first.
    """
    height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows = [x[:, i : i + 2 * height - 1 : 2] for i in range(3)]
    x = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])  # [B, H/2, W + 2, C]
    columns = [x[:, :, i : i + 2 * width - 1 : 2] for i in range(3)]
    return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])  # [B, H/2, W/2, C]
