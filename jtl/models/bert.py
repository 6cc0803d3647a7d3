"""BERT: a text is a sequence of tokens, each of which looks at all others.

    z0 = norm(word + token type + position)
    z  = norm(z + attention(z)),  z = norm(z + mlp(z)),  repeated
    features = tanh(z[first token] · W + b)

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019; the small
sizes are from Turc et al., "Well-Read Students Learn Better", 2019; MiniLM from Wang et al., NeurIPS 2020, with the
mean over tokens of Reimers & Gurevych, "Sentence-BERT", EMNLP 2019.

Parameters: `word/embedding`, `position/embedding`, `token_type/embedding`, `norm/scale`, `block0/attn/query/kernel`,
`block0/norm1/scale`, `block0/mlp/fc1/kernel`, `block0/norm2/scale`, …, `pooler/kernel`.

Legend: B batch, T tokens, D width, N heads, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest

VARIANTS = {
    '': {},
    '_tiny': {'width': 128, 'depth': 2, 'heads': 2},
    '_mini': {'width': 256, 'depth': 4, 'heads': 4},
    '_small': {'width': 512, 'depth': 4, 'heads': 8},
    '_medium': {'width': 512, 'depth': 8, 'heads': 8},
    '_base': {'width': 768, 'depth': 12, 'heads': 12},
    '_large': {'width': 1024, 'depth': 24, 'heads': 16},
    '_minilm_l6': {'width': 384, 'depth': 6, 'heads': 12, 'pool': 'mean'},
    '_minilm_l12': {'width': 384, 'depth': 12, 'heads': 12, 'pool': 'mean'},
}
NAMES = tuple(f'bert{variant}' for variant in VARIANTS)
POOLS = ('pooler', 'token', 'mean')
ACTIVATIONS = {
    'gelu': lambda x: nn.gelu(x, approximate=False),  # x Φ(x)
    'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
    'relu': nn.relu,
}
SIZES = ('vocab', 'positions', 'types', 'width', 'depth', 'heads', 'mlp')
INIT = nn.initializers.truncated_normal(0.02)


def backbone(variant: str, *, dtype: str = 'float32', **kwargs) -> nn.Module:
    """The BERT of a variant: `_base`, `_minilm_l6`, … Keyword arguments override what it says."""
    if variant not in VARIANTS:
        raise UserError(f'unknown model {f"bert{variant}"!r}: {nearest(f"bert{variant}", NAMES)}')
    check_kwargs(Bert, kwargs, 'config.model', ignore=('dtype', 'parent', 'name'))
    bert = Bert(**{**VARIANTS[variant], **kwargs}, dtype=dtype)
    for key, known in (('pool', POOLS), ('activation', ACTIVATIONS)):
        if getattr(bert, key) not in known:
            raise UserError(f'unknown config.model.{key} {getattr(bert, key)!r}: {nearest(getattr(bert, key), known)}')
    for key in SIZES:
        if getattr(bert, key) is not None and getattr(bert, key) < 1:
            raise UserError(f'config.model.{key}: {getattr(bert, key)} should be at least 1.')
    if bert.width % bert.heads:
        raise UserError(f'config.model.width {bert.width} cannot be shared by {bert.heads} heads: make it a multiple.')
    return bert


def preprocess(variant: str) -> dict[str, Any]:
    """BERT sees no pictures: as they come."""
    return {'size': None, 'mean': (0.5,), 'std': (0.5,), 'interpolation': 'bicubic', 'crop': 1.0}


class Bert(nn.Module):
    """Embeddings, post-norm blocks, pooling: `(tokens, token types or None)`, int32 [B, T], -> [B, D].

    A token is padding where it equals `pad`, and no token looks there: nothing else in a batch says so. Without token
    types all are 0. Ids outside the tables give NaN. A depth below that of the weights takes the first blocks of them.

    Attributes:
        vocab, positions, types: rows of the embeddings: V, the most tokens of a text, kinds of tokens.
        width, depth, heads: D, number of blocks, N.
        mlp: hidden width of the MLP; None is 4 D.
        activation: of the MLP: `gelu` (exact), `gelu_tanh` (its approximation) or `relu`.
        pool: `pooler` is a linear layer and tanh on the first token, `token` the first token as it is, `mean` the mean
            over the tokens that are not padding. The latter two have no parameters `pooler`.
        pad: the id of the padding token, the tokenizer's.
        eps: what the normalisation adds to the variance.
        dropout: rate after the embeddings, the attention and the MLP, not on the attention's weights; needs the rng
            `dropout`. Pretraining and the usual fine-tuning take 0.1.
        dtype: of the computation; parameters are float32.
        remat: keep each block's input alone and compute the rest again when its gradient needs it.

    Raises:
        UserError: texts of no tokens or of more than `positions`.
    """

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp: int | None = None
    activation: str = 'gelu'
    pool: str = 'pooler'
    pad: int = 0
    eps: float = 1e-12
    dropout: float = 0.0
    dtype: str = 'float32'
    remat: bool = False

    INPUTS = (('tokens', 'token_types'),)
    SPARE = ('backbone/pooler/.*',)  # what weights may have that a choice of `pool` does not use

    @nn.compact
    def __call__(self, x: tuple[jax.Array, jax.Array | None], train: bool) -> jax.Array:
        tokens, token_types = x
        check_length(tokens.shape[1], self.positions)
        real = tokens != self.pad  # [B, T]
        token_types = jnp.zeros_like(tokens) if token_types is None else token_types

        embed = lambda count, name: nn.Embed(count, self.width, dtype=self.dtype, embedding_init=INIT, name=name)
        x = embed(self.vocab, 'word')(tokens) + embed(self.types, 'token_type')(token_types)  # [B, T, D]
        x = x + embed(self.positions, 'position')(jnp.arange(tokens.shape[1]))
        x = layer_norm(self.eps, self.dtype, name='norm')(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        make = nn.remat(Block, static_argnums=3) if self.remat else Block  # 3 is `train`
        for i in range(self.depth):
            block = make(
                self.heads,
                self.mlp or 4 * self.width,
                self.activation,
                self.eps,
                self.dropout,
                self.dtype,
                name=f'block{i}',
            )
            x = block(x, real, train)  # [B, T, D]

        if self.pool == 'mean':
            return mean(x, real)  # [B, D]
        x = x[:, 0]  # [B, D]
        return nn.tanh(dense(self.width, self.dtype, name='pooler')(x)) if self.pool == 'pooler' else x


class Block(nn.Module):
    """norm(z + attention(z)), then norm(z + mlp(z)): [B, T, D] -> [B, T, D]."""

    heads: int
    mlp: int
    activation: str
    eps: float
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, train: bool) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = drop(Attention(self.heads, self.dtype, name='attn')(x, real))
        x = layer_norm(self.eps, self.dtype, name='norm1')(x + y)
        y = drop(MLP(self.mlp, self.activation, self.dtype, name='mlp')(x))
        return layer_norm(self.eps, self.dtype, name='norm2')(x + y)


class Attention(nn.Module):
    """Each token asks all that are real: softmax(Q Kᵀ / √(D/N)) V for each of N heads."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query = dense(width, self.dtype, name='query')(x).reshape(split)  # [B, T, N, D/N]
        key = dense(width, self.dtype, name='key')(x).reshape(split)
        value = dense(width, self.dtype, name='value')(x).reshape(split)
        mask = real[:, None, None]  # [B, 1, 1, T]: whatever the head and the token that asks
        x = jax.nn.dot_product_attention(query, key, value, mask=mask).reshape(x.shape)  # [B, T, D]; softmax in float32
        return dense(width, self.dtype, name='out')(x)


