"""L2-SP: fine-tuning that is pulled towards where it started instead of towards zero."""

from typing import Any

import jax
import jax.numpy as jnp

from jtl.errors import UserError
from jtl.method import Batch, Method

PyTree = Any


def l2sp(method: Method, *, alpha: float = 0.1, beta: float = 0.01) -> Method:
    """Adds the squared distance from the starting point to the loss of `method`.

        loss + α/2 ‖w_S - w_S⁰‖² + β/2 ‖w_new‖²

    Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018.
    w_new is the head; w_S is everything else, biases and norms included, and w_S⁰ its values when `prepare` ran, after
    pretrained weights were in. An adapter starts as the identity, so it is pulled to its start as well. What is frozen
    has not moved and adds nothing. It takes the place of weight decay: leave `config.optim.weight_decay` at 0, or the
    same parameters are pulled to zero too.

    Metrics: `l2sp`, what is added.

    Args:
        alpha, beta: at least 0.
    """
    _check('alpha', alpha)
    _check('beta', beta)

    def prepare(params, state, batches, rng):
        params, state = method.prepare(params, state, batches, rng)
        start = {name: value for name, value in params.items() if name != 'head'}
        return params, {**state, 'l2sp': jax.tree.map(lambda w: jnp.array(w, jnp.float32), start)}

    def loss(params, state, batch: Batch, rng, step):
        value, (state, outputs) = method.loss(params, state, batch, rng, step)
        start = state.get('l2sp', {})  # before `prepare` nothing has moved: what is cached is known without it
        source = {name: params[name] for name in start}
        moved = squared_norm(jax.tree.map(lambda w, w0: w.astype(jnp.float32) - w0, source, start))
        penalty = alpha / 2 * moved + beta / 2 * squared_norm(params['head'])
        return value + penalty, (state, {**outputs, 'metrics': {**outputs.get('metrics', {}), 'l2sp': penalty}})

    return method._replace(prepare=prepare, loss=loss)


def squared_norm(params: PyTree) -> jax.Array:
    """Σ w² over all leaves, in float32 at least."""
    squares = [jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params)]
    return sum(squares, jnp.float32(0))


def _check(key: str, value: float) -> None:
    if not 0 <= value < float('inf'):
        raise UserError(f'config.method.l2sp.{key}: {value} should be at least 0, and finite.')
