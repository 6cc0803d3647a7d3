"""Pytrees by path. A parameter's path is the keys to it joined by '/', e.g. `backbone/stage1/block0/conv1/kernel`."""

import math
from collections.abc import Callable
from typing import Any

import jax

PyTree = Any


def path_name(path: tuple) -> str:
    """JAX's key path as a string: dict keys, attribute names and indices joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves by path, in JAX's order. `None` is an empty subtree, not a leaf."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def unflatten(flat: dict[str, Any]) -> dict:
    """Nested dicts from leaves by path: the inverse of `flatten` for trees made of dicts."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def map_paths(fn: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`fn(path, leaf)` for every leaf."""
    return jax.tree.map_with_path(lambda path, leaf: fn(path_name(path), leaf), tree)


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def count(tree: PyTree) -> int:
    """Number of scalars; works on arrays and on shapes alike."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Bytes that the leaves take; works on arrays and on shapes alike."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
