"""Network morphism: weights of a small model as those of a larger one that computes the same function.

A family that can grow has a file here of the name of its file in `jtl.models`, with

    GROWS                                    the settings that may be larger
    check(old, new)                          refuses what cannot be; both are backbones
    grow(leaves, fresh, old, new, noise, rng) -> (leaves, g of the features, or None if they stay)

where `leaves` are those of the old network by path and `fresh` those of the new one as it was initialised. What layers
do is in `operations`.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jtl import models, names
from jtl.errors import UserError, nearest
from jtl.morph.operations import Layer, head_layer, widened

FREE = ('parent', 'name', 'dtype', 'remat', 'dropout', 'drop_path', 'zero_init_residual')  # what no weight depends on


def check(weights: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuses growth from one `config.model` to another that cannot be exact, before anything is computed.

    Raises:
        UserError: another family, a setting that may not differ, something that would be smaller; the key is named.
    """
    _family(weights, model).check(*_backbones(weights, model))


def grow(
    leaves: Mapping[str, np.ndarray],
    fresh: Mapping[str, np.ndarray],
    weights: Mapping[str, Any],
    model: Mapping[str, Any],
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Weights of a smaller model as those of a larger one, by path; statistics are below `model/`.

    Args:
        leaves: of the smaller model.
        fresh: of the larger one, as initialised: what new layers have that does not change the function.
        weights, model: the `config.model` of the two.
        noise: what tells copies of a unit apart, see `operations.shared`; the function is the same.
        seed: of which units are copied, and of the noise.

    Raises:
        UserError: as `check`; or there are parameters that are neither the backbone's nor the head's.
    """
    check(weights, model)
    if more := sorted({path.split('/')[0] for path in leaves} - {'backbone', 'head', 'model'}):
        raise UserError(
            f'config.load.grow: the weights have {", ".join(more)} besides backbone and head; merge or drop it.'
        )
    leaves = {path: np.asarray(x) for path, x in leaves.items()}
    fresh = {path: np.asarray(x) for path, x in fresh.items()}
    rng = np.random.default_rng(seed)
    made, features = _family(weights, model).grow(leaves, fresh, *_backbones(weights, model), noise, rng)
    return made if features is None else _head(made, features, weights.get('head') or {}, noise, rng)


def _head(leaves: dict, features: np.ndarray, head: Mapping, noise: float, rng: np.random.Generator) -> dict:
    """The head reads the copies of its features."""
    kind = head.get('name', 'linear')
    if kind == 'cosine' and 'head/kernel' in leaves:  # cos(x, w), which both have equally many copies leave alone
        if len(set(np.bincount(features))) > 1:
            raise UserError(
                "config.load.grow: a cosine head sees the features' length, which stays in proportion if all have "
                'equally many copies: make the width a multiple, or begin a new head, config.load.head=fresh.'
            )
        return {**leaves, 'head/kernel': np.take(leaves['head/kernel'], features, axis=-2)}
    return widened(leaves, {head_layer(leaves): Layer(reads=features)}, noise, rng)


def _family(weights: Mapping[str, Any], model: Mapping[str, Any]) -> ModuleType:
    """The file here that knows how, and a look at the settings that it says nothing of."""
    old, new = (models.resolve(kind['name'])[0].__name__.rpartition('.')[2] for kind in (weights, model))
    if old != new:
        raise UserError(
            f'config.load.grow: the weights are of {weights["name"]}, which grows into a larger {old}, '
            f'not into {model["name"]}.'
        )
    if old not in families():
        raise UserError(f'config.load.grow: {old} is not known to grow. {nearest(old, families())}')
    family = names.module('jtl.morph', old, 'config.load.grow')
    small, large = _backbones(weights, model)
    for field in dataclasses.fields(small):
        key = field.name
        if key not in FREE and key not in family.GROWS and getattr(small, key) != getattr(large, key):
            raise UserError(
                f'config.model.{key}: {getattr(large, key)!r} is not the {getattr(small, key)!r} of the weights; '
                f'growth keeps it, and changes {", ".join(family.GROWS)}.'
            )
    return family


def families() -> list[str]:
    """The families that can grow."""
    return [name for name in names.known('jtl.morph') if name in names.known('jtl.models')]


def _backbones(weights: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[Any, Any]:
    return tuple(models.build(num_classes=1, **kind).backbone for kind in (weights, model))
