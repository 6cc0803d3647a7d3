"""Supervised learning: cross-entropy between predicted and given labels.

B examples, K classes.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jtl.errors import UserError
from jtl.method import Batch, Method


def supervised(
    model: nn.Module,
    *,
    label_smoothing: float = 0.0,
    class_weights: str | Sequence[float] | None = None,
    mixup: float = 0.0,
) -> Method:
    """Trains `model` on `label`: softmax cross-entropy for int32 [B], sigmoid for multi-label float [B, K].

        loss = Σ_b mask_b · w_b · c(y_b) · CE(p_b, y_b) / Σ_b mask_b

    with example weights w (`weight` in the batch, default 1) and class weights c. The divisor counts examples rather
    than weights, so that the mean over parts of a batch is the mean over the batch.

    Args:
        model: a classifier from `jtl.models`.
        label_smoothing: ε of y ← (1 - ε) y + ε/K (Szegedy et al. 2016); with several labels, y ← (1 - ε) y + ε/2.
        class_weights: K numbers, or `balanced`: N / (K · N_k) from the training labels. For multi-label, a weight
            multiplies its class's term.
        mixup: α of λ ~ Beta(α, α), one a batch: inputs and labels become λ x + (1 - λ) x' with x' from the same batch
            (Zhang et al. 2018). 0 is off.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f'config.method.label_smoothing: {label_smoothing} should be in [0, 1).')
    if mixup < 0:
        raise UserError(f'config.method.mixup: {mixup} should be at least 0.')
    if isinstance(class_weights, str) and class_weights != 'balanced':
        raise UserError(f'config.method.class_weights: {class_weights!r} should be "balanced" or a number a class.')

    def init(rng: jax.Array, batch: Batch):
        if mixup and 'tokens' in batch:
            raise UserError('config.method.mixup: mixes pictures or features; words cannot be mixed.')
        variables = dict(model.init({'params': rng}, batch, train=False))
        params = variables.pop('params')
        return params, {'model': variables} if variables else {}  # empty without BatchNorm

    def prepare(params, state, batches, rng):
        if class_weights is None:
            return params, state
        first = next(batches)
        classes = num_classes(predict, params, state, first)
        weights = balanced([first, *batches], classes) if class_weights == 'balanced' else np.asarray(class_weights)
        if weights.shape != (classes,):
            raise UserError(f'config.method.class_weights: {weights.size} given for {classes} classes.')
        return params, {**state, 'class_weight': jnp.asarray(weights, jnp.float32)}

    def loss(params, state, batch: Batch, rng: jax.Array, step: jax.Array):
        if mixup and 'embedding' in batch:
            raise UserError('config.method.mixup: mixes what a backbone reads, and only its features are here.')
        rng_mixup, rng_dropout = jax.random.split(rng)
        blend = blending(rng_mixup, len(batch['label']), mixup) if mixup else lambda x: x
        inputs = {k: blend(v) if k in ('image', 'features') else v for k, v in batch.items()}
        kept = state.get('model', {})
        outputs, kept = model.apply(
            {'params': params, **kept}, inputs, train=True, rngs={'dropout': rng_dropout}, mutable=list(kept)
        )
        logits, label = outputs['logits'], batch['label']  # [B, K], [B] or [B, K]
        target = label if label.ndim == 2 else jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
        target = blend(smooth(target, label_smoothing, floor=2 if label.ndim == 2 else logits.shape[-1]))
        entropy = sigmoid_cross_entropy if label.ndim == 2 else softmax_cross_entropy
        per_example = entropy(logits, target, state.get('class_weight', 1.0))  # [B]
        value = masked_mean(per_example * batch.get('weight', 1.0), batch)
        metrics = {} if mixup else {'accuracy': masked_mean(hits(logits, label), batch)}
        return value, ({**state, 'model': kept} if kept else state, {**outputs, 'metrics': metrics})

    def predict(params, state, batch: Batch):
        return model.apply({'params': params, **state.get('model', {})}, batch, train=False)

    return Method(init=init, loss=loss, predict=predict, prepare=prepare)


def num_classes(predict, params, state, batch: Batch) -> int:
    """K, from the shape of the logits."""
    return jax.eval_shape(predict, params, state, batch)['logits'].shape[-1]


def balanced(batches: Iterable[Batch], classes: int) -> np.ndarray:
    """Class weights N / (K · N_k), so that every class has the same share of the loss: [K]."""
    count = np.zeros(classes)
    for batch in batches:
        label = batch['label']
        target = label if label.ndim == 2 else np.eye(classes)[label]  # [B, K]
        count += (target * batch['mask'][:, None]).sum(0)
    return count.sum() / (classes * np.maximum(count, 1))


def masked_mean(value: jax.Array, batch: Batch) -> jax.Array:
    """Mean over the examples that are not padding: [B] -> scalar."""
    mask = batch.get('mask', jnp.ones_like(value))
    return (value * mask).sum() / jnp.maximum(mask.sum(), 1)


def smooth(target: jax.Array, epsilon: float, floor: int) -> jax.Array:
    """Label smoothing, (1 - ε) y + ε/floor: [B, K] -> [B, K]."""
    return (1 - epsilon) * target + epsilon / floor if epsilon else target


def softmax_cross_entropy(logits: jax.Array, target: jax.Array, class_weight: jax.Array | float) -> jax.Array:
    """-Σ_k c_k y_k log softmax(logits)_k: [B, K] -> [B]."""
    return -(class_weight * target * jax.nn.log_softmax(logits)).sum(-1)


def sigmoid_cross_entropy(logits: jax.Array, target: jax.Array, class_weight: jax.Array | float) -> jax.Array:
    """Mean over the K classes of the weighted binary cross-entropies: [B, K] -> [B]."""
    return (class_weight * optax.sigmoid_binary_cross_entropy(logits, target)).mean(-1)


def hits(logits: jax.Array, label: jax.Array) -> jax.Array:
    """1 where the prediction is right, [B]; for multi-label the share of right decisions."""
    if label.ndim == 2:
        return jnp.mean((logits > 0) == (label > 0.5), axis=-1, dtype=jnp.float32)
    return (logits.argmax(-1) == label).astype(jnp.float32)


def blending(rng: jax.Array, size: int, alpha: float) -> Callable[[jax.Array], jax.Array]:
    """Mixup's blend of every row with another of the batch, x -> λ x + (1 - λ) x[pair]: [B, …] -> [B, …]."""
    rng_lam, rng_pair = jax.random.split(rng)
    lam = jax.random.beta(rng_lam, alpha, alpha)
    pair = jax.random.permutation(rng_pair, size)
    return lambda x: lam * x + (1 - lam) * x[pair]
