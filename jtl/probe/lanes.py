"""Heads by gradient descent, hundreds at once: linear ones and MLPs.

A lane is one training run: a learning rate, a weight decay, a seed, a layer, a label fraction. All lanes see the
same examples in the same order, so those on the same features share their first layer's products, forward and backward:
[B, D] @ [D, L·K] rather than L times [B, D] @ [D, K]. That, and not the number of lanes, is what makes them fast.
Layers stand side by side in the program, each with its own D, so that none is filled up with zeros. Every lane comes
out as it would alone.

Legend: L lanes, of which L_i on layer i; N examples to learn from, M others, B in a batch; D features, K classes, P
label subsets, E epochs.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError, nearest
from jtl.probe import lanes_program as program
from jtl.probe.heads import HIGHEST, Linear, one_hot

OPTIMISERS = ('sgd', 'adamw')
SCHEDULES = ('constant', 'cosine')


class Lanes(NamedTuple):
    """What tells the lanes apart, an array each."""

    lr: np.ndarray  # [L]
    decay: np.ndarray  # [L] weight decay of the kernels
    seed: np.ndarray  # [L] of the initial values, and of the examples that a label fraction keeps
    layer: np.ndarray  # [L] which of the feature arrays
    fraction: np.ndarray  # [L] of the labels, in (0, 1]


class Mlp(NamedTuple):
    """ReLU networks of one shape: x W + b, ReLU, …, W + b."""

    kernels: tuple[jax.Array, ...]  # [H, D, width], …, [H, width, K]
    biases: tuple[jax.Array, ...]  # [H, width], …, [H, K]

    def scores(self, x: jax.Array) -> jax.Array:
        """[M, D] -> [H, M, K]."""
        z = Linear(self.kernels[0], self.biases[0]).scores(x)  # [H, M, width]
        for kernel, bias in zip(self.kernels[1:], self.biases[1:]):
            z = jnp.matmul(jax.nn.relu(z), kernel, precision=HIGHEST) + bias[:, None]
        return z


class Trained(NamedTuple):
    """What `train` found: for each lane its parameters at the epoch that validated best.

    Attributes:
        lanes: as given.
        heads: one a layer that has lanes, of those lanes; `Linear` without hidden layers.
        members: the lanes of each of `heads`, [L_i].
        best: [L] best validation accuracy; -inf of a lane that diverged in its first epoch.
        best_epoch: [L] when that was, from 0; -1 of a lane that diverged in its first epoch, which has its initial
            values.
        stopped: [L] epochs that the lane was trained for.
        accuracy: [E, L] on the validation examples after each epoch; NaN once a lane has stopped or diverged.
        loss: [E, L] mean over the lane's training examples while it learns from them; NaN likewise.
    """

    lanes: Lanes
    heads: tuple[Linear | Mlp, ...]
    members: tuple[np.ndarray, ...]
    best: np.ndarray
    best_epoch: np.ndarray
    stopped: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray

    def scores(self, x: jax.Array | Sequence[jax.Array]) -> jax.Array:
        """[M, D], or such an array a layer -> [L, M, K]."""
        xs = _list(x)
        parts = [head.scores(xs[self.lanes.layer[ix[0]]]) for head, ix in zip(self.heads, self.members)]
        return jnp.concatenate(parts)[np.argsort(np.concatenate(self.members))]

    def head(self, lane: int) -> Linear | Mlp:
        """One lane's, as a head with H = 1."""
        i = next(i for i, ix in enumerate(self.members) if lane in ix)
        row = int(np.flatnonzero(self.members[i] == lane)[0])
        return jax.tree.map(lambda a: a[row : row + 1], self.heads[i])

    def pick(self) -> int:
        """The lane that validated best; of several the first, and never one that only diverged."""
        lane = int(np.argmax(self.best))
        if self.best[lane] == -np.inf:
            raise UserError(f'all {len(self.best)} lanes diverged in their first epoch: try a lower learning rate.')
        return lane


