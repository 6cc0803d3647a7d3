"""Vision Transformer: an image is a sequence of patches.

    z0 = [class token; patches · E] + position
    z  = z + attention(norm(z)),  z = z + mlp(norm(z)),  repeated
    features = norm(z)[class token]

Dosovitskiy et al., "An Image is Worth 16×16 Words", ICLR 2021. DeiT adds a distillation token, whose head learns from a
teacher; the sizes Ti and S are its own: Touvron et al., "Training data-efficient image transformers", ICML 2021.

Parameters: `patch/kernel`, `class_token`, `position`, `block0/norm1/scale`, `block0/attn/query/kernel`,
`block0/mlp/fc1/kernel`, `norm/scale`, … All but `patch/kernel` [P, P, C, D] are plain 2-D `Dense` kernels.

Legend: B batch, H and W height and width, C channels, P patch, D width, N heads, T tokens: H/P · W/P patches and those
in front of them, mostly one.
"""

import functools
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
POOLS = ('token', 'both', 'mean')
ACTIVATIONS = {'gelu': functools.partial(nn.gelu, approximate=False), 'gelu_tanh': nn.gelu}
NAMES = ('vit', *(f'vit_{size}{patch}' for size in SIZES for patch in (8, 14, 16, 32)))


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The ViT of a variant, a size and a patch: `_ti16`, `_b32`, `_s4`. Keyword arguments override what it says."""
    check_kwargs(ViT, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    kwargs = {**parse(variant), **kwargs}
    vit = ViT(**kwargs, dtype=dtype)
    for key, known in (('pool', POOLS), ('activation', ACTIVATIONS)):
        if getattr(vit, key) not in known:
            raise UserError(f'unknown config.model.{key} {getattr(vit, key)!r}: {nearest(getattr(vit, key), known)}')
    if vit.width % vit.heads:
        raise UserError(f'config.model.width {vit.width} cannot be shared by {vit.heads} heads: make it a multiple.')
    if vit.pool != 'mean' and not vit.class_token:
        raise UserError(f"config.model.pool {vit.pool!r} needs a class token: set class_token=True or pool='mean'.")
    if vit.distilled and not vit.class_token:
        raise UserError('config.model.distilled needs a class token: set class_token=True.')
    if vit.pool == 'both' and (vit.fc_norm or not vit.distilled):
        raise UserError("config.model.pool 'both' needs distilled=True and fc_norm=False; else use 'token' or 'mean'.")
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
        pool: `token` takes the class token, `mean` averages the patch tokens. The parameters are the same. `both` puts
            the class and the distillation token side by side, [B, 2 D]: a linear head on them is the mean of DeiT's
            two heads W₁ and W₂ if its kernel is [W₁; W₂] / 2.
        class_token: have one; `pool='mean'` can do without.
        distilled: have a distillation token after the class token.
        fc_norm: normalise after pooling, with `fc_norm`, and not before, with `norm` (He et al., "Masked Autoencoders
            Are Scalable Vision Learners", CVPR 2022).
        pre_logits: features are tanh(Dense(pooled)), this many: the head's hidden layer in pre-training.
        qkv_bias: add a bias to queries, keys and values.
        activation: of the MLP; `gelu` is x Φ(x), `gelu_tanh` its approximation with tanh (Google's JAX models).
        eps: added to the variance by every LayerNorm.
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
    mlp_ratio: float = 4
    pool: str = 'token'
    class_token: bool = True
    distilled: bool = False
    fc_norm: bool = False
    pre_logits: int | None = None
    qkv_bias: bool = True
    activation: str = 'gelu'
    eps: float = 1e-6
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
        x = x.reshape(len(x), -1, self.width)  # [B, H/P · W/P, D]

        tokens = ['class_token'] * self.class_token + ['distillation_token'] * self.distilled
        for name in reversed(tokens):
            token = self.param(name, nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)  # [B, T, D]
        check_tokens(self, x.shape[1], len(tokens))
        x = x + self.param('position', nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        make = nn.remat(Block, static_argnums=2) if self.remat else Block  # 2 is `train`
        shared = ('heads', 'mlp_ratio', 'qkv_bias', 'activation', 'eps', 'dropout', 'dtype')
        shared = {key: getattr(self, key) for key in shared}
        for i in range(self.depth):
            drop_path = self.drop_path * i / max(self.depth - 1, 1)
            x = make(**shared, drop_path=drop_path, name=f'block{i}')(x, train)  # [B, T, D]

        if not self.fc_norm:
            x = layer_norm(self.eps, self.dtype, name='norm')(x)
        x = pool(x.astype(jnp.float32), self.pool, len(tokens))  # [B, D], [B, 2 D] if both
        if self.fc_norm:
            x = layer_norm(self.eps, self.dtype, name='fc_norm')(x)
        if self.pre_logits is not None:
            x = nn.tanh(dense(self.pre_logits, self.dtype, name='pre_logits')(x))
        return x.astype(jnp.float32)


def pool(x: jax.Array, kind: str, prefix: int) -> jax.Array:
    """[B, T, D] -> [B, D] or, if `both`, [B, 2 D]; `prefix` tokens are not patches."""
    if kind == 'mean':
        return x[:, prefix:].mean(1)
    return x[:, 0] if kind == 'token' else jnp.concatenate([x[:, 0], x[:, 1]], axis=-1)


class Block(nn.Module):
    """z + attention(norm(z)), then z + mlp(norm(z)): [B, T, D] -> [B, T, D]. Attributes: see `ViT`."""

    heads: int
    mlp_ratio: float
    qkv_bias: bool
    activation: str
    eps: float
    dropout: float
    drop_path: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        skip = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)  # whole examples

        y = layer_norm(self.eps, self.dtype, name='norm1')(x)
        y = Attention(self.heads, self.qkv_bias, self.dtype, name='attn')(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        x = x + skip(y)

        y = layer_norm(self.eps, self.dtype, name='norm2')(x)
        y = MLP(self.mlp_ratio, self.activation, self.dropout, self.dtype, name='mlp')(y, train)
        return x + skip(y)


class Attention(nn.Module):
    """Each token asks all others: softmax(Q Kᵀ / √(D/N)) V for each of N heads. Vaswani et al., NeurIPS 2017."""

    heads: int
    qkv_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        project = functools.partial(dense, width, self.dtype, bias=self.qkv_bias)
        query = project(name='query')(x).reshape(split)  # [B, T, N, D/N]
        key = project(name='key')(x).reshape(split)
        value = project(name='value')(x).reshape(split)
        x = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)  # [B, T, D]; softmax in float32
        return dense(width, self.dtype, name='out')(x)


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), the same for every token."""

    ratio: float
    activation: str
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        x = dense(round(self.ratio * width), self.dtype, name='fc1')(x)  # [B, T, ratio · D]
        x = nn.Dropout(self.dropout, deterministic=not train)(ACTIVATIONS[self.activation](x))
        x = dense(width, self.dtype, name='fc2')(x)  # [B, T, D]
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def dense(features: int, dtype: str, name: str, bias: bool = True) -> nn.Dense:
    """A linear layer with Glorot's uniform initialisation."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


def layer_norm(eps: float, dtype: str, name: str) -> nn.LayerNorm:
    """(x - mean) / √(variance + eps) · scale + bias, over D; statistics in float32."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, name=name)


def check_size(height: int, width: int, patch: int) -> None:
    """Refuse images that are not a whole number of patches."""
    if height % patch or width % patch or not height * width:
        low = tuple(max(size // patch, 1) * patch for size in (height, width))
        high = tuple(-(-size // patch) * patch for size in (height, width))
        sizes = ' or '.join(f'{h}×{w}' for h, w in dict.fromkeys((low, high)))
        raise UserError(f'images of {height}×{width} pixels are not whole patches of {patch}×{patch}: use {sizes}.')


def check_tokens(vit: ViT, tokens: int, prefix: int) -> None:
    """Refuse images of another size than the position embedding was made for."""
    if vit.has_variable('params', 'position'):
        known = vit.get_variable('params', 'position').shape[1]
        if known != tokens:
            raise UserError(
                f'images of {tokens - prefix} patches, but backbone/position was made for {known - prefix}: '
                'give images of the size that the model was initialised with, or resize the position embedding.'
            )
