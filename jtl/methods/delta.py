"""DELTA: fine-tuning that keeps the source network's behaviour, most of all in the channels that the task needs.

Legend: B batch, N examples, p positions of a map or tokens, l layers, C channels, D features, K classes.
"""

import functools
import heapq
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jtl import tree
from jtl.errors import UserError, nearest
from jtl.losses import masked_mean, sigmoid_cross_entropy, softmax_cross_entropy
from jtl.method import Batch, Method
from jtl.methods.l2sp import squared_norm
from jtl.methods.lpft import solve
from jtl.models import layers as taps

PyTree = Any

ATTENTIONS = ('taylor', 'removal', 'uniform')
LAYERS = 4  # watched, of a network without stages
TEMPERATURE = 5.0


def delta(
    method: Method,
    *,
    model: nn.Module,
    alpha: float = 0.5,
    beta: float = 0.01,
    layers: str | None = None,
    attention: str = 'taylor',
    examples: int = 256,
) -> Method:
    """Adds to the loss of `method` how far the feature maps are from those of the source network, channel by channel.

        loss + α/2 Σ_l C_l Σ_c W_lc · mean_{b, p} (FM_l(w, x_b) - FM_l(w⁰, x_b))²_pc + β/2 ‖head‖²
        W_l = softmax(z / 5),  z the standardised increase of the loss when channel c of layer l is set to zero

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", ICLR 2019,
    with the scaling, the standardisation and the 5 of the authors' code; it sums over its batch of 64, so that its α of
    0.01 is 0.64 here. w⁰ are the parameters when `prepare` ran, whose network is in inference mode and sees what the
    trained one sees, mixed or attacked pictures too. The source costs a forward pass a step, and no gradient. As
    with L2-SP, leave `config.optim.weight_decay` at 0.

    The increase of the loss is measured on training examples drawn at random, with a logistic head on the source's
    features, as in the paper. There a convolution's filter is set to zero; here the channel of the block's output is.

    Metrics: `delta`, what is added.

    Its β is a penalty on the head: with `l2sp` besides, set one of the two to 0.

    Args:
        model: the classifier of `method`.
        alpha, beta: at least 0.
        layers: a regex of whole names: `stem`, `stage2/block0`, `block11`, `features`. None: the last block of each
            stage; without stages four blocks, evenly spaced up to the last; without blocks the features.
        attention: `taylor` estimates the increase to first order for all channels at once, by one gradient: of
            L(g) with the channels multiplied by g, it is -∂L/∂g_c at g = 1 (Molchanov et al. 2017, with its sign).
            It is cheap and rough: on a small ResNet of digits it correlated with removal by 0.72 in the last stage and
            by 0.11 in the first. `removal` is the paper's, with a forward pass a channel. `uniform` makes W = 1/C.
        examples: to measure the increase with, at most.

    Raises:
        UserError: an option out of its range; a model with `remat`, whose blocks cannot be watched; a regex that
            matches no layer; batches of cached features.
    """
    _check(alpha, beta, attention, examples, layers, model)
    feature_maps = functools.partial(model.apply, train=False, method='features')

    def prepare(params, state, batches, rng):
        params, state = method.prepare(params, state, batches, rng)
        parts = {name: value for name, value in params.items() if name != 'head'}
        source = {'params': parts, **state.get('model', {})}
        shapes = taps.shapes(model, source, next(iter(batches)), pool='none')
        widths = {name: shapes[name][-1] for name in chosen(list(shapes), layers)}
        if attention == 'uniform':
            weight = {name: jnp.full(width, 1 / width) for name, width in widths.items()}
        else:
            sample = Sample(examples, rng)
            for batch in batches:
                sample.look(batch)
            risen = rises(functools.partial(feature_maps, source), sample.batches(), widths, attention)
            weight = {name: soft(rise) for name, rise in risen.items()}
        source = jax.tree.map(jnp.array, source)  # copies: a step gives its buffers away
        return params, {**state, 'delta': {'source': source, 'weight': tree.unflatten(weight)}}

    def loss(params, state, batch: Batch, rng, step):
        if 'embedding' in batch:
            raise UserError('config.method.delta: compares feature maps, and only cached features are here.')
        with taps.watch() as student:
            value, (state, outputs) = method.loss(params, state, batch, rng, step)
        with taps.watch() as source:
            feature_maps(state['delta']['source'], student.batch)
        weights = tree.flatten(state['delta']['weight'])
        apart = [distance(student.outputs[n], source.outputs[n], weights[n], student.batch) for n in weights]
        penalty = alpha / 2 * sum(apart) + beta / 2 * squared_norm(params['head'])
        return value + penalty, (state, {**outputs, 'metrics': {**outputs.get('metrics', {}), 'delta': penalty}})

    return method._replace(prepare=prepare, loss=loss)


