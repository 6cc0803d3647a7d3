"""The training loop: one, for every method, model and data set.

fresh run:  init -> load pretrained -> prepare -> optimiser slots
resume:     restore all of it from the newest checkpoint
each step:  batch -> gradients of the trained leaves -> update; now and then log, evaluate, save
at the end: the best checkpoint by the validation metric -> test split, once
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl import checkpoint, describe, evals, metrics, optim, report, run
from jtl.config import Config, as_json, parse
from jtl.errors import UserError, nearest
from jtl.method import Method
from jtl.models import norm
from jtl.plan import Plan, make_plan
from jtl.pretrained import load as pretrained
from jtl.progress import Clock, Progress

PyTree = Any

LOWER_IS_BETTER = ('loss', 'ece')


class TrainState(NamedTuple):
    """All that a step reads and writes, on the device."""

    step: jax.Array  # updates done
    rng: jax.Array  # the run's key; step s uses fold_in(rng, s)
    params: PyTree
    state: PyTree
    opt_state: PyTree
    ema: PyTree  # of the trained leaves; empty when off


@dataclasses.dataclass
class Host:
    """The rest of what decides the future, on the host; saved with every checkpoint."""

    phase: int = 0
    best_step: int | None = None
    best_value: float | None = None
    waited: int = 0  # evaluations since the best
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)  # training metrics not logged yet
    seconds: float = 0.0  # spent so far, over all sessions


class Diverged(UserError):
    """A loss or gradient became NaN or infinite."""


class Stopped(Exception):
    """The run was asked to stop, and can be resumed."""


def train(
    config: Mapping, workdir: str | Path, *, stop: Callable[[], bool] = lambda: False, quiet: bool = False
) -> dict:
    """Trains one model, in `workdir`, and returns what `result.json` says.

    May be called as often as one likes in a process; runs that differ only in seed, rates or data share compiled
    functions. The same call again resumes a run that was cut short, and returns the result of a finished one.

    Args:
        config: see `jtl.config.Config`.
        workdir: the run's folder, made if need be.
        stop: asked after every step; True saves a checkpoint and raises `Stopped`.
        quiet: prints nothing but a progress line, and that only in runs of some seconds.

    Raises:
        UserError: something given is wrong; raised before anything is written.
        Diverged: a training metric is not finite; the last good checkpoint is kept.
    """
    workdir = Path(workdir)
    plan = make_plan(parse(config))
    record = run.record(as_json(plan.config), plan.data.fingerprint, plan.weights and plan.weights.sha256)
    run.check(workdir, record)
    if (workdir / 'result.json').exists():
        return json.loads((workdir / 'result.json').read_text())
    say = (lambda text: None) if quiet else print
    saved = checkpoint.steps(workdir / 'checkpoints')
    if saved:
        ts, host, phases = resume(plan, workdir / 'checkpoints', saved[-1])
        say(f'{workdir}: going on from step {saved[-1]} of {plan.steps}.')
    else:
        ts, phases, table = start(plan)
        host = Host()
        run.write_start(workdir, record, run.model_record(record['config'], plan.data), table)
        say(table)
    ts, host, timing = fit(plan, ts, host, phases, workdir, stop, quiet)
    return finish(plan, ts, host, timing, phases, workdir)


# The step.


@functools.lru_cache(maxsize=64)
def compile_step(method: Method, phase: optim.Phase, static: optim.Optim) -> Callable:
    """The compiled `train_step` of one phase; the learning rate and its schedule's lengths are arguments."""

    def train_step(ts: TrainState, batch: dict, rates: optim.Rates) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(ts.rng, ts.step)
        trained, frozen = optim.split(ts.params, phase)
        loss = norm.still(method.loss, optim.frozen_paths(ts.params, phase))
        grads_of = accumulate(method.grads(optim.only(loss, frozen)), static.accumulate)
        grads, state, measured = grads_of(trained, ts.state, batch, rng, ts.step)
        params, opt_state, moved = optim.update(grads, ts.opt_state, ts.params, phase, static, rates, ts.step)
        ema = optim.average(ts.ema, params, phase, static.ema, ts.step) if static.ema else ts.ema
        return TrainState(ts.step + 1, ts.rng, params, state, opt_state, ema), {**measured, **moved}

    return jax.jit(train_step, donate_argnums=0)


def accumulate(grads: Callable, parts: int) -> Callable:
    """`grads` averaged over `parts` equal pieces of the batch, one after the other; state passes along."""
    if parts == 1:
        return grads

    def accumulated(params, state, batch, rng, step):
        pieces = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)  # [B, …] -> [parts, B/parts, …]

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
def compile_init(method: Method) -> Callable:
    """Run once, so not worth optimising: without, ResNet-20 compiles in 1.4 s instead of 9."""
    return jax.jit(method.init, compiler_options={'xla_backend_optimization_level': 0})