class MLP(nn.Module):
    """fc2(activation(fc1(x))), the same for every token."""

    hidden: int
    activation: str
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = ACTIVATIONS[self.activation](dense(self.hidden, self.dtype, name='fc1')(x))  # [B, T, hidden]
        return dense(width, self.dtype, name='fc2')(x)  # [B, T, D]


def dense(features: int, dtype: str, name: str) -> nn.Dense:
    """A linear layer with BERT's initialisation."""
    return nn.Dense(features, dtype=dtype, kernel_init=INIT, name=name)


def layer_norm(eps: float, dtype: str, name: str) -> nn.LayerNorm:
    """(x - mean) / √(variance + eps) · scale + bias, over D; statistics in float32.

    The variance is that of the differences: E[x²] - E[x]² loses the digits that an eps of 1e-12 leaves.
    """
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def mean(x: jax.Array, real: jax.Array) -> jax.Array:
    """The mean over the tokens that are real, in float32: [B, T, D] -> [B, D]; zeros if there are none."""
    weight = real[..., None].astype(jnp.float32)  # [B, T, 1]
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)  # [B, D]


def check_length(tokens: int, positions: int) -> None:
    """Refuse texts without tokens or with more of them than there are positions."""
    if not 1 <= tokens <= positions:
        raise UserError(
            f'texts of {tokens} tokens, but config.model.positions knows 1 to {positions}: '
            'cut them shorter in the tokenizer, or give more positions to a model that is trained afresh.'
        )
