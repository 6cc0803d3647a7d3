"""The compiled functions of a run: its one training step, initialisation, prediction, optimiser slots.

They are cached, so that runs which differ only in seed, rates or data share them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtl import optim
from jtl.method import Method
from jtl.models import norm
from jtl.sharding import ONE_DEVICE, Layout

PyTree = Any


class TrainState(NamedTuple):
    """All that a step reads and writes, on the device."""

    step: jax.Array  # updates done
    rng: jax.Array  # the run's key; step s uses fold_in(rng, s)
    params: PyTree
    state: PyTree
    opt_state: PyTree
    ema: PyTree  # of the trained leaves; empty when off


@functools.lru_cache(maxsize=64)
def compile_step(method: Method, phase: optim.Phase, static: optim.Optim, layout: Layout = ONE_DEVICE) -> Callable:
    """The compiled `train_step` of one phase; the learning rate and its schedule's lengths are arguments."""

    def train_step(ts: TrainState, batch: dict, rates: optim.Rates) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(ts.rng, ts.step)
        trained, frozen = optim.split(ts.params, phase)
        loss = norm.still(method.loss, optim.frozen_paths(ts.params, phase))
        grads_of = accumulate(method.grads(optim.only(loss, frozen)), static.accumulate, layout)
        grads, state, measured = grads_of(trained, ts.state, batch, rng, ts.step)
        params, opt_state, moved = optim.update(grads, ts.opt_state, ts.params, phase, static, rates, ts.step)
        ema = optim.average(ts.ema, params, phase, static.ema, ts.step) if static.ema else ts.ema
        ts = TrainState(ts.step + 1, ts.rng, params, state, opt_state, ema)
        return layout.constrain(ts), layout.whole({**measured, **moved})

    return jax.jit(train_step, donate_argnums=0, compiler_options=_keep_remat())


def _keep_remat() -> dict[str, str] | None:
    """XLA for the CPU would merge what `jax.checkpoint` computes again with the first time, and save no memory."""
    return {'xla_disable_hlo_passes': 'cse_barrier_expander'} if jax.default_backend() == 'cpu' else None


def accumulate(grads: Callable, parts: int, layout: Layout) -> Callable:
    """`grads` averaged over `parts` equal pieces of the batch, one after the other; state passes along."""
    if parts == 1:
        return grads

    def accumulated(params, state, batch, rng, step):
        pieces = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)  # [B, …] -> [parts, B/parts, …]
        pieces = layout.rows(pieces, axis=1)

        def one(carry, piece):
            total, state = carry
            i, piece = piece
            g, state, measured = grads(params, state, piece, jax.random.fold_in(rng, i), step)
            return (jax.tree.map(jnp.add, total, g), state), measured

        zeros = jax.tree.map(jnp.zeros_like, params)
        (total, state), measured = jax.lax.scan(one, (zeros, state), (jnp.arange(parts), pieces))
        mean = lambda x: x.mean(0)
        return jax.tree.map(lambda g: g / parts, total), state, jax.tree.map(mean, measured)

    return accumulated


@functools.lru_cache(maxsize=32)
def compile_init(method: Method, layout: Layout = ONE_DEVICE) -> Callable:
    """Run once, so not worth optimising: without, ResNet-20 compiles in 1.4 s instead of 9."""

    def init(rng: jax.Array, batch: dict) -> tuple[PyTree, PyTree]:
        return layout.constrain(method.init(rng, batch))

    return jax.jit(init, compiler_options={'xla_backend_optimization_level': 0})


@functools.lru_cache(maxsize=32)
def compile_predict(method: Method, layout: Layout = ONE_DEVICE) -> Callable:
    """`(params, state, batch) -> outputs`, and with them what an evaluator needs to know of each row."""

    def predict(params: PyTree, state: PyTree, batch: dict) -> dict:
        rows = {name: batch[name] for name in ('label', 'index', 'mask') if name in batch}
        return layout.whole({**rows, **method.predict(params, state, batch)})

    return jax.jit(predict)


@functools.lru_cache(maxsize=64)
def compile_slots(phase: optim.Phase, static: optim.Optim, layout: Layout = ONE_DEVICE) -> Callable:
    """params -> fresh `(opt_state, ema)` of a phase."""

    def slots(params: PyTree) -> tuple[PyTree, PyTree]:
        opt_state = optim.transform(phase, params, static, 0.0, 0.0).init(params)
        ema = jax.tree.map(jnp.copy, optim.split(params, phase)[0]) if static.ema else ()
        return layout.constrain((opt_state, ema))

    return jax.jit(slots)
