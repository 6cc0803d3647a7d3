"""Rules: which parameters move, and how fast.

A rule is `(regex, multiplier)`. The first rule whose regex matches a parameter's whole path decides: its learning rate
is `lr(step) · multiplier`, and `None` freezes it. Rules become labels, labels go to `optax.multi_transform`. A frozen
parameter has no gradient, no optimiser slot, no weight decay and a zero update.

Rules are static, so that compilation can use them; the rates are data, so that runs with other rates share the
compiled step. What changes over time is a list of phases, `((until_step, rules), …)`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtl import tree
from jtl.errors import UserError, nearest
from jtl.rules import match, pairs

PyTree = Any
Rules = Sequence[tuple[str, float | None]]

FROZEN = 'frozen'
DECAY_KERNELS: Rules = (('.*kernel', 1.0), ('.*', None))  # biases, norms, tokens and positions are not decayed
SCHEDULES = ('constant', 'linear', 'cosine', 'step')


class Optim(NamedTuple):
    """The static half of the optimiser: what the compiled step is made from. See `optimiser`."""

    name: str
    kwargs: tuple[tuple[str, Any], ...]
    schedule: str
    boundaries: tuple[float, ...]
    decay_rules: Rules
    clip: float | None
    accumulate: int
    ema: float | None


class Rates(NamedTuple):
    """The half that is data: scalars, traced by the compiled step."""

    lr: float  # the peak learning rate
    final: float  # the learning rate at the end, as a fraction of the peak
    warmup: float  # steps
    total: float  # steps
    weight_decay: float


class Phase(NamedTuple):
    """A stretch of training under one set of rules.

    Attributes:
        until: the number of steps done when the phase ends; None is the end of training.
        labels: a group's name for each parameter, in the order of `jax.tree.leaves(params)`; `FROZEN` for the frozen.
        groups: `(name, learning-rate multiplier, weight-decay multiplier)` of each group.
    """

    until: int | None
    labels: tuple[str, ...]
    groups: tuple[tuple[str, float, float], ...]


def optimiser(
    steps: int,
    *,
    name: str = 'adamw',
    lr: float = 1e-3,
    schedule: str = 'cosine',
    warmup: int = 0,
    final: float = 0.0,
    boundaries: Sequence[float] = (0.5, 0.75),
    weight_decay: float = 0.0,
    decay_rules: Rules = DECAY_KERNELS,
    clip: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    **kwargs,
) -> tuple[Optim, Rates]:
    """Checks the `optim` section of a config and splits it into what is compiled and what is data.

    Args:
        steps: updates in the whole run.
        name: any optax optimiser that takes a `learning_rate`: `sgd`, `adamw`, `lion`, `lamb`, …
        lr: the peak learning rate, multiplied by each rule.
        schedule: after the warm-up, `constant`, `linear` or `cosine` down to `final · lr`, or `step`: times 0.1 at
            each of `boundaries` (fractions of the run).
        warmup: steps of linear warm-up from 0.
        weight_decay: decoupled where the optimiser has a weight decay of its own (adamw, lion, lamb, …), else the
            gradient of `weight_decay/2 · |p|²` is added before the optimiser, as in SGD.
        decay_rules: rules whose multipliers scale the weight decay of a trained parameter; `None` is no decay.
        clip: the largest global norm of the trained gradients.
        accumulate: the batch is worked through in this many equal parts, whose gradients are averaged: one step is
            still one update.
        ema: decay of an exponential moving average of the trained parameters, which evaluation then uses; at update t
            the decay is `min(ema, (1 + t) / (10 + t))`, so that a short run is not dominated by its start.
        **kwargs: passed on to the optax optimiser, e.g. `momentum`, `nesterov`, `b2`.
    """
    if name not in _optimisers():
        raise UserError(f'config.optim.name: optax has no optimiser {name!r}; {nearest(name, _optimisers())}')
    signature = inspect.signature(getattr(optax, name)).parameters
    known = [key for key in signature if key not in ('learning_rate', 'weight_decay', 'mask')]
    for key in kwargs:
        if key not in known:
            options = [k for k in inspect.signature(optimiser).parameters if k not in ('steps', 'kwargs')]
            raise UserError(f'unknown key config.optim.{key}: {nearest(key, [*known, *options])}')
    if schedule not in SCHEDULES:
        raise UserError(f'config.optim.schedule: {schedule!r} is unknown; {nearest(schedule, SCHEDULES)}')
    _require(0 < lr < math.inf, 'lr', lr, 'above 0, and finite')
    _require(0 <= warmup <= steps, 'warmup', warmup, f'steps between 0 and the run’s {steps}')
    _require(0 <= weight_decay < math.inf, 'weight_decay', weight_decay, 'at least 0, and finite')
    _require(accumulate >= 1 and accumulate == int(accumulate), 'accumulate', accumulate, 'a whole number from 1')
    _require(clip is None or clip > 0, 'clip', clip, 'above 0, or None')
    _require(ema is None or 0 < ema < 1, 'ema', ema, 'between 0 and 1, or None')
    if not pairs(decay_rules):
        raise UserError(f"config.optim.decay_rules: expected (('regex', multiplier), …), got {decay_rules!r}.")
    decay_rules = tuple(map(tuple, decay_rules))
    kwargs = tuple(sorted(kwargs.items()))
    _try_once(name, kwargs)
    optim = Optim(name, kwargs, schedule, tuple(boundaries), decay_rules, clip, int(accumulate), ema)
    return optim, Rates(*map(float, (lr, final, warmup, steps, weight_decay)))


def _require(ok: bool, key: str, value: Any, expected: str) -> None:
    if not ok:
        raise UserError(f'config.optim.{key}: {value} should be {expected}.')


@functools.cache
def _try_once(name: str, kwargs: tuple) -> None:
    """One update of a scalar, since optax looks at some arguments only when it uses them."""
    try:
        tx, x = getattr(optax, name)(learning_rate=0.1, **dict(kwargs)), jnp.ones(())
        jax.eval_shape(lambda x: tx.update(x, tx.init(x), x), x)
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f'config.optim: optax.{name} does not take {dict(kwargs)}: {str(e).splitlines()[0]}') from e


@functools.cache
def _optimisers() -> list[str]:
    """Those of optax that need a learning rate and gradients, and nothing else."""

    def fits(name: str, fn: Callable) -> bool:
        parameters = inspect.signature(fn).parameters
        needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        other = name.startswith(('_', 'scale_by')) or 'linesearch' in parameters  # parts; and one that needs the loss
        return 'learning_rate' in parameters and set(needed) <= {'learning_rate'} and not other

    return [name for name, fn in inspect.getmembers(optax, inspect.isfunction) if fits(name, fn)]


# Rules -> labels.


def multipliers(rules: Rules, paths: Iterable[str], what: str) -> dict[str, float | None]:
    """The multiplier of each path: see `jtl.rules.match`."""
    for regex, multiplier in rules:
        if multiplier is not None and not 0 < multiplier < math.inf:
            raise UserError(f'{what}: multiplier {multiplier} of {regex!r} should be above 0, or None to freeze.')
    return match(rules, paths, what, last="('.*', None) to freeze, or ('.*', 1.0),")


def make_phases(params: PyTree, rules: Sequence[tuple[int | None, Rules]], decay_rules: Rules) -> tuple[Phase, ...]:
    """Labels for every phase.

    A group is the parameters that share both multipliers *and* the phase since which they have been trained, because
    optimisers keep a count a group: what thaws starts from fresh slots and a count of zero.

    Raises:
        UserError: as `jtl.rules.match`; or a phase in which everything is frozen, or phases out of order.
    """
    paths = list(tree.flatten(params))
    decays = multipliers(decay_rules, paths, 'config.optim.decay_rules')
    ends = [until for until, _ in rules]
    if ends[-1] is not None or any(e is None for e in ends[:-1]) or sorted({0, *ends[:-1]}) != [0, *ends[:-1]]:
        raise UserError(f'config.phases: they end at steps {ends}; expected rising steps, and None for the last.')
    phases = []
    since: dict[str, int] = {}
    for i, (until, phase_rules) in enumerate(rules):
        what = 'config.rules' if len(rules) == 1 else f'config.phases[{i}]'
        rate = multipliers(phase_rules, paths, what)
        since = {path: since.get(path, i) for path in paths if rate[path] is not None}
        if not since:
            raise UserError(f'{what}: every parameter is frozen, so nothing would be trained.')
        labels, groups = [], {}
        for path in paths:
            if path not in since:
                labels.append(FROZEN)
                continue
            name = f'{since[path]}: lr×{rate[path]:g} wd×{decays[path] or 0:g}'
            groups[name] = (name, float(rate[path]), float(decays[path] or 0))
            labels.append(name)
        phases.append(Phase(until, tuple(labels), tuple(groups.values())))
    return tuple(phases)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """Index of the phase that makes the update after `step` updates."""
    return next(i for i, phase in enumerate(phases) if phase.until is None or step < phase.until)


def layer_decay(layers: Sequence[str], decay: float, top: float = 1.0) -> list[tuple[str, float]]:
    """Rules for layer-wise learning-rate decay: `top · decay^k` for the k-th regex from the end.

    ULMFiT (Howard and Ruder 2018) and BEiT (Bao et al. 2022). For a ViT of 12 blocks:
    `layer_decay(['backbone/(patch|class_token|position).*', *[f'backbone/block{i}/.*' for i in range(12)],
    '(backbone/norm|head)/.*'], 0.75)`.
    """
    return [(regex, top * decay ** (len(layers) - 1 - k)) for k, regex in enumerate(layers)]


# Labels -> trees. Trained and frozen halves have the shape of the whole, with None in the other's places.


def label_tree(phase: Phase, params: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(params), phase.labels)


def frozen_paths(params: PyTree, phase: Phase) -> dict[str, bool]:
    """Whether each parameter is frozen, by path."""
    return {path: label == FROZEN for path, label in zip(tree.flatten(params), phase.labels)}


def split(params: PyTree, phase: Phase) -> tuple[PyTree, PyTree]:
    """`(trained, frozen)`."""
    labels = label_tree(phase, params)
    trained = jax.tree.map(lambda label, p: None if label == FROZEN else p, labels, params)
    frozen = jax.tree.map(lambda label, p: p if label == FROZEN else None, labels, params)
    return trained, frozen


def merge(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `split`."""
    return jax.tree.map(lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda x: x is None)


