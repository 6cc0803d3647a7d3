"""The compiled program behind `lanes.train`: epochs of steps, each for all lanes at once.

Legend: L lanes, of which L_i on layer i; N examples to learn from, M to validate with, B in a batch; D_i features of
layer i, K classes, P label subsets, E epochs. Kernels are kept as [L, out, in], so that the first products are
x [B, D] times the transpose of [L·out, D], and g [B, L·out] transposed times x: both are fast as they stand.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jtl.probe.heads import HIGHEST

BLOCK = 1024  # validation examples scored at once


class How(NamedTuple):
    """What the program is compiled for, beside the shapes of its arguments."""

    several: bool  # labels of an example
    batch_size: int
    epochs: int
    optimiser: str
    schedule: str


class Data(NamedTuple):
    """The examples, a feature array for each layer that has lanes."""

    x: tuple[jax.Array, ...]  # [N, D_i]
    y: jax.Array  # [N, K]
    weight: jax.Array  # [N]
    kept: jax.Array  # [N, P] whether a label subset has the example
    x_val: tuple[jax.Array, ...]  # [M, D_i]
    y_val: jax.Array  # [M, K]


class Rates(NamedTuple):
    """What tells the lanes apart beside their initial values, [L] each; they are in the order of their layers."""

    lr: jax.Array
    decay: jax.Array
    subset: jax.Array  # which of P


class Net(NamedTuple):
    """Parameters of all lanes, or gradients, slots."""

    first: tuple[jax.Array, ...]  # [L_i, width, D_i]
    rest: tuple[jax.Array, ...]  # [L, out, in]
    biases: tuple[jax.Array, ...]  # [L, out]


class Found(NamedTuple):
    """Where the lanes stand; at the end, what they found."""

    net: Net  # () at the end
    best_net: Net
    best: jax.Array  # [L]
    best_epoch: jax.Array  # [L]
    stopped: jax.Array  # [L] epochs trained for
    accuracy: jax.Array  # [E, L]
    loss: jax.Array  # [E, L]


class _Run(NamedTuple):
    epoch: jax.Array
    slots: tuple[Net, ...]
    moved: jax.Array  # [L] updates made
    active: jax.Array  # [L]
    found: Found


@functools.partial(jax.jit, static_argnames='how', donate_argnames='net')
def run(net: Net, data: Data, rates: Rates, how: How, momentum: float, patience: int, order: int) -> Found:
    """All epochs from the initial values `net`, or as many as there are lanes that have not stopped."""
    L, E, dtype = len(rates.lr), how.epochs, data.weight.dtype
    lowest, none = jnp.full(L, -jnp.inf, dtype), jnp.full(L, -1)
    curves = jnp.full((E, L), jnp.nan, dtype)
    found = Found(net, net, lowest, none, jnp.zeros(L, int), curves, curves)
    zeros = jax.tree.map(jnp.zeros_like, net)
    slots = (zeros,) * (2 if how.optimiser == 'adamw' else 1)
    first = _Run(jnp.int32(0), slots, jnp.zeros(L, dtype), jnp.ones(L, bool), found)

    def epoch(now: _Run) -> _Run:
        now, loss = _learn(now, data, rates, how, momentum, order)
        return _judge(now, loss, _accuracy(now.found.net, data, how), patience)

    found = jax.lax.while_loop(lambda now: now.active.any() & (now.epoch < E), epoch, first).found
    return found._replace(net=())  # where the lanes ended is of no use, and as large as what they found


def scores(net: Net, xs: tuple[jax.Array, ...]) -> jax.Array:
    """[B, D_i] for each layer -> [B, L, K]."""
    folded = [jnp.matmul(x, w.reshape(-1, w.shape[2]).T, precision=HIGHEST) for x, w in zip(xs, net.first)]
    z = jnp.concatenate([f.reshape(len(f), *w.shape[:2]) for f, w in zip(folded, net.first)], 1) + net.biases[0]
    for kernel, bias in zip(net.rest, net.biases[1:]):
        z = jnp.einsum('bli,loi->blo', jax.nn.relu(z), kernel, precision=HIGHEST) + bias
    return z


def of_layer(net: Net, i: int, begin: int, end: int) -> Net:
    """The part of a net that is of its i-th layer, whose lanes are those from `begin` to `end`."""
    cut = lambda leaves: tuple(leaf[begin:end] for leaf in leaves)
    return Net((net.first[i],), cut(net.rest), cut(net.biases))


def _learn(now: _Run, data: Data, rates: Rates, how: How, momentum: float, order: int) -> tuple[_Run, jax.Array]:
    """One pass over the examples: where that leads, and the loss [L] on the way."""
    N, B = len(data.y), how.batch_size
    steps = -(-N // B)
    rng = jax.random.fold_in(jax.random.key(order), now.epoch)
    rows = jnp.pad(jax.random.permutation(rng, N), (0, steps * B - N)).reshape(steps, B)
    real = (jnp.arange(steps * B) < N).reshape(steps, B)  # the last batch is filled up with what does not count

    def step(carry, batch):
        net, slots, moved, total, seen = carry
        rows, real, step = batch
        share = (data.kept[rows][:, rates.subset] & real[:, None]).astype(data.weight.dtype)  # [B, L]
        count = share.sum(0)  # [L]
        xs, y = tuple(x[rows].astype(data.weight.dtype) for x in data.x), data.y[rows]
        share = share * (data.weight[rows][:, None] / jnp.maximum(count, 1))

        def objective(net: Net) -> tuple[jax.Array, jax.Array]:
            z, target = scores(net, xs), y[:, None]  # [B, L, K], [B, 1, K]
            if how.several:
                each = -(target * jax.nn.log_sigmoid(z) + (1 - target) * jax.nn.log_sigmoid(-z)).mean(-1)
            else:
                each = -(target * jax.nn.log_softmax(z)).sum(-1)
            loss = (share * each).sum(0)
            return loss.sum(), loss  # lanes share no parameter: the sum's gradient is each one's own

        grads, loss = jax.grad(objective, has_aux=True)(net)
        moves = now.active & (count > 0)
        lr = rates.lr * _rate(now.epoch * steps + step, how.epochs * steps, how.schedule).astype(rates.lr.dtype)
        moved = moved + moves
        if how.optimiser == 'adamw':
            net, slots = _adamw(net, slots, grads, lr, rates.decay, moves, moved)
        else:
            net, slots = _sgd(net, slots, grads, lr, rates.decay, moves, momentum)
        return (net, slots, moved, total + loss * count, seen + count), None

    none = jnp.zeros_like(rates.lr)
    begin = (now.found.net, now.slots, now.moved, none, none)
    (net, slots, moved, total, seen), _ = jax.lax.scan(step, begin, (rows, real, jnp.arange(steps)))
    return now._replace(slots=slots, moved=moved, found=now.found._replace(net=net)), total / seen


def _rate(step: jax.Array, steps: int, schedule: str) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * step / steps)) if schedule == 'cosine' else jnp.ones(())


def _each(value: jax.Array, net: Net, bias: float = 1.0) -> Net:
    """A number a lane [L], so that it multiplies each leaf of a net; times `bias` those of biases."""
    ends = [sum(len(w) for w in net.first[: i + 1]) for i in range(len(net.first))]
    first = tuple(value[end - len(w) : end, None, None] for w, end in zip(net.first, ends))
    return Net(first, (value[:, None, None],) * len(net.rest), (bias * value[:, None],) * len(net.biases))


def _sgd(net: Net, slots, grads: Net, lr, decay, moves, momentum) -> tuple[Net, tuple[Net]]:
    """v ← μ v + g + λ p, p ← p - η v; where a lane does not move μ is 1 and the rest 0, which costs nothing."""
    coefficients = [
        _each(jnp.where(moves, momentum, 1.0).astype(lr.dtype), net),
        _each(moves.astype(lr.dtype), net),
        _each(moves * decay, net, bias=0),
        _each(moves * lr, net),
    ]
    (v,) = slots
    v = jax.tree.map(lambda p, v, g, mu, on, l, _: mu * v + on * g + l * p, net, v, grads, *coefficients)
    return jax.tree.map(lambda p, v, lr: p - lr * v, net, v, coefficients[3]), (v,)


def _adamw(net: Net, slots, grads: Net, lr, decay, moves, moved, b1=0.9, b2=0.999, eps=1e-8):
    """m ← β₁ m + (1-β₁) g, v ← β₂ v + (1-β₂) g², p ← p - η (m̂ / (√v̂ + ε) + λ p), with a lane's own count of moves."""
    m, v = slots
    on, t = moves.astype(lr.dtype), jnp.maximum(moved, 1)
    new = lambda a, b: _each(on * (1 - b), net)
    m = jax.tree.map(lambda m, g, c: m + c * (g - m), m, grads, new(m, b1))
    v = jax.tree.map(lambda v, g, c: v + c * (g * g - v), v, grads, new(v, b2))
    scales = _each(1 / (1 - b1**t), net), _each(1 / (1 - b2**t), net), _each(decay, net, bias=0), _each(on * lr, net)

    def update(p, m, v, cm, cv, decay, lr):
        return p - lr * (cm * m / (jnp.sqrt(cv * v) + eps) + decay * p)

    return jax.tree.map(update, net, m, v, *scales), (m, v)