@functools.lru_cache(maxsize=32)
def compile_predict(method: Method) -> Callable:
    return jax.jit(method.predict)


@functools.lru_cache(maxsize=64)
def compile_slots(phase: optim.Phase, static: optim.Optim) -> Callable:
    """params -> fresh `(opt_state, ema)` of a phase."""

    def slots(params: PyTree) -> tuple[PyTree, PyTree]:
        opt_state = optim.transform(phase, params, static, 0.0, 0.0).init(params)
        ema = jax.tree.map(jnp.copy, optim.split(params, phase)[0]) if static.ema else ()
        return opt_state, ema

    return jax.jit(slots)


# Start and resume.


def start(plan: Plan) -> tuple[TrainState, tuple[optim.Phase, ...], str]:
    """A fresh run: init -> load -> prepare -> optimiser. `(state, phases, the text of params.txt)`."""
    rng_init, rng_prepare, rng_train = jax.random.split(jax.random.key(plan.config.seed), 3)
    example = {name: value[:1] for name, value in next(plan.data.plain('train')).items()}
    params, state = compile_init(plan.method)(rng_init, example)
    origin = {}
    if plan.weights:
        params, state, origin = pretrained.into(params, state, plan.weights, plan.data.classes)
    params, state = plan.method.prepare(params, state, plan.data.plain('train'), rng_prepare)
    params, state = jax.device_put((params, state))
    phases = optim.make_phases(params, plan.config.rule_phases, plan.optim.decay_rules)
    ts = TrainState(jnp.int32(0), rng_train, params, state, *compile_slots(phases[0], plan.optim)(params))
    check_select(plan, ts)
    return ts, phases, describe.parameters(params, phases, origin, ts.opt_state)


def check_select(plan: Plan, ts: TrainState) -> None:
    """One validation batch through the evaluators, so that a wrong `config.select` is found now."""
    if plan.config.select and 'val' in plan.data.sizes:
        values, _ = evaluate(plan, ts, 'val', batches=1)
        known = metrics.scalars(values)
        if plan.config.select not in known:
            what = f'config.select: no validation metric {plan.config.select!r}'
            raise UserError(f'{what}; {nearest(plan.config.select, known)}')


def resume(plan: Plan, folder: Path, step: int) -> tuple[TrainState, Host, tuple[optim.Phase, ...]]:
    """All from the checkpoint: `load` and `prepare` are not done again, and `state` has the shapes it had."""
    parts, saved = checkpoint.load(folder, step)
    host = Host(**saved)
    params = jax.tree.map(jnp.asarray, parts['params'])
    phases = optim.make_phases(params, plan.config.rule_phases, plan.optim.decay_rules)
    like = jax.eval_shape(compile_slots(phases[host.phase], plan.optim), params)
    opt_state = checkpoint.restore(like[0], parts.get('opt_state', {}), str(folder))
    ema = checkpoint.restore(like[1], parts.get('ema', {}), str(folder))
    rest = jax.tree.map(jnp.asarray, (parts.get('state', {}), opt_state, ema))
    rng = jax.random.wrap_key_data(jnp.asarray(parts['loop']['rng']))
    return TrainState(jnp.int32(step), rng, params, *rest), host, phases


def save(writer: checkpoint.Writer, ts: TrainState, host: Host, step: int) -> None:
    parts = {'params': ts.params, 'state': ts.state, 'opt_state': ts.opt_state, 'ema': ts.ema, 'loop': {'rng': ts.rng}}
    keep = [] if host.best_step is None else [host.best_step]
    writer.save(step, parts, dataclasses.asdict(host), keep)


# The loop.