def only(loss: Callable, frozen: PyTree) -> Callable:
    """`loss` as a function of the trained leaves alone: frozen ones are constants, for which no gradient exists."""
    return lambda trained, *args: loss(merge(trained, frozen), *args)


def fill(grads: PyTree, params: PyTree) -> PyTree:
    """Zeros in the places of frozen leaves, so that the tree is whole; compiled away, since nothing reads them."""
    return merge(grads, jax.tree.map(jnp.zeros_like, params))


# The update.


def rate(step: jax.Array, optim: Optim, rates: Rates) -> jax.Array:
    """The learning rate of the update after `step` updates: linear warm-up, then the schedule."""
    x = (step - rates.warmup) / jnp.maximum(rates.total - rates.warmup, 1)  # 0 … 1 after the warm-up
    x = jnp.clip(x, 0.0, 1.0)
    falling = {
        'constant': lambda: jnp.ones_like(x),
        'linear': lambda: rates.final + (1 - rates.final) * (1 - x),
        'cosine': lambda: rates.final + (1 - rates.final) * 0.5 * (1 + jnp.cos(jnp.pi * x)),
        'step': lambda: 0.1 ** sum((step >= b * rates.total).astype(jnp.float32) for b in optim.boundaries),
    }[optim.schedule]()
    rising = jnp.minimum(1.0, (step + 1) / jnp.maximum(rates.warmup, 1))
    return rates.lr * falling * rising


