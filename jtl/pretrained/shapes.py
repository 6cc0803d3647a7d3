"""What a model holds, by our paths, without building it; and what weights lack of it."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtl import models, tree
from jtl.errors import UserError


def shapes(model: dict, num_classes: int, batch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The leaves of a `config.model` by our path, nothing computed."""
    init = functools.partial(models.build(num_classes=num_classes, **model).init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), batch)
    statistics = {name: node for name, node in variables.items() if name != 'params'}
    return {path: leaf.shape for path, leaf in tree.flatten({**variables['params'], 'model': statistics}).items()}


def example(model: dict, preprocess: dict) -> dict:
    """The shapes of a batch of one that a model can take, to see those of its parameters by."""
    if 'image' not in models.build(num_classes=1, **model).backbone.INPUTS:
        return {'tokens': jax.ShapeDtypeStruct((1, 8), jnp.int32)}
    side = preprocess.get('size') or 32
    return {'image': jax.ShapeDtypeStruct((1, side, side, preprocess.get('channels') or 3), jnp.float32)}


def expected(model: dict, leaves: Mapping[str, np.ndarray], preprocess: dict) -> dict[str, tuple[int, ...]]:
    """The leaves of the model that weights are taken for, with as many classes as their head has.

    Raises:
        UserError: they are out of proportion to the weights.
    """
    classes = leaves['head/kernel'].shape[-1] if 'head/kernel' in leaves else 1
    wanted = shapes(model, classes, example(model, preprocess))
    asked, given = sum(map(math.prod, wanted.values())), sum(leaf.size for leaf in leaves.values())
    if asked > 10 * given:
        raise UserError(f'these {given:,} numbers would be a part of {model}, which has {asked:,}.')
    return wanted


def lacking(model: dict, leaves: Mapping[str, np.ndarray], preprocess: dict) -> list[str]:
    """What a model has and weights have not, or in another shape; a head that is not there at all is no loss."""
    there = {path: leaf.shape for path, leaf in leaves.items()}
    return [
        path if path not in there else f'{path} {there[path]}, not {shape}'
        for path, shape in expected(model, leaves, preprocess).items()
        if there.get(path) != shape and not (path.startswith('head/') and 'head/kernel' not in there)
    ]


def grouped(paths: Iterable[str]) -> list[str]:
    """All of the paths, a line for each layer."""
    lines: dict[str, list[str]] = {}
    for path in paths:
        parts = path.split('/')
        deep = min(len(parts) - 1, 5 if parts[0] == 'model' else 3)
        lines.setdefault('/'.join(parts[:deep]), []).append('/'.join(parts[deep:]))
    return [f'  {layer}/: {", ".join(rest)}' for layer, rest in lines.items()]