def grid(
    *,
    lr: Iterable[float],
    decay: Iterable[float] = (0.0,),
    seed: Iterable[int] = (0,),
    layer: Iterable[int] = (0,),
    fraction: Iterable[float] = (1.0,),
) -> Lanes:
    """All combinations, the last argument varying fastest."""
    columns = list(zip(*itertools.product(lr, decay, seed, layer, fraction)))
    if not columns:
        raise UserError('lanes: there are none, since one of lr, decay, seed, layer, fraction is empty.')
    kinds = (np.float64, np.float64, np.int64, np.int64, np.float64)
    return Lanes(*(np.asarray(c, kind) for c, kind in zip(columns, kinds)))


def subsets(lanes: Lanes, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples that label fractions keep: the different subsets, [P, N] of booleans, and the lanes' own, [L].

    A class's examples are drawn in an order of the seed's, and a fraction f keeps the first ⌈f N_k⌉ of the class's N_k:
    at least one, and all that a smaller fraction keeps. Examples with several labels have no class, and count as one.
    """
    group = y if y.ndim == 1 else np.zeros(len(y), int)
    keys = [(0, 1.0) if f == 1 else (s, f) for s, f in zip(lanes.seed.tolist(), lanes.fraction.tolist())]
    distinct = sorted(set(keys))
    kept = np.zeros((len(distinct), len(y)), bool)
    for row, (seed, fraction) in zip(kept, distinct):
        rng = np.random.default_rng(seed)
        for k in np.unique(group):
            drawn = rng.permutation(np.flatnonzero(group == k))
            row[drawn[np.arange(len(drawn)) / len(drawn) < fraction]] = True
    return kept, np.asarray([distinct.index(key) for key in keys])


def train(
    lanes: Lanes,
    fit: tuple[Any, np.ndarray],
    val: tuple[Any, np.ndarray],
    classes: int,
    *,
    hidden: Sequence[int] = (),
    batch_size: int = 256,
    epochs: int = 100,
    patience: int = 10,
    optimiser: str = 'sgd',
    momentum: float = 0.9,
    schedule: str = 'constant',
    weight: np.ndarray | None = None,
    order: int = 0,
    memory: float = 2**31,
) -> Trained:
    """Minibatch SGD or AdamW on all lanes at once, in one compiled program.

        loss_l = Σ_b s_lb w_b CE(z_lb, y_b) / Σ_b s_lb

    over a batch, s_lb being 1 for the examples of lane l's label fraction. So a lane's update is a mean over its own
    examples in the batch; in a batch without any it stands still, slots and decay too. CE is softmax cross-entropy for
    labels [N], the mean of K sigmoid ones for [N, K]. SGD adds decay · W to the gradient, AdamW takes lr · decay · W
    from W (Loshchilov & Hutter 2019), biases are not decayed: as `jtl.optim`. Kernels start normal with variance 1/in
    before the scores and 2/in before a ReLU, the same in all lanes of a seed on a layer.

    Args:
        lanes: see `grid`.
        fit: features and labels to learn from: x [N, D] and y [N], or [N, K] of zeros and ones; for several layers a
            list of x, with D of their own, that `lanes.layer` counts through.
        val: the same of others, to stop by and to choose the epoch by; nothing else is read.
        classes: K.
        hidden: widths of hidden layers; none is a linear head.
        batch_size: B; the last batch of an epoch has what is left.
        epochs: at most.
        patience: a lane stops when so many epochs have not raised its best validation accuracy, and when it diverges;
            what the others do is the same. The program ends when all have stopped.
        optimiser: `sgd` with momentum, or `adamw` (its 0.9 and 0.999).
        schedule: of the learning rate, `constant`, or `cosine` down to 0 at the end of `epochs`.
        weight: [N], of examples or of their classes (`heads.class_weights`).
        order: seed of the order of examples, which also depends on the epoch, and which all lanes share.
        memory: bytes that lanes may take: where there are more, they are trained group after group, by the same
            program. See `lane_bytes`; what was found takes one copy of the parameters beside it.

    Raises:
        UserError: a value out of range, features that do not fit the labels or the lanes.
    """
    xs, ys = (_list(fit[0]), _list(val[0])), (np.asarray(fit[1]), np.asarray(val[1]))
    _check_data(lanes, xs, ys, classes, weight)
    _check_how(lanes, hidden, batch_size, epochs, patience, optimiser, momentum, schedule)
    layers = np.unique(lanes.layer)  # those without lanes are left out
    dtype = jnp.promote_types(xs[0][layers[0]].dtype, np.float32)  # half precision is widened as it is used
    kept, subset = subsets(lanes, ys[0])
    targets = [jnp.asarray(one_hot(y, classes, dtype)) for y in ys]
    weight = jnp.ones(len(ys[0]), dtype) if weight is None else jnp.asarray(weight, dtype)
    there = [tuple(jnp.asarray(part[i]) for i in layers) for part in xs]
    data = program.Data(there[0], targets[0], weight, jnp.asarray(kept.T), there[1], targets[1])

    most = memory // lane_bytes(max(x.shape[1] for x in there[0]), classes, hidden, batch_size, optimiser, dtype)
    groups = _groups(lanes.layer, max(int(most), 1))
    how = program.How(ys[0].ndim == 2, batch_size, epochs, optimiser, schedule)
    found = []
    for group in groups:
        rows = np.concatenate(group)
        seeds = [lanes.seed[part] for part in group]
        net = start(seeds, [x.shape[1] for x in there[0]], classes, hidden, dtype)
        lr, decay = (jnp.asarray(values[rows], dtype) for values in (lanes.lr, lanes.decay))
        rates = program.Rates(lr, decay, jnp.asarray(subset[rows]))
        found.append(program.run(net, data, rates, how, momentum, patience, order))
    return _collect(lanes, groups, found)


def start(
    seeds: Sequence[np.ndarray], features: Sequence[int], classes: int, hidden: Sequence[int] = (), dtype=np.float32
) -> program.Net:
    """Initial values of lanes, for each layer their seeds [L_i] and its D: normal kernels, biases 0.

    What a lane gets depends on its seed, D and the widths alone, so that it is the same whatever other lanes there are.
    """
    widths = [*hidden, classes]

    def normal(seeds: np.ndarray, depth: int, fan_in: int, out: int) -> jax.Array:
        distinct, row = np.unique(seeds, return_inverse=True)
        drawn = [np.random.default_rng((seed, depth)).standard_normal((out, fan_in)) for seed in distinct]
        spread = math.sqrt((1 if depth == len(hidden) else 2) / fan_in)  # 2: a ReLU halves the variance
        return jnp.asarray((spread * np.stack(drawn)).astype(dtype)[row])

    first = [normal(part, 0, D, widths[0]) for part, D in zip(seeds, features)]
    whole = np.concatenate(seeds)
    rest = [normal(whole, depth, a, b) for depth, (a, b) in enumerate(zip(widths, widths[1:]), start=1)]
    return program.Net(tuple(first), tuple(rest), tuple(jnp.zeros((len(whole), width), dtype) for width in widths))


def lane_bytes(features: int, classes: int, hidden=(), batch_size: int = 256, optimiser='sgd', dtype=np.float32) -> int:
    """What a lane takes while it is trained: parameters, their best, gradients, slots; and its share of a batch."""
    widths = [features, *hidden, classes]
    params = sum((fan_in + 1) * out for fan_in, out in zip(widths, widths[1:]))
    copies = 5 if optimiser == 'adamw' else 4
    return np.dtype(dtype).itemsize * (copies * params + max(4 * batch_size, program.BLOCK) * sum(widths[1:]))


def _groups(layer: np.ndarray, most: int) -> list[list[np.ndarray]]:
    """Lanes in groups of `most` or little more; in each group as many of each layer, so that one program fits all.

    Where a layer's lanes do not go round, its last one is there again.
    """
    number = -(-len(layer) // most)
    parts = []
    for i in np.unique(layer):
        lanes = np.flatnonzero(layer == i)
        size = -(-len(lanes) // number)
        parts.append(np.pad(lanes, (0, number * size - len(lanes)), mode='edge').reshape(number, size))
    return [[part[g] for part in parts] for g in range(number)]


def _collect(lanes: Lanes, groups: list[list[np.ndarray]], found: list[program.Found]) -> Trained:
    """Puts the lanes of all groups in their order."""
    members, heads = [], []
    for i in range(len(groups[0])):
        members.append(np.unique(np.concatenate([group[i] for group in groups])))
        ends = [sum(map(len, group[: i + 1])) for group in groups]
        nets = [program.of_layer(f.best_net, i, end - len(g[i]), end) for f, g, end in zip(found, groups, ends)]
        keep = np.unique(np.concatenate([group[i] for group in groups]), return_index=True)[1]
        whole = jax.tree.map(lambda *parts, keep=keep: jnp.concatenate(parts)[keep], *nets)  # [L_i, out, in], …
        kernels = tuple(jnp.swapaxes(kernel, 1, 2) for kernel in whole.first + whole.rest)
        heads.append(Mlp(kernels, whole.biases) if len(kernels) > 1 else Linear(kernels[0], whole.biases[0]))
    where = np.unique(np.concatenate([np.concatenate(group) for group in groups]), return_index=True)[1]
    joined = lambda name: np.concatenate([np.asarray(getattr(f, name)) for f in found], -1)[..., where]
    curves = (joined(name) for name in ('best', 'best_epoch', 'stopped', 'accuracy', 'loss'))
    return Trained(lanes, tuple(heads), tuple(members), *curves)


def _list(x) -> list:
    return list(x) if isinstance(x, list | tuple) else [x]


def _check_data(lanes: Lanes, xs, ys, classes: int, weight) -> None:
    for part, x, y in zip(('fit', 'val'), xs, ys):
        if not all(a.ndim == 2 and len(a) == len(y) > 0 for a in x):
            shapes = ', '.join(str(a.shape) for a in x)
            raise UserError(f'lanes: {part}: expected features [N, D] and N labels, got {shapes} and {y.shape}.')
        if y.ndim == 2 and y.shape[1] != classes:
            raise UserError(f'lanes: {part}: labels {y.shape} should be [N, {classes}], a column a class.')
        if y.ndim == 1 and (y.min() < 0 or y.max() >= classes):
            raise UserError(f'lanes: {part}: labels from {y.min()} to {y.max()} should be from 0 to {classes - 1}.')
    widths = [[a.shape[1] for a in x] for x in xs]
    if widths[0] != widths[1] or ys[0].ndim != ys[1].ndim:
        raise UserError(f'lanes: fit and val differ: features of {widths[0]} and of {widths[1]}, or in their labels.')
    if not all(0 <= i < len(xs[0]) for i in lanes.layer):
        raise UserError(f'lanes: layer: {sorted(set(lanes.layer.tolist()))} given; there are {len(xs[0])}, from 0.')
    if weight is not None and (np.shape(weight) != ys[0].shape[:1] or not (np.asarray(weight) >= 0).all()):
        raise UserError(f'lanes: weight: {np.shape(weight)} should be {len(ys[0])} numbers, none below 0.')


def _check_how(lanes: Lanes, hidden, batch_size, epochs, patience, optimiser, momentum, schedule) -> None:
    for key, value, known in (('optimiser', optimiser, OPTIMISERS), ('schedule', schedule, SCHEDULES)):
        if value not in known:
            raise UserError(f'lanes: {key}: {value!r} is unknown; {nearest(value, known)}')
    for key, value in (
        ('batch_size', batch_size),
        ('epochs', epochs),
        ('patience', patience),
        *(('hidden', h) for h in hidden),
    ):
        if value < 1 or value != int(value):
            raise UserError(f'lanes: {key}: {value} should be a whole number from 1.')
    if not 0 <= momentum < 1:
        raise UserError(f'lanes: momentum: {momentum} should be at least 0 and below 1.')
    for key, fine, expected in (
        ('lr', lambda a: (a > 0) & np.isfinite(a), 'above 0, and finite'),
        ('decay', lambda a: (a >= 0) & np.isfinite(a), 'at least 0, and finite'),
        ('seed', lambda a: a >= 0, 'at least 0'),
        ('fraction', lambda a: (a > 0) & (a <= 1), 'above 0, and at most 1'),
    ):
        wrong = getattr(lanes, key)[~fine(getattr(lanes, key))]
        if len(wrong):
            raise UserError(f'lanes: {key}: {wrong[0]} should be {expected}.')