def transform(phase: Phase, params: PyTree, optim: Optim, lr: Any, weight_decay: Any) -> optax.GradientTransformation:
    """One `optax.multi_transform`: an optimiser a group, zero updates for the frozen.

    `lr` and `weight_decay` may be traced: the state does not depend on them.
    """
    make = getattr(optax, optim.name)
    has_decay = 'weight_decay' in inspect.signature(make).parameters

    def group(multiplier: float, decay: float) -> optax.GradientTransformation:
        kwargs = dict(optim.kwargs)
        if has_decay:
            return make(lr * multiplier, weight_decay=weight_decay * decay, **kwargs)
        return optax.chain(optax.add_decayed_weights(weight_decay * decay), make(lr * multiplier, **kwargs))

    groups = {name: group(multiplier, decay) for name, multiplier, decay in phase.groups}
    return optax.multi_transform({FROZEN: optax.set_to_zero(), **groups}, label_tree(phase, params))


def update(grads, opt_state, params, phase: Phase, optim: Optim, rates: Rates, step) -> tuple[PyTree, PyTree, dict]:
    """Gradients of the trained leaves -> `(params, opt_state, metrics)`; frozen leaves pass through untouched."""
    norm = global_norm(grads)  # of the trained leaves alone: frozen ones have no gradient
    if optim.clip is not None:
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, optim.clip / (norm + 1e-12)), grads)
    lr = rate(step, optim, rates)
    tx = transform(phase, params, optim, lr, rates.weight_decay)
    updates, opt_state = tx.update(fill(grads, params), opt_state, params)
    moved = optax.apply_updates(params, updates)
    trained, _ = split(moved, phase)
    _, frozen = split(params, phase)  # not params + 0, which would turn -0.0 into 0.0
    return merge(trained, frozen), opt_state, {'grad_norm': norm, 'lr': lr}


def global_norm(grads: PyTree) -> jax.Array:
    """√ Σ g², over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))


def average(ema: PyTree, params: PyTree, phase: Phase, decay: float, step: jax.Array) -> PyTree:
    """Exponential moving average of the trained leaves (None elsewhere); see `optimiser`."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    trained, _ = split(params, phase)
    return jax.tree.map(lambda a, p: a + (1 - d) * (p - a), ema, trained)


def carry(opt_state: PyTree, fresh: PyTree) -> PyTree:
    """The optimiser state at a phase's start: leaves trained before keep their slots, thawed ones get `fresh` ones.

    Both states are `multi_transform`'s, a dict of groups. A slot is known by the phase since which its group has been
    trained and by its path inside the group, so a parameter keeps its slots when its multiplier changes.
    """

    def slots(state):
        for group, inner in state.inner_states.items():
            since = group.split(':')[0]
            for path, leaf in tree.flatten(inner).items():
                yield (since, path), leaf

    old = dict(slots(opt_state))
    groups = {}
    for group, inner in fresh.inner_states.items():
        since = group.split(':')[0]
        # copies, since one old count may go to several groups, and a buffer can be donated but once
        groups[group] = tree.map_paths(lambda path, leaf, since=since: jnp.copy(old.get((since, path), leaf)), inner)
    return fresh._replace(inner_states=groups)
