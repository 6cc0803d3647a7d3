"""Multi-layer perceptron, over features or over the pixels of small images.

Parameters: `fc1/kernel`, `fc1/bias`, `fc2/kernel`, …

Legend: B batch, D features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest

NAMES = ('mlp',)


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The MLP; it has no variants."""
    if variant:
        raise UserError(f'unknown model {f"mlp{variant}"!r}: {nearest(f"mlp{variant}", NAMES)}')
    check_kwargs(MLP, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    return MLP(**kwargs, dtype=dtype)


def preprocess(variant: str) -> dict[str, Any]:
    """Images as they come, to [-1, 1]."""
    return {'size': None, 'mean': (0.5,), 'std': (0.5,), 'interpolation': 'bicubic', 'crop': 1.0}


class MLP(nn.Module):
    """x = dropout(relu(x W + b)) for each hidden layer: `features` [B, …] or `image` [B, H, W, C] -> [B, D].

    With `hidden=()` the features pass through as they are: with the head on top, a linear probe.

    Attributes:
        hidden: the width of each layer; the last is D.
        dropout: rate after each layer; needs the rng `dropout`.
        dtype: of the computation; parameters are float32.
    """

    hidden: tuple[int, ...] = (256,)
    dropout: float = 0.0
    dtype: str = 'float32'

    INPUTS = ('features', 'image')

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)  # [B, D]
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f'fc{i}')(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x.astype(jnp.float32)
