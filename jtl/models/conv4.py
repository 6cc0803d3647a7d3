"""Conv4, the four-layer network of few-shot learning.

Four times 3×3 convolution, BatchNorm, relu, 2×2 max pooling; the features are what is left, flattened. Vinyals et al.,
"Matching Networks for One Shot Learning", NeurIPS 2016. 28×28 pixels give D = 64, 84×84 give D = 1600.

Parameters: `block1/conv/kernel`, `block1/bn/scale`, …, `block4/bn/bias`.

Legend: B batch, H and W height and width, C channels, D features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest

NAMES = ('conv4',)


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """Conv4; it has no variants."""
    if variant:
        raise UserError(f'unknown model {f"conv4{variant}"!r}: {nearest(f"conv4{variant}", NAMES)}')
    check_kwargs(Conv4, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    return Conv4(**kwargs, dtype=dtype)


def preprocess(variant: str) -> dict[str, Any]:
    """Images as they come, to [-1, 1]."""
    return {'size': None, 'mean': (0.5,), 'std': (0.5,), 'interpolation': 'bicubic', 'crop': 1.0}


class Conv4(nn.Module):
    """Four blocks and flatten: [B, H, W, C] -> [B, D], D = width · H/16 · W/16, each at least one pixel.

    Attributes:
        width: channels of every block.
        dtype: of the computation; parameters and statistics are float32.
    """

    width: int = 64
    dtype: str = 'float32'

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, 5):
            x = Block(self.width, self.dtype, name=f'block{i}')(x, train)  # [B, H/2, W/2, C]
        return x.reshape(len(x), -1).astype(jnp.float32)  # [B, D]


class Block(nn.Module):
    """pool(relu(bn(conv(x)))): [B, H, W, C] -> [B, H/2, W/2, C']."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name='conv')(x)
        bn = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=self.dtype, name='bn')
        return max_pool_2x2(nn.relu(bn(x, use_running_average=not train)))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Halve H and W by the maximum, an odd last row or column dropped; a side of one pixel is left as it is.

    The maximum of strided slices: on a CPU the backward pass of `nn.max_pool` is slow.
    """
    if x.shape[1] > 1:
        end = x.shape[1] // 2 * 2
        x = jnp.maximum(x[:, 0:end:2], x[:, 1:end:2])
    if x.shape[2] > 1:
        end = x.shape[2] // 2 * 2
        x = jnp.maximum(x[:, :, 0:end:2], x[:, :, 1:end:2])
    return x