def fit(
    plan: Plan, ts: TrainState, host: Host, phases: tuple, workdir: Path, stop: Callable[[], bool], quiet: bool
) -> tuple[TrainState, Host, dict]:
    """Steps until the end, until patience runs out, or until asked to stop."""
    config, first = plan.config, int(ts.step)
    end = first if exhausted(host, config) else plan.steps  # a run killed after its last step has none to make
    log = metrics.Writer(workdir, first, config.tensorboard)
    clock = Clock(config.batch_size, host.seconds)
    with checkpoint.Writer(workdir / 'checkpoints') as writer, Progress(first, plan.steps, quiet) as progress:
        for step, batch in enumerate(plan.data.train(first, end), first + 1):
            phase = optim.phase_at(phases, step - 1)
            if phase != host.phase:
                ts, host.phase = enter(plan, ts, phases[phase]), phase
            ts, measured = compile_step(plan.method, phases[phase], plan.optim)(ts, batch, plan.rates)
            host.window.append(measured)
            clock.step(phase, wait_for=host.window[-2:])

            last, asked = step == plan.steps, stop()
            logging, evaluating = (last or step % n == 0 for n in (config.log_every, plan.eval_every))
            saving = last or asked or (plan.save_every and step % plan.save_every == 0)
            if logging or evaluating or saving:
                fetch(host, step)  # from here on the window is finite numbers
            if logging:
                values = {name: float(np.mean([m[name] for m in host.window])) for name in host.window[0]}
                values['examples_per_second'] = clock.rate()
                log.write(step, 'train', values)
                progress.show(values)
                host.window = []
            if evaluating and 'val' in plan.data.sizes:
                values, _ = evaluate(plan, ts, 'val')
                log.write(step, 'val', metrics.scalars(values))
                saving |= improves(host, config.select, values, step)
            last |= exhausted(host, config)
            if plan.save_every and (saving or last):
                host.seconds = clock.total()
                save(writer, ts, host, step)
            progress.step(step)
            if last:
                break
            if asked:
                writer.wait()  # what went wrong with it is told instead
                kept = 'saved' if plan.save_every else 'not saved, since config.checkpoint_every is 0'
                raise Stopped(f'stopped after step {step} of {plan.steps}, {kept}')
            clock.resume()
    speed = {'examples_per_second': clock.rate(overall=True), 'compile_seconds': clock.compiling}
    return ts, host, {'seconds': clock.total(), **speed}


def fetch(host: Host, step: int) -> None:
    """Brings the window's metrics to the host.

    Raises:
        Diverged: one of them is not finite.
    """
    host.window = [{k: float(v) for k, v in m.items()} for m in jax.device_get(host.window)]
    for before, values in zip(range(len(host.window) - 1, -1, -1), host.window):
        if bad := metrics.first_not_finite(values):
            raise Diverged(
                f'step {step - before}: training {bad} is {values[bad]}. Checkpoints of earlier steps are kept. '
                'A lower config.optim.lr, warm-up or config.optim.clip may help.'
            )


def enter(plan: Plan, ts: TrainState, phase: optim.Phase) -> TrainState:
    """The next phase: what thaws gets fresh slots, what was trained keeps its own."""
    opt_state, ema = compile_slots(phase, plan.optim)(ts.params)
    if plan.optim.ema:
        ema = jax.tree.map(lambda new, old: new if old is None else old, ema, ts.ema, is_leaf=lambda x: x is None)
        ema, _ = optim.split(optim.merge(ema, ts.params), phase)
    return ts._replace(opt_state=optim.carry(ts.opt_state, opt_state), ema=ema)


def improves(host: Host, select: str | None, values: Mapping, step: int) -> bool:
    """Whether the validation metric is the best so far, of equals the latest; counts the evaluations without a gain."""
    if select is None:
        return False
    sign = -1 if select in LOWER_IS_BETTER else 1
    value = float(values[select])
    gain = math.inf if host.best_value is None else sign * (value - host.best_value)
    if gain >= 0:
        host.best_step, host.best_value = step, value
    host.waited = 0 if gain > 0 else host.waited + 1
    return gain >= 0


def exhausted(host: Host, config: Config) -> bool:
    """Whether patience has run out."""
    return config.patience is not None and host.waited >= config.patience


def evaluate(plan: Plan, ts: TrainState, split: str, batches: int | None = None) -> tuple[dict, dict]:
    """One exact pass over a split, or over its first few batches: `(values by name, outputs on the host)`."""
    params = optim.merge(ts.ema, ts.params) if plan.optim.ema else ts.params
    predict = functools.partial(compile_predict(plan.method), params, ts.state)
    passes = lambda: itertools.islice(plan.data.plain(split), batches)
    return evals.measure(plan.config.evals, predict, passes, plan.data.classes)


def finish(plan: Plan, ts: TrainState, host: Host, timing: dict, phases: tuple, workdir: Path) -> dict:
    """Takes the selected checkpoint, reads the test split once, and writes the result and the report."""
    if plan.save_every and host.best_step not in (None, int(ts.step)):
        ts, _, _ = resume(plan, workdir / 'checkpoints', host.best_step)
    result = {}
    for split in ('val', 'test'):
        if split in plan.data.sizes:
            values, outputs = evaluate(plan, ts, split)
            values = {name: np.asarray(value).tolist() for name, value in values.items()}
            result[split] = {**values, 'majority': plan.data.majority.get(split)}
            if split == 'test':
                np.savez(workdir / 'predictions.npz', **{k: outputs[k] for k in ('index', 'label', 'logits')})
    result |= {'step': int(ts.step), 'params': describe.sizes(ts.params, phases), **timing}
    run.write_json(workdir / 'result.json', metrics.finite(result))
    if plan.config.report:
        report.write(workdir, functools.partial(plan.data.picture, 'test') if 'test' in plan.data.sizes else None)
    return result
