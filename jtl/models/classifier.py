"""A classifier is a backbone and a head: batch -> features -> logits.

Its parameters are exactly `{'backbone': …, 'head': …}` whatever the architecture, so one rule, `('head/.*', 1.0)`,
names the head of any model, and a new head is one key dropped.

Legend: B batch, D features, K classes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, nearest

INITS = {
    'lecun': nn.initializers.lecun_normal(),
    'normal': nn.initializers.normal(0.01),
    'zeros': nn.initializers.zeros,
}


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


def check_init(init: str) -> None:
    """Refuse an unknown name for the head's initialisation."""
    if init not in INITS:
        raise UserError(f'unknown config.model.head.init {init!r}: {nearest(init, INITS)}')