def _accuracy(net: Net, data: Data, how: How) -> jax.Array:
    """[L] on the validation examples, NaN where a score is not finite: a block at a time, for the memory's sake."""
    M = len(data.y_val)
    block = min(BLOCK, M)
    blocks = -(-M // block)

    def hits(i: jax.Array) -> jax.Array:
        begin = jnp.minimum(i * block, M - block)  # the last block goes back over some of the one before
        take = lambda a: jax.lax.dynamic_slice_in_dim(a, begin, block)
        xs = tuple(take(x).astype(data.weight.dtype) for x in data.x_val)
        z, y = scores(net, xs), take(data.y_val)  # [block, L, K], [block, K]
        if how.several:
            right = ((z > 0) == (y[:, None] > 0.5)).mean(-1, dtype=z.dtype)
        else:
            right = (z.argmax(-1) == y.argmax(-1)[:, None]).astype(z.dtype)
        right = jnp.where(jnp.isfinite(z.sum(-1)), right, jnp.nan)
        return (right * (begin + jnp.arange(block) >= i * block)[:, None]).sum(0)

    return jax.lax.map(hits, jnp.arange(blocks)).sum(0) / M


def _judge(now: _Run, loss: jax.Array, accuracy: jax.Array, patience: int) -> _Run:
    """Curves, the best so far, and who goes on."""
    fine = jnp.isfinite(loss) & jnp.isfinite(accuracy)
    found = now.found
    better = now.active & fine & (accuracy > found.best)
    best_epoch = jnp.where(better, now.epoch, found.best_epoch)
    on = _each(better, found.net, bias=True)
    shown = lambda values, curve: curve.at[now.epoch].set(jnp.where(now.active & fine, values, jnp.nan))
    found = found._replace(
        best_net=jax.tree.map(jnp.where, on, found.net, found.best_net),
        best=jnp.where(better, accuracy, found.best),
        best_epoch=best_epoch,
        stopped=found.stopped + now.active,
        accuracy=shown(accuracy, found.accuracy),
        loss=shown(loss, found.loss),
    )
    active = now.active & fine & (now.epoch - best_epoch < patience)
    return now._replace(epoch=now.epoch + 1, active=active, found=found)
