"""SAM: the gradient is taken where the loss is highest near by, so that training ends where the loss is flat."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jtl.errors import UserError
from jtl.method import Method
from jtl.optim import global_norm

STABLE = 0.01  # η of ASAM


def sam(method: Method, *, rho: float = 0.05, adaptive: bool = False) -> Method:
    """Replaces the gradient of `method` at w by its gradient at the worst place about w, to first order.

        g = ∇L(w),   ε = ρ T² g / ‖T g‖,   the update's gradient is ∇L(w + ε)

    T is 1: Foret et al., "Sharpness-Aware Minimization", ICLR 2021; or |w| + 0.01 with `adaptive`, so that rescaling a
    layer and its successor changes nothing: Kwon et al., "ASAM", ICML 2021 (which takes a ρ some ten times larger).
    The norm is over all trained parameters; frozen ones are not moved. L is the whole loss, with what other methods add
    to it. Both gradients see the same batch and random numbers. The state and the metrics are those of the first, so
    that running statistics move once. Of a batch in parts (`config.optim.accumulate`) each part has an ε of its own
    (the paper's m-sharpness). A step costs two.

    Metrics: `sharpness`, L(w + ε) - L(w).

    Args:
        rho: ρ, above 0.
    """
    if not 0 < rho < float('inf'):
        raise UserError(f'config.method.sam.rho: {rho} should be above 0, and finite.')

    def grads(loss: Callable) -> Callable:
        plain = method.grads(loss)

        def sharp(params, state, batch, rng, step):
            g, kept, metrics = plain(params, state, batch, rng, step)
            there = jax.tree.map(jnp.add, params, ascent(params, g, rho, adaptive))
            g, _, higher = plain(there, state, batch, rng, step)
            return g, kept, {**metrics, 'sharpness': higher['loss'] - metrics['loss']}

        return sharp

    return method._replace(grads=grads)


def ascent(params, grads, rho: float, adaptive: bool):
    """ε of `sam`, leaf by leaf; 0 where the gradient is."""
    scale = jax.tree.map(lambda w: jnp.abs(w) + STABLE if adaptive else jnp.ones((), w.dtype), params)
    scaled = jax.tree.map(jnp.multiply, scale, grads)  # T g
    norm = global_norm(scaled)
    length = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
    return jax.tree.map(lambda t, g: length * t * g, scale, scaled)
