"""Pretrained weights into our tree. For now the weights are those of a former run."""

import functools
import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jtl import run, tree
from jtl.errors import UserError

PyTree = Any


class Pretrained(NamedTuple):
    """Weights as they were read, and what must stay with them."""

    uri: str
    model: dict
    params: PyTree
    state: PyTree
    classes: tuple[str, ...]
    preprocess: dict
    sha256: str


def load(uri: str) -> Pretrained:
    """Reads the weights behind a URI: the PATH of a finished run.

    Raises:
        UserError: nothing there, not a finished run, or damaged.
    """
    path = Path(uri)
    if not path.exists():
        raise UserError(f'config.init: {uri!r} does not exist; expected the folder of a former run.')
    stamp = (path / 'result.json').stat().st_mtime_ns if (path / 'result.json').exists() else 0
    return _load_run(uri, stamp)


@functools.lru_cache(maxsize=1)  # the runs of a sweep mostly start from the same one
def _load_run(uri: str, stamp: int) -> Pretrained:
    source = run.read(uri)
    digest = hashlib.sha256()
    for path, leaf in sorted(tree.flatten((source.params, source.state)).items()):
        digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return Pretrained(
        uri, source.model, source.params, source.state, source.classes, source.preprocess, digest.hexdigest()[:16]
    )


def into(
    params: PyTree, state: PyTree, weights: Pretrained, classes: tuple[str, ...]
) -> tuple[PyTree, PyTree, dict[str, str]]:
    """`(params, state, {path: where it came from})` with the weights in.

    Every parameter outside the head and every statistic of the model must be found, with its shape, and every one of
    the weights must find its place. The head is kept if the classes are the same ones in the same order, else it stays
    fresh. What else a method keeps in its state stays as it is.

    Raises:
        UserError: what is missing, left over or of another shape.
    """
    keep_head = classes == weights.classes
    whole = {**params, 'model': state.get('model', {})}  # what the weights are of
    mine, theirs = (
        {path: leaf for path, leaf in tree.flatten(node).items() if keep_head or not path.startswith('head/')}
        for node in (whole, {**weights.params, 'model': weights.state.get('model', {})})
    )
    _same(mine, theirs, weights.uri)
    whole = tree.map_paths(lambda path, leaf: theirs.get(path, leaf), whole)
    statistics = whole.pop('model')
    origin = {path: weights.uri if path in theirs else 'fresh' for path in tree.flatten(params)}
    return whole, {**state, 'model': statistics} if statistics else state, origin


def _same(mine: dict, theirs: dict, uri: str) -> None:
    missing, extra = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
    reshaped = sorted(p for p in set(mine) & set(theirs) if mine[p].shape != theirs[p].shape)
    if missing or extra or reshaped:
        said = [
            f'{len(paths)} {what} ({", ".join(paths[:3])}{", …" if len(paths) > 3 else ""})'
            for paths, what in ((missing, 'missing'), (extra, 'left over'))
            if paths
        ]
        said += [f'{p} is {theirs[p].shape} there, {mine[p].shape} here' for p in reshaped[:3]]
        size = sum(math.prod(v.shape) for v in theirs.values())
        raise UserError(
            f'config.init: the weights of {uri} ({size:,} numbers) do not fit config.model: {"; ".join(said)}.'
        )
