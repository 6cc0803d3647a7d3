"""The layers of a backbone from its input to its output, as regexes of their parameters; and where its norms are."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jtl import tree
from jtl.models.layers import BLOCK

PyTree = Any
NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Order(NamedTuple):
    """Regexes of whole parameter paths, all below `backbone/`.

    Attributes:
        below: what comes before the first block: patches, embeddings; None if nothing does.
        blocks: one each, from the input to the output. The layers of a backbone without blocks are its blocks.
        above: what comes after the last block: a final norm, a pooler; None if nothing does.
        norms: the normalisations, wherever they are; None of a backbone without.
    """

    below: str | None
    blocks: tuple[str, ...]
    above: str | None
    norms: str | None


def order(model: Any, variables: PyTree, batch: Mapping[str, Any]) -> Order:
    """By one pass in which nothing is computed: a layer comes where it is first called.

    Args:
        model: a classifier. variables, batch: arrays or their shapes.
    """
    called: dict[str, None] = {}  # in order
    norms: set[str] = set()

    def intercept(call, args, kwargs, context):
        path = '/'.join(context.module.path)
        called.setdefault(path)
        if isinstance(context.module, NORMS):
            norms.add(path)
        return call(*args, **kwargs)

    def look(variables, batch):
        with nn.intercept_methods(intercept):
            return model.apply(variables, batch, train=False, method='features')

    jax.eval_shape(look, variables, batch)
    paths = [path for path in tree.flatten(variables['params']) if path.startswith('backbone/')]
    children = dict.fromkeys(path.split('/')[1] for path in paths)
    blocks = [path for path in called if BLOCK.fullmatch(path) and any(p.startswith(f'{path}/') for p in paths)]
    if not blocks:
        blocks = [path for path in called if path.count('/') == 1 and path.split('/')[1] in children]
    within = {path.split('/')[1] for path in blocks}
    when = {path: i for i, path in enumerate(called)}
    late = when[blocks[-1]] if blocks else 0
    others = [child for child in children if child not in within]
    above = [child for child in others if when.get(f'backbone/{child}', -1) > late]  # -1: a parameter, never called
    below = [child for child in others if child not in above]
    holding = {path.rsplit('/', 1)[0] for path in paths}
    names = sorted({path.rsplit('/', 1)[1] for path in norms & holding})
    return Order(
        below=_children(below),
        blocks=tuple(f'{re.escape(path)}/.*' for path in blocks),
        above=_children(above),
        norms=f'backbone/(.*/)?({"|".join(map(re.escape, names))})/(scale|bias)' if names else None,
    )


def _children(names: list[str]) -> str | None:
    return f'backbone/({"|".join(map(re.escape, names))})(/.*)?' if names else None