def distance(x: jax.Array, source: jax.Array, weight: jax.Array, batch: Batch) -> jax.Array:
    """C Σ_c W_c · mean over examples that are not padding and positions of (x - source)²_c: [B, …, C] -> scalar."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    square = jnp.square(x.astype(wide) - source.astype(wide))
    each = square.mean(tuple(range(1, square.ndim - 1))) @ weight * len(weight)  # [B, …, C] -> [B, C] -> [B]
    return masked_mean(each, batch)


def chosen(names: Sequence[str], layers: str | None) -> list[str]:
    """Of all layers of a backbone those to watch; see `delta`."""
    if layers is not None:
        found = [name for name in names if re.fullmatch(layers, name)]
        if not found:
            raise UserError(f'config.method.delta.layers: {layers!r} matches no layer; {nearest(layers, names)}')
        return found
    blocks = [name for name in names if 'block' in name]
    stages = {name.split('/')[0]: name for name in blocks if '/' in name}  # the last of each
    if stages or not blocks:
        return list(stages.values()) or [taps.FEATURES]
    return list(dict.fromkeys(blocks[math.ceil(len(blocks) * i / LAYERS) - 1] for i in range(1, LAYERS + 1)))


# How much the loss rises without a channel.


class Sample:
    """Examples drawn evenly from one pass over a split, without keeping the others."""

    def __init__(self, size: int, rng: jax.Array):
        self.size, self.rng = size, np.random.default_rng(np.asarray(jax.random.key_data(rng)))
        self.rows: list[tuple[float, int, dict]] = []  # (minus its lot, its number, the example): a heap
        self.seen = self.rows_a_batch = 0

    def look(self, batch: Batch) -> None:
        """Keeps those of the batch that have one of the lowest lots so far."""
        mask = np.asarray(batch.get('mask', np.ones(len(batch['label']))))
        self.rows_a_batch = max(self.rows_a_batch, len(mask))
        for i in np.flatnonzero(mask):
            lot, self.seen = self.rng.random(), self.seen + 1
            if len(self.rows) < self.size or lot < -self.rows[0][0]:
                row = {name: np.array(value[i]) for name, value in batch.items()}
                push = heapq.heappush if len(self.rows) < self.size else heapq.heapreplace
                push(self.rows, (-lot, self.seen, row))

    def batches(self) -> list[Batch]:
        """The examples in batches of one size, the last padded with rows of mask 0."""
        rows = [row for _, _, row in self.rows]
        size = min(self.rows_a_batch, len(rows))
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        padded = [part + [{**part[0], 'mask': np.float32(0)}] * (size - len(part)) for part in parts]
        return [{name: np.stack([row[name] for row in part]) for name in part[0]} for part in padded]


def rises(
    feature_maps: Callable[[Batch], jax.Array], batches: Sequence[Batch], widths: Mapping[str, int], attention: str
) -> dict[str, np.ndarray]:
    """By how much the mean loss of `batches` rises without each channel, by layer: [C]; see `delta`.

    Args:
        feature_maps: batch -> features [B, D] of the source.
        widths: C of each layer.
        attention: `taylor` or `removal`.
    """
    plain = jax.jit(feature_maps)
    real = [batch['mask'] > 0 for batch in batches]
    x = np.concatenate([np.asarray(plain(batch))[rows] for batch, rows in zip(batches, real)])
    y = np.concatenate([batch['label'][rows] for batch, rows in zip(batches, real)])
    present = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])  # of many classes, a few examples lack some
    kernel, bias = solve(x, np.searchsorted(present, y) if y.ndim == 1 else y, len(present))

    def loss(gates: Mapping[str, jax.Array], batch: Batch) -> jax.Array:
        with taps.watch(lambda name, output: output * gates[name].astype(output.dtype) if name in gates else output):
            logits = feature_maps(batch) @ kernel + bias  # [B, K]
        label = batch['label']
        if label.ndim == 2:
            each = sigmoid_cross_entropy(logits, label, 1.0)
        else:
            each = softmax_cross_entropy(logits, (label[:, None] == present).astype(jnp.float32), 1.0)
        return (each * batch['mask']).sum() / len(x)

    ones = {name: jnp.ones(width) for name, width in widths.items()}
    if attention == 'taylor':
        slope = jax.jit(jax.grad(loss))
        total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), (slope(ones, batch) for batch in batches))
        return {name: -np.asarray(values) for name, values in total.items()}
    compiled = jax.jit(loss)
    of = lambda gates: sum(float(compiled(gates, batch)) for batch in batches)
    base = of(ones)
    return {
        name: np.array([of({**ones, name: ones[name].at[c].set(0)}) - base for c in range(width)])
        for name, width in widths.items()
    }


def soft(rise: np.ndarray) -> jax.Array:
    """softmax of the standardised rises / 5: [C] -> [C]; even where all are the same."""
    spread = rise.std()
    return jax.nn.softmax(jnp.asarray((rise - rise.mean()) / (spread if spread > 0 else 1) / TEMPERATURE, jnp.float32))


def _check(alpha, beta, attention, examples, layers, model) -> None:
    for key, value in (('alpha', alpha), ('beta', beta)):
        if not 0 <= value < math.inf:
            raise UserError(f'config.method.delta.{key}: {value} should be at least 0, and finite.')
    if attention not in ATTENTIONS:
        raise UserError(f'config.method.delta.attention: {attention!r} is unknown; {nearest(attention, ATTENTIONS)}')
    if examples < 2:
        raise UserError(f'config.method.delta.examples: {examples} should be at least 2.')
    if layers is not None:
        try:
            re.compile(layers)
        except re.error as e:
            raise UserError(f'config.method.delta.layers: {layers!r} is no regex: {e}.') from e
    if getattr(model.backbone, 'remat', False):
        raise UserError('config.method.delta: watches blocks, which config.model.remat hides; leave that out.')
