"""Where arrays live: one mesh of devices, over which batches, and if asked parameters, are divided.

Data parallel: every device holds the whole state and works on its rows of the batch. Fully sharded (FSDP; Zhao et al.
2023; ZeRO, Rajbhandari et al. 2020): parameters and optimiser slots are cut along one axis, a piece a device, and
gathered layer by layer as they are needed. Either way the step is the same function of the same global batch: XLA
derives the communication from where its inputs live (`jax.jit` with `NamedSharding`), so BatchNorm sees the whole
batch and dropout draws the same masks, however many devices there are.

A rule is `(regex, where)`; the first that matches a parameter's path decides. `where` is `replicate`, `fsdp` (cut the
longest axis that divides, the last of equals; small or indivisible parameters stay whole) or `fsdp(AXIS)`.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtl import tree
from jtl.data.pipeline import Share
from jtl.errors import UserError
from jtl.rules import match, pairs

PyTree = Any

AXIS = 'data'  # the mesh's only axis
SMALL = 1 << 14  # numbers; `fsdp` leaves smaller parameters whole, since gathering them would cost more than it saves


class Sharding(NamedTuple):
    """Devices and rules, not applied to a model yet. `mesh` is None for one device, where nothing needs a place."""

    mesh: Mesh | None
    rules: tuple[tuple[str, str], ...]

    @property
    def devices(self) -> int:
        return self.mesh.size if self.mesh else 1

    @property
    def share(self) -> Share:
        """The rows of every batch that this process makes."""
        return Share(jax.process_index(), jax.process_count(), self.devices)

    def layout(self, params: PyTree) -> 'Layout':
        """The rules applied to parameters, of which shapes are enough.

        Raises:
            UserError: a rule matches nothing, or cuts an axis that is not there or does not divide by the devices.
        """
        flat = tree.flatten(params)
        where = match(self.rules, flat, 'config.sharding.rules', last="('.*', 'replicate')")
        cuts = {path: _axis(leaf.shape, where[path], self.devices, path) for path, leaf in flat.items()}
        if self.mesh is None:
            return Layout()
        return Layout(self.mesh, tuple((path, flat[path].shape, axis) for path, axis in cuts.items()))


class Layout(NamedTuple):
    """Where every array of a training state lives; compiled steps are made for one.

    Attributes:
        mesh: the devices; None is one device.
        cuts: `(path, shape, axis)` of each parameter; the axis is None where it is left whole.
    """

    mesh: Mesh | None = None
    cuts: tuple[tuple[str, tuple[int, ...], int | None], ...] = ()

    def of(self, state: PyTree) -> PyTree:
        """The sharding of each leaf of any tree that holds parameters, or things shaped like them.

        A leaf belongs to the parameter whose path its own ends with, the longest of several, if the shapes are the
        same: optimiser slots and averages lie where their parameter does. All else is replicated.
        """
        cuts = {(path, shape): axis for path, shape, axis in self.cuts}

        def place(path: str, leaf: Any) -> NamedSharding:
            keys = path.split('/')
            ends = ('/'.join(keys[i:]) for i in range(len(keys)))
            axis = next((cuts[end, leaf.shape] for end in ends if (end, leaf.shape) in cuts), None)
            return self._named() if axis is None else self._named(*[None] * axis, AXIS)

        return tree.map_paths(place, state)

    def constrain(self, state: PyTree) -> PyTree:
        """Within a compiled function: `state`, to be left where it lives."""
        return state if self.mesh is None else jax.lax.with_sharding_constraint(state, self.of(state))

    def rows(self, batch: PyTree, axis: int = 0) -> PyTree:
        """Within a compiled function: a batch whose `axis` counts examples, divided over the devices along it."""
        if self.mesh is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, self._named(*[None] * axis, AXIS))

    def whole(self, values: PyTree) -> PyTree:
        """Within a compiled function: values to be brought to every host."""
        return values if self.mesh is None else jax.lax.with_sharding_constraint(values, self._named())

    def place(self, state: PyTree) -> PyTree:
        """Host or device arrays, the same in every process, as a training state on the devices."""
        where = None if self.mesh is None else self.of(state)
        if jax.process_count() > 1:
            return jax.tree.map(_global, state, where)
        return jax.device_put(state, where, may_alias=False)  # steps donate their buffers, which no one else may hold

    def batch(self, batch: PyTree) -> PyTree:
        """This process's rows of a batch, on the host, as the global batch on the devices."""
        if self.mesh is None:
            return batch  # goes with the call
        rows = self._named(AXIS)
        if jax.process_count() == 1:
            return jax.device_put(batch, rows)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)

    def gather(self, state: PyTree) -> PyTree:
        """`state` with every leaf readable in the first process; all processes must call this at the same time."""
        if jax.process_count() == 1:
            return state
        return jax.tree.map(lambda x: x if x.is_fully_replicated else _spread(self._named())(x), state)

    def _named(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))


