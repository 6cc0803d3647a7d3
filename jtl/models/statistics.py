"""The running statistics of BatchNorm, computed anew for weights that no training step has seen.

Averaged weights have other activations than any of those that they are the average of, so that the running averages of
none of them fit: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, algorithm
1, ends with one more pass over the training data.

Legend: B rows of a batch, n of them real, N examples, C channels.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jtl import tree

PyTree = Any


def moved(statistics: Sequence[PyTree]) -> frozenset[str]:
    """The layers whose statistics are not the same numbers in all of several trees, by path: `backbone/stem/bn`.

    What all ingredients of an average share was held still while they were trained (`jtl.models.norm`); there it is a
    constant of the model, like a frozen parameter, and not to be computed.
    """
    first, *others = map(tree.flatten, statistics)
    changed = [path for path, x in first.items() if any(not np.array_equal(x, other[path]) for other in others)]
    return frozenset(map(_layer, changed))


def recomputed(
    model: nn.Module, params: PyTree, collections: Mapping, batches: Iterable[Mapping], layers: frozenset[str]
) -> dict:
    """`collections` with the statistics of `layers` as one pass over `batches` finds them.

        mean = Σ_b n_b mean_b / N,  var = Σ_b n_b var_b / N,  N = Σ_b n_b

    Every batch b is normalised by its own statistics, as in training, and these are averaged over the batches; so the
    variance is the mean of those within the batches, which is what the running averages of training follow, and not
    that of all examples together. Hence the batches should be drawn at random and have about the size of those of
    training: in the order of a folder, which is by class, the variance between classes would be lost. Dropout is off.

    Args:
        model: a classifier, `apply(variables, batch, train)`; normalisation takes `use_running_average` at the call.
        params, collections: its variables; `collections` has `batch_stats`.
        batches: with `mask` [B], 0 for rows of padding, which do not count. Of one shape, so as to be compiled once.
        layers: paths of BatchNorm modules; the others use the statistics they have, and keep them.
    """
    of_batch = _compiled(model, layers)
    start = tree.map_paths(lambda path, x: x * 0 if _layer(path) in layers else x, collections['batch_stats'])
    variables, total, N = {'params': params, **collections, 'batch_stats': start}, {}, 0.0
    for batch in batches:
        n = float(np.sum(batch['mask']))
        for path, x in of_batch(variables, dict(batch)).items():
            total[path] = total.get(path, 0.0) + n * np.asarray(x, np.float64)  # [C]
        N += n
    taken = lambda path, x: (total[path] / N).astype(x.dtype) if path in total else x
    return {**collections, 'batch_stats': tree.map_paths(taken, collections['batch_stats'])}


@functools.lru_cache(maxsize=8)
def _compiled(model: nn.Module, layers: frozenset[str]) -> Callable:
    """`(variables with statistics of 0, batch) -> {path: the batch's own statistic}`."""

    def of_batch(variables: PyTree, batch: dict) -> dict:
        momentum = {}

        def intercept(call, args, kwargs, context):
            path = '/'.join(context.module.path)
            if not isinstance(context.module, nn.BatchNorm) or context.method_name != '__call__' or path not in layers:
                return call(*args, **kwargs)
            momentum[path] = context.module.momentum
            rows = batch['mask'].reshape(-1, *[1] * (args[0].ndim - 1)) > 0  # [B] -> [B, 1, …]
            return call(args[0], use_running_average=False, mask=rows)

        with nn.intercept_methods(intercept):
            _, updated = model.apply(variables, batch, train=False, mutable=['batch_stats'])
        # Linen gives m · 0 + (1 - m) · statistic
        found = {path: x for path, x in tree.flatten(updated['batch_stats']).items() if _layer(path) in momentum}
        return {path: x / (1 - momentum[_layer(path)]) for path, x in found.items()}

    return jax.jit(of_batch)


def _layer(path: str) -> str:
    return path.rpartition('/')[0]
