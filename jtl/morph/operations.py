"""Layers that grow without changing what the network computes: wider, deeper, with a larger kernel.

Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016; Wei, Wang, Rui, Chen,
"Network Morphism", ICML 2016.

In every layer of Linen the last axis of each leaf is its outputs (a kernel, a bias, a BatchNorm's scale and
statistics), and the one before the last of a kernel is its inputs: so the same lines serve Dense and Conv.

Legend: I inputs, O outputs, k kernel side; U units before, V units after growth.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jtl.errors import UserError

PyTree = Any
Leaves = Mapping[str, np.ndarray]
STATISTICS = 'model/batch_stats/'


def units(old: int, new: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Net2Wider's g: unit j of the wider layer is a copy of unit g(j) of the old one, [V] integers in [0, U).

    The first U are themselves; then come all of them again, as often as needed, in a random order, or in their own
    without `rng`: no unit has two copies more than another, and all have as many if V is a multiple of U.
    """
    again = [np.arange(old) if rng is None else rng.permutation(old) for _ in range(-(-new // old) - 1)]
    return np.concatenate([np.arange(old), *again])[:new]


def copied(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """What gives the units gives their copies: [..., U] -> [..., V]."""
    return np.take(x, of, axis=-1)


def shared(
    x: np.ndarray, of: np.ndarray, axis: int = -2, noise: float = 0.0, rng: np.random.Generator | None = None
) -> np.ndarray:
    """What reads a unit reads all of its copies, each by a share of the old weight: U -> V along `axis`.

        w'[j, o] = w[g(j), o] · (1 + noise · (e[j, o] - ē[g(j), o])) / |{i: g(i) = g(j)}|,  e ~ Uniform(-1, 1)

    ē is the mean of e over the copies of a unit, so that the shares of each weight sum to 1 and the function stays
    what it was at any `noise`. Without it copies get equal gradients and remain copies for ever. Net2Net adds noise to
    the weights instead, which is not exact.
    """
    count = np.bincount(of)  # [U]
    taken = np.moveaxis(np.take(x, of, axis), axis, 0)  # [V, …]
    wide = (-1,) + (1,) * (taken.ndim - 1)
    share = (1 / count[of]).reshape(wide)
    if noise:
        wobble = rng.uniform(-1, 1, taken.shape)  # [V, …]
        mean = np.zeros((len(count), *taken.shape[1:]))  # [U, …]
        np.add.at(mean, of, wobble)
        mean /= count.reshape(wide)
        share = share * (1 + noise * (wobble - mean[of]))
    return np.moveaxis(taken * share, 0, axis).astype(x.dtype)


def widen(
    before: PyTree, after: Mapping, of: np.ndarray, noise: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[PyTree, dict]:
    """Net2WiderNet: a layer with more units, and the one that reads it.

    Exact if whatever is in between treats every unit alike: relu, gelu, dropout at inference, pooling; BatchNorm, whose
    leaves belong into `before`; LayerNorm if all units have equally many copies.

    Args:
        before: leaves [..., U] of what gives the units: `{'kernel': …, 'bias': …}`, and a BatchNorm's.
        after: `{'kernel': [..., U, O], …}` of what reads them.
        of: g, of `units` or any other that leaves no unit out, [V].
        noise, rng: see `shared`.

    Returns:
        The two with V units.
    """
    kernel = shared(after['kernel'], of, noise=noise, rng=rng)
    return jax.tree.map(lambda x: copied(x, of), before), {**after, 'kernel': kernel}


def deepen(width: int, kernel: tuple[int, int] | None = None, bias: bool = True) -> dict[str, np.ndarray]:
    """Net2DeeperNet: a Dense layer, or a Conv of a kernel (k, k), that gives what it is given.

    relu(x) = x needs x ≥ 0: put it behind a relu.

    Raises:
        UserError: a kernel without a centre.
    """
    identity = np.eye(width, dtype=np.float32)  # [I, O]
    if kernel is not None:
        identity = grow_kernel(identity[None, None], kernel)  # [k, k, I, O]
    return {'kernel': identity, **({'bias': np.zeros(width, np.float32)} if bias else {})}


def deepen_norm(mean: np.ndarray, var: np.ndarray, eps: float) -> tuple[dict, dict]:
    """A BatchNorm that gives what it is given: `(parameters, statistics)`, all [O].

        scale = √(var + eps), bias = mean

    Args:
        mean, var: of what passes through, so that in training, where the batch's own are used, it changes little.
    """
    return {'scale': np.sqrt(var + eps), 'bias': mean}, {'mean': mean, 'var': var}


def grow_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A larger kernel with zeros around the old one: [k, k, I, O] -> [k', k', I, O].

    Exact if the padding grows by (k' - k)/2 on each side and the stride stays.

    Raises:
        UserError: smaller than it is, or with another centre.
    """
    old = kernel.shape[:2]
    for k, wanted in zip(old, size):
        if wanted < k or (wanted - k) % 2:
            raise UserError(
                f'a {old[0]}×{old[1]} kernel cannot become {size[0]}×{size[1]} with the same centre: '
                'each side grows by an even number.'
            )
    sides = [((wanted - k) // 2,) * 2 for k, wanted in zip(old, size)]
    return np.pad(kernel, (*sides, (0, 0), (0, 0)))


class Layer(NamedTuple):
    """How one layer of a network changes; None is not at all.

    Attributes:
        reads: g of its inputs, whose weights are shared.
        gives: g of its outputs, which are copied.
        splits: g among these copies, whose sum then is to be what one was (an attention's keys).
        times: a factor on all of its leaves.
    """

    reads: np.ndarray | None = None
    gives: np.ndarray | None = None
    splits: np.ndarray | None = None
    times: float = 1.0


def widened(
    leaves: Leaves, layers: Mapping[str, Layer], noise: float = 0.0, rng: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
    """A whole network wider: leaves by path, of which those right below a path of `layers` change.

    A statistic follows the parameters of the layer that it is of.
    """
    made = dict(leaves)
    for path, x in leaves.items():
        name, _, kind = path.removeprefix(STATISTICS).rpartition('/')
        layer = layers.get(name, Layer())
        if layer.reads is not None and kind == 'kernel':
            x = shared(x, layer.reads, -2, noise, rng)
        if layer.gives is not None:
            x = copied(x, layer.gives)
        if layer.splits is not None:
            x = shared(x, layer.splits, -1, noise, rng)
        made[path] = x if layer.times == 1 else (x * layer.times).astype(x.dtype)
    return made


def below(leaves: Leaves, layer: str) -> dict[str, np.ndarray]:
    """The leaves of a layer or block, its statistics included, by path."""
    return {path: x for path, x in leaves.items() if path.removeprefix(STATISTICS).startswith(f'{layer}/')}


def head_layer(leaves: Leaves) -> str | None:
    """The layer of the head that reads the features; None without a head."""
    return next((layer for layer in ('head/fc1', 'head') if f'{layer}/kernel' in leaves), None)
