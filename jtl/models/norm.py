"""Batch normalisation that is frozen must stand still.

In training, BatchNorm normalises by the statistics of the batch and moves its running averages, which no optimiser
rule can stop: they are not parameters. So a "frozen" backbone would drift with each batch that it sees. Here a
BatchNorm whose parameters are all frozen is run in inference mode instead, whichever model it sits in: it uses the
running averages and leaves them bit-identical. (Known as `BN.eval()` fine-tuning in PyTorch.)
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import flax.linen as nn


@contextlib.contextmanager
def hold_still(paths: Mapping[str, bool]) -> Iterator[None]:
    """Within this context, frozen BatchNorm layers run with `use_running_average=True`, whatever the caller passed.

        with hold_still({'backbone/bn/scale': True, 'backbone/bn/bias': True, 'head/kernel': False}):
            outputs, updates = model.apply(variables, batch, train=True, mutable=['batch_stats'])

    A BatchNorm is frozen if all of its parameters are. One that has none follows the module around it: the nearest
    enclosing module that has any parameters decides, by all of them.

    The decision is taken while JAX traces, so open the context inside the function that is jitted, not around a
    call to a compiled one. It holds under `jit`, `grad` and `remat`.

    Args:
        paths: for every parameter, by its path from the root of `apply`: is it frozen?
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != '__call__':
            return call(*args, **kwargs)
        if not is_frozen(module.path, paths):
            return call(*args, **kwargs)
        if module.use_running_average is False:  # Linen refuses an attribute and an argument at the same time
            raise ValueError(f'{"/".join(module.path)}: pass use_running_average at the call, not to the constructor.')
        if module.use_running_average is None:
            args, kwargs = args[:1], {**kwargs, 'use_running_average': True}  # args: x, use_running_average
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def still(loss: Callable, paths: Mapping[str, bool]) -> Callable:
    """`loss`, with frozen BatchNorm layers held still while it is traced."""

    def held(*args):
        with hold_still(paths):
            return loss(*args)

    return held


def is_frozen(module_path: tuple[str, ...], paths: Mapping[str, bool]) -> bool:
    """Are all parameters below the module frozen, or, where it has none, below the nearest ancestor that has some?"""
    for depth in range(len(module_path), -1, -1):
        prefix = ''.join(f'{name}/' for name in module_path[:depth])
        below = [frozen for path, frozen in paths.items() if path.startswith(prefix)]
        if below:
            return all(below)
    return False
