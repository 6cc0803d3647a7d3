"""Vision Transformer: an image is a sequence of patches.

    z0 = [class token; patches · E] + position
    z  = z + attention(norm(z)),  z = z + mlp(norm(z)),  repeated
    features = norm(z)[class token]

Dosovitskiy et al., "An Image is Worth 16×16 Words", ICLR 2021; the sizes Ti and S are from Touvron et al., "Training
data-efficient image transformers", ICML 2021.

Parameters: `patch/kernel`, `class_token`, `position`, `block0/norm1/scale`, `block0/attn/query/kernel`,
`block0/mlp/fc1/kernel`, `norm/scale`, … All but `patch/kernel` [P, P, C, D] are plain 2-D `Dense` kernels.

Legend: B batch, H and W height and width, C channels, P patch, T tokens = H/P · W/P + 1, D width, N heads.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest

SIZES = {
    'ti': {'width': 192, 'depth': 12, 'heads': 3},
    's': {'width': 384, 'depth': 12, 'heads': 6},
    'b': {'width': 768, 'depth': 12, 'heads': 12},
    'l': {'width': 1024, 'depth': 24, 'heads': 16},
}
NAMES = ('vit', *(f'vit_{size}{patch}' for size in SIZES for patch in (8, 14, 16, 32)))


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The ViT of a variant, a size and a patch: `_ti16`, `_b32`, `_s4`. Keyword arguments override what it says."""
    check_kwargs(ViT, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    kwargs = {**parse(variant), **kwargs}
    vit = ViT(**kwargs, dtype=dtype)
    if vit.pool not in ('token', 'mean'):
        raise UserError(f'unknown config.model.pool {vit.pool!r}: {nearest(str(vit.pool), ("token", "mean"))}')
    if vit.width % vit.heads:
        raise UserError(f'config.model.width {vit.width} cannot be shared by {vit.heads} heads: make it a multiple.')
    return vit


def parse(variant: str) -> dict[str, int]:
    """`_ti16` -> width, depth, heads of Ti and patch 16; the empty variant says nothing."""
    if not variant:
        return {}
    match = re.fullmatch(r'_([a-z]+)([1-9]\d*)', variant)
    if not match or match[1] not in SIZES:
        raise UserError(f'unknown model {f"vit{variant}"!r}: {nearest(f"vit{variant}", NAMES)} Any patch size will do.')
    return {**SIZES[match[1]], 'patch': int(match[2])}


def preprocess(variant: str) -> dict[str, Any]:
    """The images that a variant was made for. A mean of length 1 is for every channel; size None is as they come."""
    if parse(variant):
        mean = std = (0.5, 0.5, 0.5)
        return {'size': 224, 'mean': mean, 'std': std, 'interpolation': 'bicubic', 'crop': 0.9}
    return {'size': None, 'mean': (0.5,), 'std': (0.5,), 'interpolation': 'bicubic', 'crop': 1.0}


class ViT(nn.Module):
    """Patches, position embedding, pre-norm blocks, pooling: [B, H, W, C] -> [B, D].

    The number of tokens is that of the images given to `init`; other sizes need the position embedding resized.

    Attributes:
        patch, width, depth, heads: P, D, number of blocks, N.
        mlp_ratio: hidden width of the MLP over D.
        pool: `token` takes the class token, `mean` averages the patch tokens. The parameters are the same.
        dropout: rate after the position embedding, the attention and both MLP layers; needs the rng `dropout`.
        drop_path: stochastic depth; the rate at which an example skips the last block's branches, growing linearly
            from 0 at the first (Huang et al., ECCV 2016).
        dtype: of the computation; parameters are float32.
        remat: keep each block's input alone and compute the rest again when its gradient needs it: the same model in
            less memory, for about a third more work (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
            2016).
    """

    patch: int = 4
    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 4
    pool: str = 'token'
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = ('image',)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        check_size(x.shape[1], x.shape[2], self.patch)
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch, padding='VALID', dtype=self.dtype, name='patch')(x)  # [B, H/P, W/P, D]
        x = x.reshape(len(x), -1, self.width)  # [B, T - 1, D]

        token = self.param('class_token', nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)  # [B, T, D]
        check_tokens(self, x.shape[1])
        x = x + self.param('position', nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        make = nn.remat(Block, static_argnums=2) if self.remat else Block  # 2 is `train`
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            block = make(self.heads, self.mlp_ratio, self.dropout, drop_path, self.dtype, name=f'block{i}')
            x = block(x, train)  # [B, T, D]

        x = layer_norm(self.dtype, name='norm')(x).astype(jnp.float32)
        return x[:, 0] if self.pool == 'token' else x[:, 1:].mean(1)  # [B, D]


class Block(nn.Module):
    """z + attention(norm(z)), then z + mlp(norm(z)): [B, T, D] -> [B, T, D]."""

    heads: int
    mlp_ratio: int
    dropout: float
    drop_path: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        skip = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)  # whole examples

        y = layer_norm(self.dtype, name='norm1')(x)
        y = Attention(self.heads, self.dtype, name='attn')(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        x = x + skip(y)

        y = layer_norm(self.dtype, name='norm2')(x)
        y = MLP(self.mlp_ratio, self.dropout, self.dtype, name='mlp')(y, train)
        return x + skip(y)


class Attention(nn.Module):
    """Each token asks all others: softmax(Q Kᵀ / √(D/N)) V for each of N heads. Vaswani et al., NeurIPS 2017."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query = dense(width, self.dtype, name='query')(x).reshape(split)  # [B, T, N, D/N]
        key = dense(width, self.dtype, name='key')(x).reshape(split)
        value = dense(width, self.dtype, name='value')(x).reshape(split)
        x = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)  # [B, T, D]; softmax in float32
        return dense(width, self.dtype, name='out')(x)


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), the same for every token; gelu(x) = x Φ(x), exact."""

    ratio: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        x = dense(self.ratio * width, self.dtype, name='fc1')(x)  # [B, T, ratio · D]
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(x, approximate=False))
        x = dense(width, self.dtype, name='fc2')(x)  # [B, T, D]
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def dense(features: int, dtype: str, name: str) -> nn.Dense:
    """A linear layer with Glorot's uniform initialisation."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


def layer_norm(dtype: str, name: str) -> nn.LayerNorm:
    """(x - mean) / √(variance + 1e-6) · scale + bias, over D; statistics in float32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def check_size(height: int, width: int, patch: int) -> None:
    """Refuse images that are not a whole number of patches."""
    if height % patch or width % patch or not height * width:
        low = tuple(max(size // patch, 1) * patch for size in (height, width))
        high = tuple(-(-size // patch) * patch for size in (height, width))
        sizes = ' or '.join(f'{h}×{w}' for h, w in dict.fromkeys((low, high)))
        raise UserError(f'images of {height}×{width} pixels are not whole patches of {patch}×{patch}: use {sizes}.')


def check_tokens(vit: ViT, tokens: int) -> None:
    """Refuse images of another size than the position embedding was made for."""
    if vit.has_variable('params', 'position'):
        known = vit.get_variable('params', 'position').shape[1]
        if known != tokens:
            raise UserError(
                f'images of {tokens - 1} patches, but backbone/position was made for {known - 1}: '
                'give images of the size that the model was initialised with, or resize the position embedding.'
            )
