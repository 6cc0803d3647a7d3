"""A classifier is a backbone and a head: batch -> features -> logits.

Its parameters are exactly `{'backbone': …, 'head': …}` whatever the architecture, so one rule, `('head/.*', 1.0)`,
names the head of any model, and a new head is one key dropped. A head is one of `HEADS`; its last layer is always
`head/kernel` [·, K], and `head/bias` [K] where it has one.

Legend: B batch, D features, K classes.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, check_kwargs, nearest

INITS = {
    'lecun': nn.initializers.lecun_normal(),
    'normal': nn.initializers.normal(0.01),
    'zeros': nn.initializers.zeros,
}
ACTIVATIONS = {'relu': nn.relu, 'gelu': lambda x: nn.gelu(x, approximate=False), 'tanh': jnp.tanh}


class Linear(nn.Module):
    """logits = dropout(features) · W + b, in float32.

    Attributes:
        classes: K.
        init: how W starts: `lecun` (variance 1/D), `normal` (standard deviation 0.01), or `zeros`: all classes
            equally likely at first, and a first step whose gradient leaves the backbone alone.
        dropout: rate at which features are dropped while training; needs the rng `dropout`.
    """

    classes: int
    init: str = 'lecun'
    dropout: float = 0.0

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        features = features.astype(jnp.float32)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        kernel = self.param('kernel', INITS[self.init], (features.shape[-1], self.classes))
        bias = self.param('bias', nn.initializers.zeros, (self.classes,))
        return features @ kernel + bias  # [B, D] -> [B, K]


class MLP(nn.Module):
    """logits = h_L · W + b with h_i = dropout(activation(h_{i-1} · W_i + b_i)), h_0 the features, in float32.

    Keras's `Dense(64, 'relu') → Dropout(0.5) → Dense(K)` is `hidden=(64,), dropout=0.5`. Parameters: `fc1/kernel`,
    `fc1/bias`, `fc2/kernel`, …, and of the last layer `kernel`, `bias`.

    Attributes:
        classes: K.
        hidden: the width of each hidden layer.
        activation: `relu`, `gelu` or `tanh`.
        dropout: rate after each hidden layer while training; needs the rng `dropout`.
        init: of the last layer, as in `Linear`.
    """

    classes: int
    hidden: tuple[int, ...] = (256,)
    activation: str = 'relu'
    dropout: float = 0.0
    init: str = 'lecun'

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        x = features.astype(jnp.float32)
        start = nn.initializers.lecun_normal() if self.activation == 'tanh' else nn.initializers.he_normal()
        for i, width in enumerate(self.hidden, 1):
            x = ACTIVATIONS[self.activation](nn.Dense(width, kernel_init=start, name=f'fc{i}')(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        kernel = self.param('kernel', INITS[self.init], (x.shape[-1], self.classes))
        bias = self.param('bias', nn.initializers.zeros, (self.classes,))
        return x @ kernel + bias  # [B, width] -> [B, K]


class Cosine(nn.Module):
    """logits_k = s · cos(features, w_k), in float32: lengths tell nothing, and the classes have no bias.

    For few examples, and for classes that are added later: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning
    without Forgetting", CVPR 2018, equation 5. Parameters: `kernel` [D, K], whose columns are the w_k, and `scale`, s.

    Attributes:
        classes: K.
        scale: s at the start, from where it is learned. At 10, as in the paper, one class of 1,000 can reach a
            probability of 0.96, with the features along its w_k and across the others.
        init: how W starts, as in `Linear`; `zeros` has no direction.
    """

    classes: int
    scale: float = 10.0
    init: str = 'lecun'

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        features = features.astype(jnp.float32)
        kernel = self.param('kernel', INITS[self.init], (features.shape[-1], self.classes))
        scale = self.param('scale', nn.initializers.constant(self.scale), ())
        return scale * (unit(features, axis=1) @ unit(kernel, axis=0))  # [B, D] -> [B, K]


HEADS = {'linear': Linear, 'mlp': MLP, 'cosine': Cosine}


class Classifier(nn.Module):
    """A backbone `(x, train) -> [B, D]` and a head `([B, D], train) -> [B, K]` under one root.

    Methods other than `__call__` are reached by `model.apply(variables, …, method='features')` or `'classify'`.
    """

    backbone: nn.Module
    head: nn.Module

    def __call__(self, batch: Mapping[str, Any], train: bool) -> dict[str, jax.Array]:
        """-> `{'logits': float32 [B, K], 'features': float32 [B, D]}`."""
        features = self.features(batch, train)
        return {'logits': self.classify(features, train), 'features': features}

    def features(self, batch: Mapping[str, Any], train: bool) -> jax.Array:
        """The pooled features, float32 [B, D]: computed, or, of a frozen backbone, given as `embedding`."""
        if 'embedding' in batch:
            return jnp.asarray(batch['embedding'], jnp.float32)
        x = select_input(batch, self.backbone.INPUTS, type(self.backbone).__name__)
        return self.backbone(x, train).astype(jnp.float32)

    def classify(self, features: jax.Array, train: bool) -> jax.Array:
        """Entry from given features [B, D], cached ones for instance: float32 logits [B, K]."""
        return self.head(features, train).astype(jnp.float32)


def select_input(batch: Mapping[str, Any], inputs: tuple[str | tuple[str, ...], ...], who: str) -> Any:
    """The first of `inputs` that the batch holds: `image` [B, H, W, C], `features` [B, D], …

    Several keys in one, `('tokens', 'token_types')`, give a tuple of arrays: the first must be there, the others are
    None where the batch lacks them.
    """
    for keys in inputs:
        first, *others = (keys,) if isinstance(keys, str) else keys
        if first in batch:
            return batch[first] if isinstance(keys, str) else (batch[first], *map(batch.get, others))
    wanted = ' or '.join(repr(keys if isinstance(keys, str) else keys[0]) for keys in inputs)
    raise UserError(f'{who} reads {wanted}, and the batch has only: {", ".join(sorted(batch)) or "nothing"}.')


def unit(x: jax.Array, axis: int) -> jax.Array:
    """x / |x| along an axis; of zeros, zeros."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-12))


def make_head(classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The head of a config, `config.model.head`: `name`, one of `HEADS`, `linear` if not given, and its attributes.

    Raises:
        UserError: an unknown name, key or value.
    """
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    name = options.pop('name', 'linear')
    if name not in HEADS:
        raise UserError(f'unknown config.model.head.name {name!r}: {nearest(str(name), HEADS)}')
    check_kwargs(HEADS[name], options, 'config.model.head', ignore=('classes', 'parent', 'name'))
    head = HEADS[name](classes, **options)
    for key, known in (('init', INITS), ('activation', ACTIVATIONS)):
        if (value := getattr(head, key, None)) is not None and value not in known:
            raise UserError(f'unknown config.model.head.{key} {value!r}: {nearest(value, known)}')
    for key, fine, expected in (
        ('dropout', 0 <= getattr(head, 'dropout', 0) < 1, 'in [0, 1)'),
        ('hidden', min(getattr(head, 'hidden', (1,)), default=0) >= 1, "widths of at least 1; 'linear' has no layers"),
        ('scale', 0 < getattr(head, 'scale', 1) < math.inf, 'above 0, and finite'),
        ('init', (name, head.init) != ('cosine', 'zeros'), "'lecun' or 'normal': vectors of zeros have no direction"),
    ):
        if not fine:
            raise UserError(f'config.model.head.{key}: {getattr(head, key)!r} should be {expected}.')
    return head
