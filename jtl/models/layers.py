"""What a backbone's blocks give on the way, beside its features: to choose where to cut it, and to compare layers.

A layer is named by its path in the parameters: `stem`, `stage2/block0`, `block11`; `features` is the backbone's output.

Legend: B batch, H×W positions of a map, T tokens, C channels or width.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


class Watched(NamedTuple):
    """What one pass showed; of several, the last.

    Attributes:
        outputs: of each block, by name, in the order of their execution, and the features.
        batch: what the backbone was given.
    """

    outputs: dict[str, jax.Array]
    batch: dict[str, Any]


@contextlib.contextmanager
def watch(change: Callable[[str, jax.Array], jax.Array] = lambda name, x: x) -> Iterator[Watched]:
    """Within this context, what blocks give is recorded, and first replaced by `change(name, output)`.

        with watch() as seen:
            outputs = model.apply(variables, batch, train=False)
        seen.outputs['stage1/block0']

    It looks on while JAX traces, so open it inside the function that is jitted or differentiated, not around one.
    Within `remat` nothing can be watched.
    """
    watched, own = Watched({}, {}), []

    def intercept(call, args, kwargs, context):
        output, path, method = call(*args, **kwargs), '/'.join(context.module.path), context.method_name
        block = BLOCK.fullmatch(path) if method == '__call__' else None
        name = block[1] if block else FEATURES if (path, method) == ('', 'features') else None
        if name is None:
            return output
        if name == FEATURES:
            watched.batch.clear()
            watched.batch.update(args[0])
        output = change(name, output)
        if name == 'block0' and output.ndim == 3:
            own[:] = [args[0].shape[1]]  # T, before an adapter appends tokens of its own, which are no output
        watched.outputs[name] = output[:, : own[0]] if own and output.ndim == 3 else output
        return output

    with nn.intercept_methods(intercept):
        yield watched


def _outputs(model: Classifier, variables: PyTree, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The output of each block, in the order of their execution, and the features."""
    if getattr(model.backbone, 'remat', False):  # it would hide what is within, and there is no gradient to save for
        model = model.clone(backbone=model.backbone.clone(remat=False))
    with watch() as watched:
        model.apply(variables, batch, train=False, method='features')
    return watched.outputs


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
