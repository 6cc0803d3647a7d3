"""Big Transfer (BiT): ResNet v2 without BatchNorm, from 50x1 to 152x4 (depth × width).

GroupNorm normalises each example by itself, and every kernel is standardised where it is used,

    w' = (w − mean(w)) / sqrt(var(w) + eps), over all inputs of one output channel,

so nothing depends on the batch or on running statistics, at any batch size and in fine-tuning. Kolesnikov et al., "Big
Transfer (BiT): General Visual Representation Learning", ECCV 2020; Wu and He, "Group Normalization", 2018; Qiao et
al., "Weight Standardization", 2019. The blocks, and how a network is cut, are those of `resnetv2.py`.

Parameters: `stem/conv/kernel`, `stage1/block0/gn1/scale`, `stage1/block0/conv1/kernel`,
`stage1/block0/shortcut/kernel`, …, `norm/scale`. There are no statistics.

Legend: B batch, H and W height and width, C channels, D features.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest
from jtl.models.resnet import HE_NORMAL, check_depth
from jtl.models.resnetv2 import residual_stages

VARIANTS = {
    '_r50x1': {'stages': (3, 4, 6, 3), 'width': 64},
    '_r50x3': {'stages': (3, 4, 6, 3), 'width': 192},
    '_r101x1': {'stages': (3, 4, 23, 3), 'width': 64},
    '_r101x3': {'stages': (3, 4, 23, 3), 'width': 192},
    '_r152x2': {'stages': (3, 8, 36, 3), 'width': 128},
    '_r152x4': {'stages': (3, 8, 36, 3), 'width': 256},
}
NAMES = tuple(f'bit{variant}' for variant in VARIANTS)


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The BiT of a variant, `_r50x1` for instance; keyword arguments override what the variant says."""
    if variant not in VARIANTS:
        raise UserError(f'unknown model {f"bit{variant}"!r}: {nearest(f"bit{variant}", NAMES)}')
    check_kwargs(BiT, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    network = BiT(**{**VARIANTS[variant], **kwargs}, dtype=dtype)
    check_depth(network.depth, network.stages)
    if network.groups < 1 or network.width % network.groups:
        raise UserError(f'config.model: width {network.width} is not divisible by {network.groups} groups.')
    return network


def preprocess(variant: str) -> dict[str, Any]:
    """The images that a variant was made for, of pixels from -1 to 1."""
    return {'size': 224, 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear', 'crop': 0.875}


class BiT(nn.Module):
    """Stem, stages of pre-activation bottlenecks, GroupNorm and relu, global average pooling: [B, H, W, C] -> [B, D].

    Attributes:
        stages: the number of blocks in each; every stage but the first halves H and W and doubles the channels.
        width: channels of the stem, and of the 3×3 convolutions in the first stage: 64 × the width factor.
        groups: of channels that GroupNorm takes together.
        std_eps: eps of the kernels' standardisation: 1e-10 in Google's code, 1e-8 in timm and Hugging Face. A kernel
            whose variance is as small is scaled down by it.
        depth: keep the first so many stages; None keeps all.
        dtype: of the computation; parameters are float32, and so is their standardisation.
        remat: keep each block's input alone and compute the rest again when its gradient needs it: the same model in
            less memory, for about a third more work.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 32
    std_eps: float = 1e-10
    depth: int | None = None
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Stem(self.width, self.std_eps, self.dtype, name='stem')(x)  # [B, H/4, W/4, C]
        x = residual_stages(
            x,
            train,
            stages=self.stages,
            width=self.width,
            block='bottleneck',
            norm=functools.partial(norm_relu, groups=self.groups, dtype=self.dtype),
            conv=functools.partial(StdConv, eps=self.std_eps, dtype=self.dtype),
            depth=self.depth,
            remat=self.remat,
        )
        return x.mean((1, 2), dtype=jnp.float32)  # [B, D]


def norm_relu(x: jax.Array, train: bool, i: int | None, groups: int, dtype: str) -> jax.Array:
    """relu(GroupNorm(x)), `gn1` for instance: the i-th of a block; None is the network's last, `norm`."""
    name = 'norm' if i is None else f'gn{i}'
    # the fast variance is E[x²] − E[x]², which cancels where the mean is large
    return nn.relu(nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)(x))


class Stem(nn.Module):
    """7×7 convolution and 3×3 max pooling, each with stride 2: [B, H, W, C] -> [B, H/4, W/4, C'].

    The pooling is padded with zeros, not with -inf: they count, since no relu comes before it.
    """

    width: int
    std_eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = StdConv(self.width, 7, 2, self.std_eps, self.dtype, name='conv')(x)  # [B, H/2, W/2, C']
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nn.max_pool(x, (3, 3), (2, 2))


class StdConv(nn.Module):
    """A k×k convolution by a standardised kernel, without bias, padded by (k - 1)/2 on each side."""

    channels: int
    kernel: int
    stride: int
    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.channels)
        kernel = standardise(self.param('kernel', HE_NORMAL, shape), self.eps)
        pad = (self.kernel - 1) // 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )


def standardise(kernel: jax.Array, eps: float) -> jax.Array:
    """(w − mean(w)) / sqrt(var(w) + eps) for each output channel; [h, w, I, O] -> the same."""
    kernel = kernel - kernel.mean((0, 1, 2))
    return kernel / jnp.sqrt(jnp.square(kernel).mean((0, 1, 2)) + eps)
