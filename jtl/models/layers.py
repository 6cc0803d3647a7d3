"""What a backbone's blocks give on the way, beside its features: to choose where to cut it, and to compare layers.

A layer is named by its path in the parameters: `stem`, `stage2/block0`, `block11`; `features` is the backbone's output.

Legend: B batch, H×W positions of a map, T tokens, C channels or width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from jtl.errors import UserError, nearest
from jtl.models import norm
from jtl.models.classifier import Classifier

PyTree = Any

FEATURES = 'features'
POOLS = ('mean', 'token', 'none')
BLOCK = re.compile(r'backbone/(stem|(?:stage\d+/)?block\d+)')


def extract(
    model: Classifier,
    variables: PyTree,
    batch: Mapping[str, Any],
    layers: Sequence[str] = (FEATURES,),
    pool: str = 'mean',
) -> dict[str, jax.Array]:
    """One forward pass in inference mode: each of `layers`, float32.

    Args:
        pool: of a block's output, [B, H, W, C] or [B, T, C]: `mean` over positions, or over the tokens that are neither
            padding nor class tokens, [B, C]; `token`, the first token, [B, C]; `none`, as it is. `features` are pooled
            by the model.

    Raises:
        UserError: the backbone has no such layer, or no tokens to take the first of.
    """
    found = _outputs(model, variables, batch)
    for name in layers:
        if name not in found:
            raise UserError(f'layer {name!r}: {nearest(name, found)}')
    backbone = model.backbone
    real = batch['tokens'] != backbone.pad if 'tokens' in batch else None  # [B, T]
    prefix = getattr(backbone, 'class_token', False) + getattr(backbone, 'distilled', False)
    return {name: _pooled(found[name], pool, real, prefix).astype(jnp.float32) for name in layers}


def shapes(model: Classifier, variables: PyTree, batch: Mapping[str, Any], pool: str = 'mean') -> dict[str, tuple]:
    """Every layer, from the input to the features, and the shape of one example of it; nothing is computed."""
    order = []

    def look(variables: PyTree, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        order[:] = _outputs(model, variables, batch)
        return extract(model, variables, batch, order, pool)

    found = jax.eval_shape(look, variables, batch)
    return {name: found[name].shape[1:] for name in order}


def is_deterministic(model: Classifier, variables: PyTree, batch: Mapping[str, Any]) -> bool:
    """Whether a frozen backbone gives in training what it gives in inference: nothing is dropped at random."""

    def train(variables, batch):
        with norm.hold_still({'': True}):
            return model.apply(variables, batch, train=True, method='features')

    try:
        jax.eval_shape(train, variables, batch)
    except flax.errors.InvalidRngError:  # a random number was asked for
        return False
    return True


def _outputs(model: Classifier, variables: PyTree, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The output of each block, in the order of their execution, and the features."""
    found = {}

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        name = BLOCK.fullmatch('/'.join(context.module.path))
        if name and context.method_name == '__call__':
            found[name[1]] = output
        return output

    if getattr(model.backbone, 'remat', False):  # it would hide what is within, and there is no gradient to save for
        model = model.clone(backbone=model.backbone.clone(remat=False))
    with nn.intercept_methods(intercept):
        features = model.apply(variables, batch, train=False, method='features')
    return {**found, FEATURES: features}


def _pooled(x: jax.Array, how: str, real: jax.Array | None, prefix: int) -> jax.Array:
    if how not in POOLS:
        raise UserError(f'pool {how!r}: {nearest(how, POOLS)}')
    if x.ndim == 2 or how == 'none':
        return x
    if how == 'token':
        if x.ndim != 3:
            raise UserError("pool 'token': the blocks of this model give maps, which have no tokens; 'mean' or 'none'.")
        return x[:, 0]  # [B, T, C] -> [B, C]
    x = x.astype(jnp.float32)
    if x.ndim == 4:
        return x.mean((1, 2))  # [B, H, W, C] -> [B, C]
    if real is None:
        return x[:, prefix:].mean(1)  # [B, T, C] -> [B, C]
    return (x * real[..., None]).sum(1) / jnp.maximum(real.sum(1, keepdims=True), 1)