ONE_DEVICE = Layout()


def sharding(*, rules: str | Sequence[tuple[str, str]] = 'replicate', devices: int | None = None) -> Sharding:
    """Checks the `sharding` section of a config.

    Args:
        rules: `replicate` is data parallel, `fsdp` cuts what is worth it; or `((regex, where), …)`.
        devices: how many to use; None is all that JAX finds, in all processes.

    Raises:
        UserError: more devices than there are, or rules that say nothing known.
    """
    found = jax.devices()
    if devices is not None and not 1 <= devices <= len(found):
        raise UserError(f'config.sharding.devices: {devices} asked for; JAX finds {len(found)}, so 1 to {len(found)}.')
    if devices not in (None, len(found)) and jax.process_count() > 1:
        raise UserError(f'config.sharding.devices: {devices}, but several processes work on all {len(found)} devices.')
    rules = (('.*', rules),) if isinstance(rules, str) else rules
    if not pairs(rules):
        raise UserError(f"config.sharding.rules: expected a text or (('regex', where), …), got {rules!r}.")
    rules = tuple((regex, str(where)) for regex, where in rules)
    for _, where in rules:
        _parse(where)
    return Sharding(_mesh(devices or len(found)), rules)


def check_batch(batch_size: int, accumulate: int, sharding: Sharding) -> None:
    """Refuses a batch whose `accumulate` parts do not divide over the devices.

    Raises:
        UserError: naming the nearest size that does.
    """
    unit = sharding.devices * accumulate
    if batch_size % unit == 0:
        return
    parts = f' in {accumulate} parts' if accumulate > 1 else ''
    sizes = [size for size in (batch_size // unit * unit, -(-batch_size // unit) * unit) if size]
    nearest = min(sizes, key=lambda size: abs(size - batch_size))
    fewer = max(d for d in range(1, sharding.devices) if batch_size % (d * accumulate) == 0)
    instead = '' if jax.process_count() > 1 else f', or take fewer devices: --config.sharding.devices={fewer}'
    raise UserError(
        f'config.batch_size: {batch_size}{parts} does not divide over {sharding.devices} devices; '
        f'the nearest that does is {nearest}{instead}.'
    )


@functools.cache
def _mesh(devices: int) -> Mesh | None:
    """Devices in the order of processes, so that each process has consecutive rows of a batch."""
    if devices == 1:
        return None
    ordered = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))[:devices]
    return Mesh(np.array(ordered), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def _parse(where: str) -> tuple[str, int | None]:
    """`fsdp(1)` -> `('fsdp', 1)`."""
    found = re.fullmatch(r'(replicate|fsdp)|fsdp\((\d+)\)', where)
    if not found:
        raise UserError(f'config.sharding.rules: {where!r} should be replicate, fsdp, or fsdp(AXIS).')
    return (found[1], None) if found[1] else ('fsdp', int(found[2]))


def _axis(shape: tuple[int, ...], where: str, devices: int, path: str) -> int | None:
    """The axis to cut; None to replicate."""
    kind, axis = _parse(where)
    if kind == 'replicate':
        return None
    if axis is None:
        divides = [i for i, size in enumerate(shape) if size % devices == 0]
        small = math.prod(shape) < SMALL
        return None if small or not divides else max(divides, key=lambda i: (shape[i], i))
    if axis >= len(shape):
        raise UserError(f'config.sharding.rules: {path} has {len(shape)} axes, so there is no axis {axis} for {where}.')
    if shape[axis] % devices:
        raise UserError(f'config.sharding.rules: axis {axis} of {path} {shape} does not divide over {devices} devices.')
    return axis


def _global(value: Any, sharding: NamedSharding) -> jax.Array:
    """A host value that is the same in every process, or a global array, as an array over the devices of all."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _spread(sharding)(value)
    if tree.is_key(value):
        return jax.random.wrap_key_data(_global(jax.random.key_data(value), sharding))
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@functools.cache
def _spread(sharding: NamedSharding) -> Callable:
    """Compiled: a global array -> the same one, living elsewhere."""
    return jax.jit(lambda x: x, out_shardings=sharding)
