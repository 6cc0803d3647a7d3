"""Losses as pure functions: one value an example, reduced once, with the mask.

B examples, K classes. `target` is a distribution over the classes, [B, K], or, for several labels, K numbers in [0, 1].
"""

import jax
import jax.numpy as jnp
import optax

from jtl.method import Batch


def softmax_cross_entropy(
    logits: jax.Array, target: jax.Array, class_weight: jax.Array | float, gamma: float = 0.0
) -> jax.Array:
    """-Σ_k c_k y_k (1 - p_k)^γ log p_k with p = softmax(logits): [B, K] -> [B].

    γ = 0 is cross-entropy; above it, the focal loss (Lin et al. 2017, equation 5), which counts examples less the
    better they are predicted. Of a soft target, every class is focused by its own p_k.
    """
    log_p = jax.nn.log_softmax(logits)
    # 1 - p, which in float32 may be 0, where a power below 1 has no gradient
    focus = jnp.maximum(-jnp.expm1(log_p), 1e-7) ** gamma if gamma else 1.0
    return -(class_weight * target * focus * log_p).sum(-1)


def sigmoid_cross_entropy(
    logits: jax.Array, target: jax.Array, class_weight: jax.Array | float, gamma: float = 0.0
) -> jax.Array:
    """Mean over the K classes of c_k times the binary cross-entropies: [B, K] -> [B].

    With γ, the focal loss: y (1 - p)^γ log p + (1 - y) p^γ log(1 - p) with p = sigmoid(logits).
    """
    if not gamma:
        return (class_weight * optax.sigmoid_binary_cross_entropy(logits, target)).mean(-1)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    entropy = -target * jnp.exp(gamma * log_not_p) * log_p - (1 - target) * jnp.exp(gamma * log_p) * log_not_p
    return (class_weight * entropy).mean(-1)


def smooth(target: jax.Array, epsilon: float, floor: int) -> jax.Array:
    """Label smoothing, (1 - ε) y + ε/floor: [B, K] -> [B, K]."""
    return (1 - epsilon) * target + epsilon / floor if epsilon else target


def hits(logits: jax.Array, label: jax.Array) -> jax.Array:
    """1 where the prediction is right, [B]; for multi-label the share of right decisions."""
    if label.ndim == 2:
        return jnp.mean((logits > 0) == (label > 0.5), axis=-1, dtype=jnp.float32)
    return (logits.argmax(-1) == label).astype(jnp.float32)


def masked_mean(value: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the examples that are not padding: [B] -> scalar."""
    mask = batch.get('mask', jnp.ones_like(value))
    return (value * mask).sum() / jnp.maximum(mask.sum(), 1)
