"""Supervised learning: cross-entropy between predicted and given labels.

B examples, K classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jtl import mixing
from jtl.errors import UserError
from jtl.losses import hits, masked_mean, sigmoid_cross_entropy, smooth, softmax_cross_entropy
from jtl.method import Batch, Method


def supervised(
    model: nn.Module,
    *,
    label_smoothing: float = 0.0,
    class_weights: str | Sequence[float] | None = None,
    focal: float = 0.0,
    logit_adjustment: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Method:
    """Trains `model` on `label`: softmax cross-entropy for int32 [B], sigmoid for multi-label float [B, K].

        loss = Σ_b mask_b · w_b · c(y_b) · CE(p_b, y_b) / Σ_b mask_b

    with example weights w (`weight` in the batch, default 1) and class weights c. The divisor counts examples rather
    than weights, so that the mean over parts of a batch is the mean over the batch. All options go together.

    Args:
        model: a classifier from `jtl.models`.
        label_smoothing: ε of y ← (1 - ε) y + ε/K (Szegedy et al. 2016); with several labels, y ← (1 - ε) y + ε/2.
        class_weights: K numbers, or `balanced`: N / (K · N_k) from the training labels. For multi-label, a weight
            multiplies its class's term.
        focal: γ of CE ← (1 - p_y)^γ CE: what is predicted well counts less (Lin et al. 2017). 0 is off.
        logit_adjustment: τ of p = softmax(z + τ log π) in the loss alone, with π_k = N_k / N from the training labels
            (Menon et al. 2021): z then ranks classes as if they were equally frequent. τ = 1 is balanced softmax (Ren
            et al. 2020); 0 is off. For batches that are drawn as the data are (`config.data.sampling='uniform'`).
        mixup: α of λ ~ Beta(α, α), one a batch: inputs and labels become λ x + (1 - λ) x' with x' from the same batch
            (Zhang et al. 2018). 0 is off.
        cutmix: α of λ: a box with 1 - λ of the area is pasted from x', and labels are mixed by what area it has (Yun et
            al. 2019). 0 is off. With both, each batch is mixed in one of the two ways, by a coin.
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f'config.method.label_smoothing: {label_smoothing} should be in [0, 1).')
    strengths = {'focal': focal, 'logit_adjustment': logit_adjustment, 'mixup': mixup, 'cutmix': cutmix}
    for key, value in strengths.items():
        if not 0 <= value < math.inf:
            raise UserError(f'config.method.{key}: {value} should be at least 0, and finite.')
    if isinstance(class_weights, str) and class_weights != 'balanced':
        raise UserError(f'config.method.class_weights: {class_weights!r} should be "balanced" or a number a class.')

    def init(rng: jax.Array, batch: Batch):
        if mixup and 'tokens' in batch:
            raise UserError('config.method.mixup: mixes pictures or features; words cannot be mixed.')
        if cutmix and 'image' not in batch:
            raise UserError('config.method.cutmix: pastes a part of a picture into another; there are no pictures.')
        if logit_adjustment and batch['label'].ndim == 2:
            raise UserError('config.method.logit_adjustment: takes one label an example; here are several.')
        variables = dict(model.init({'params': rng}, batch, train=False))
        params = variables.pop('params')
        return params, {'model': variables} if variables else {}  # empty without BatchNorm

    def prepare(params, state, batches, rng):
        if class_weights is None and not logit_adjustment:
            return params, state
        classes = num_classes(predict, params, state, next(iter(batches)))
        made = {}
        if class_weights == 'balanced' or logit_adjustment:
            count = counted(batches, classes)
        if class_weights is not None:
            weights = balanced(count) if class_weights == 'balanced' else np.asarray(class_weights)
            if weights.shape != (classes,):
                raise UserError(f'config.method.class_weights: {weights.size} given for {classes} classes.')
            made['class_weight'] = jnp.asarray(weights, jnp.float32)
        if logit_adjustment:
            made['log_prior'] = jnp.asarray(np.log(np.maximum(count, 1) / count.sum()), jnp.float32)
        return params, {**state, **made}

    def loss(params, state, batch: Batch, rng: jax.Array, step: jax.Array):
        rng_mixing, rng_dropout = jax.random.split(rng)
        inputs, mix = batch, lambda target: target
        if mixup or cutmix:
            inputs, mix = mixed(rng_mixing, batch, mixup, cutmix)
        kept = state.get('model', {})
        outputs, kept = model.apply(
            {'params': params, **kept}, inputs, train=True, rngs={'dropout': rng_dropout}, mutable=list(kept)
        )
        logits, label = outputs['logits'], batch['label']  # [B, K], [B] or [B, K]
        target = label if label.ndim == 2 else jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
        target = mix(smooth(target, label_smoothing, floor=2 if label.ndim == 2 else logits.shape[-1]))
        adjusted = logits + logit_adjustment * state.get('log_prior', 0.0) if logit_adjustment else logits
        entropy = sigmoid_cross_entropy if label.ndim == 2 else softmax_cross_entropy
        per_example = entropy(adjusted, target, state.get('class_weight', 1.0), focal)  # [B]
        value = masked_mean(per_example * batch.get('weight', 1.0), batch)
        metrics = {} if mixup or cutmix else {'accuracy': masked_mean(hits(logits, label), batch)}
        return value, ({**state, 'model': kept} if kept else state, {**outputs, 'metrics': metrics})

    def predict(params, state, batch: Batch):
        return model.apply({'params': params, **state.get('model', {})}, batch, train=False)

    return Method(init=init, loss=loss, predict=predict, prepare=prepare)


def num_classes(predict, params, state, batch: Batch) -> int:
    """K, from the shape of the logits."""
    return jax.eval_shape(predict, params, state, batch)['logits'].shape[-1]


def counted(batches: Iterable[Batch], classes: int) -> np.ndarray:
    """N_k, how many examples each class has: [K]."""
    count = np.zeros(classes)
    for batch in batches:
        label = batch['label']
        target = label if label.ndim == 2 else np.eye(classes)[label]  # [B, K]
        count += (target * batch['mask'][:, None]).sum(0)
    return count


def balanced(count: np.ndarray) -> np.ndarray:
    """Class weights N / (K · N_k), so that every class has the same share of the loss: [K] -> [K]."""
    return count.sum() / (len(count) * np.maximum(count, 1))


def mixed(rng: jax.Array, batch: Batch, mixup: float, cutmix: float) -> tuple[Batch, Callable]:
    """`(the batch with its inputs mixed, what mixes its targets alike, [B, K] -> [B, K])`."""
    if 'embedding' in batch:
        name = 'mixup' if mixup else 'cutmix'
        raise UserError(f'config.method.{name}: mixes what a backbone reads, and only its features are here.')
    inputs = {key: batch[key] for key in ('image', 'features') if key in batch}
    blend = mixing.draw(rng, next(iter(inputs.values())).shape, mixup=mixup, cutmix=cutmix)
    return {**batch, **{key: blend.inputs(x) for key, x in inputs.items()}}, blend.labels
