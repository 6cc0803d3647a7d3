"""MobileNets: networks of depthwise separable convolutions, v1 and v2, of any width.

A 3×3 convolution from C to D channels costs 9·C·D multiplications a pixel. One filter a channel (depthwise) followed by
a 1×1 convolution (pointwise) costs 9·C + C·D. A block of v1 is just these two (Howard et al., "MobileNets", 2017). One
of v2 widens with a 1×1, filters, and narrows again, without an activation since that would lose what few channels
carry, and adds the narrow ends:

    y = project(relu6(depthwise(relu6(expand(x)))))  [+ x]

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. Every convolution has a BatchNorm.

Parameters: `stem/conv/kernel`, `stem/bn/scale`, `block0/depthwise/conv/kernel`, `block0/depthwise/bn/scale`,
`block0/pointwise/…`; v2 has `block1/expand/…`, `block1/depthwise/…`, `block1/project/…` and, after the blocks,
`last/…`. A depthwise kernel is [3, 3, 1, C].

Libraries disagree about zeros at the border, the epsilon of BatchNorm and the activation; see `Style`.

Legend: B batch, H and W height and width, C channels, D features.
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest
from jtl.models import IMAGENET_COLOURS

WIDTHS = {'v1': (1.0, 0.75, 0.5, 0.25), 'v2': (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)}  # the published ones
NAMES = tuple(f'mobilenet{v}{"" if a == 1 else f"_{a}"}' for v, widths in WIDTHS.items() for a in widths)
STRIDES = {'v1': (1, 2, 2, 2, 2), 'v2': (1, 2, 2, 2, 1, 2, 1)}  # of the first block of each stage
CHOICES = {'padding': ('symmetric', 'same', 'after'), 'activation': ('relu6', 'relu')}


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The MobileNet of a variant, a version and a width: `v1`, `v2_1.4`. Keyword arguments override what it says."""
    version, built = parse(variant)
    module = MobileNetV1 if version == 'v1' else MobileNetV2
    check_kwargs(module, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    net = module(**{**built, **kwargs}, dtype=dtype)
    for key, known in CHOICES.items():
        if getattr(net, key) not in known:
            raise UserError(f'unknown config.model.{key} {getattr(net, key)!r}: {nearest(getattr(net, key), known)}')
    for key in ('channels', 'repeats'):
        if len(getattr(net, key)) != len(STRIDES[version]):
            raise UserError(f'config.model.{key}: {getattr(net, key)} should be {len(STRIDES[version])} numbers.')
    if net.depth is not None and not 1 <= net.depth <= sum(net.repeats):
        raise UserError(f'config.model.depth: {net.depth} should be 1 to {sum(net.repeats)}, a number of blocks.')
    return net


def parse(variant: str) -> tuple[str, dict[str, Any]]:
    """`v2_1.4` -> `'v2'` and the numbers of channels of a network 1.4 times as wide."""
    match = re.fullmatch(r'(v[12])(?:_(\d+(?:\.\d+)?))?', variant)
    if not match or not float(match[2] or 1):
        raise UserError(f'unknown model {f"mobilenet{variant}"!r}: {nearest(f"mobilenet{variant}", NAMES)} '
                        'Any width will do.')  # fmt: skip
    return match[1], widths(match[1], float(match[2] or 1))


def widths(version: str, alpha: float) -> dict[str, Any]:
    """The numbers of channels of a network `alpha` times as wide as the published one."""
    if version == 'v1':
        scale = lambda channels: max(int(channels * alpha), 8)
        return {'stem': scale(32), 'channels': tuple(map(scale, (64, 128, 256, 512, 1024)))}
    scale = lambda channels: divisible(channels * alpha)
    channels = tuple(map(scale, (16, 24, 32, 64, 96, 160, 320)))
    return {'stem': scale(32), 'channels': channels, 'last': divisible(1280 * max(1.0, alpha))}


def divisible(channels: float) -> int:
    """The nearest multiple of 8, or the next one if that loses more than a tenth."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


def preprocess(variant: str) -> dict[str, Any]:
    """The images that a variant was made for."""
    return {'size': 224, **IMAGENET_COLOURS, 'interpolation': 'bilinear', 'crop': 0.875}


class Style(NamedTuple):
    """What every layer of a network has in common.

    Attributes:
        padding: of the 3×3 convolutions that halve the resolution. `symmetric` has a row of zeros on each side
            (PyTorch, Gluon), `same` on an even size has one after alone, which is TensorFlow's SAME, and `after` always
            does (Keras v1, whose stem is `same`). With the wrong one an image is seen shifted by a pixel in each layer.
        activation: `relu6`, min(max(x, 0), 6), or `relu`.
        eps: of BatchNorm, added to the variance: 1e-5 in PyTorch and Gluon, 1e-3 in TensorFlow.
        momentum: what the running averages of BatchNorm keep a step; PyTorch counts what they lose.
        dtype: of the computation; parameters and statistics are float32.
    """

    padding: str
    activation: str
    eps: float
    momentum: float
    dtype: str


class MobileNetV1(nn.Module):
    """Stem, blocks, global average pooling: [B, H, W, C] -> [B, D].

    Attributes:
        stem: channels of the first convolution, which halves H and W.
        channels, repeats: of each stage, the channels and the number of blocks; all but the first halve H and W.
        depth: keep the first so many blocks; None keeps all.
        padding, activation, eps, momentum, dtype: see `Style`.
        remat: keep each block's input alone and compute the rest again when its gradient needs it.
    """

    stem: int = 32
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    repeats: tuple[int, ...] = (1, 2, 2, 6, 2)
    depth: int | None = None
    padding: str = 'symmetric'
    activation: str = 'relu6'
    eps: float = 1e-5
    momentum: float = 0.9
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        style = Style(self.padding, self.activation, self.eps, self.momentum, self.dtype)
        stem = style._replace(padding='same') if self.padding == 'after' else style
        x = ConvNorm(self.stem, stem, kernel=3, stride=2, name='stem')(x, train)  # [B, H/2, W/2, C]
        make = nn.remat(Separable, static_argnums=2) if self.remat else Separable  # 2 is `train`
        for i, (channels, stride) in enumerate(layout('v1', self.channels, self.repeats)[: self.depth]):
            x = make(channels, stride, style, name=f'block{i}')(x, train)
        return x.mean((1, 2), dtype=jnp.float32)  # [B, D]


class MobileNetV2(nn.Module):
    """Stem, inverted residual blocks, one more convolution, global average pooling: [B, H, W, C] -> [B, D].

    Attributes:
        stem: channels of the first convolution, which halves H and W.
        channels, repeats: of each stage, the channels and the number of blocks.
        last: channels of the last convolution, D.
        expansion: how many times wider a block is inside; the first block is as wide as the stem.
        expand_first: whether the first block has an `expand`, though it does not widen (Gluon).
        depth: keep the first so many blocks, without the last convolution; None keeps all.
        padding, activation, eps, momentum, dtype: see `Style`.
        remat: keep each block's input alone and compute the rest again when its gradient needs it.
    """

    stem: int = 32
    channels: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    repeats: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    last: int = 1280
    expansion: int = 6
    expand_first: bool = False
    depth: int | None = None
    padding: str = 'symmetric'
    activation: str = 'relu6'
    eps: float = 1e-5
    momentum: float = 0.9
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        style = Style(self.padding, self.activation, self.eps, self.momentum, self.dtype)
        x = ConvNorm(self.stem, style, kernel=3, stride=2, name='stem')(x, train)  # [B, H/2, W/2, C]
        make = nn.remat(Inverted, static_argnums=2) if self.remat else Inverted  # 2 is `train`
        for i, (channels, stride) in enumerate(layout('v2', self.channels, self.repeats)[: self.depth]):
            expansion = self.expansion if i else 1
            block = make(channels, stride, expansion, i > 0 or self.expand_first, style, name=f'block{i}')
            x = block(x, train)
        if self.depth is None:
            x = ConvNorm(self.last, style, name='last')(x, train)
        return x.mean((1, 2), dtype=jnp.float32)  # [B, D]


def layout(version: str, channels: tuple[int, ...], repeats: tuple[int, ...]) -> list[tuple[int, int]]:
    """`(channels, stride)` of every block."""
    stages = zip(channels, repeats, STRIDES[version])
    return [(c, stride if i == 0 else 1) for c, count, stride in stages for i in range(count)]


class Separable(nn.Module):
    """A block of v1, pointwise(depthwise(x)): [B, H, W, C] -> [B, H/stride, W/stride, C']."""

    channels: int
    stride: int
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvNorm(x.shape[-1], self.style, 3, self.stride, depthwise=True, name='depthwise')(x, train)
        return ConvNorm(self.channels, self.style, name='pointwise')(x, train)


class Inverted(nn.Module):
    """A block of v2, project(depthwise(expand(x))) [+ x]: [B, H, W, C] -> [B, H/stride, W/stride, C']."""

    channels: int
    stride: int
    expansion: int
    expand: bool
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y, width = x, x.shape[-1] * self.expansion
        if self.expand:
            y = ConvNorm(width, self.style, name='expand')(y, train)
        y = ConvNorm(width, self.style, 3, self.stride, depthwise=True, name='depthwise')(y, train)
        y = ConvNorm(self.channels, self.style._replace(activation='none'), name='project')(y, train)
        return x + y if x.shape == y.shape else y


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation: [B, H, W, C] -> [B, H/stride, W/stride, C'].

    The kernel starts as N(0, 2 / fan), which keeps the variance through relu (He et al., ICCV 2015).
    """

    channels: int
    style: Style
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        padding, activation, eps, momentum, dtype = self.style
        zeros = {'symmetric': (self.kernel - 1) // 2, 'same': 'SAME', 'after': ((0, 1), (0, 1))}
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=zeros[padding if self.stride > 1 else 'symmetric'],
            feature_group_count=self.channels if self.depthwise else 1,
            use_bias=False,
            dtype=dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, 'fan_in' if self.depthwise else 'fan_out', 'normal'),
            name='conv',
        )(x)
        x = nn.BatchNorm(momentum=momentum, epsilon=eps, dtype=dtype, name='bn')(x, use_running_average=not train)
        return {'relu6': nn.relu6, 'relu': nn.relu, 'none': lambda x: x}[activation](x)
