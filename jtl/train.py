"""The training loop: one, for every method, model and data set.

fresh run:  init -> load pretrained -> prepare -> optimiser slots
resume:     restore all of it from the newest checkpoint
each step:  batch -> gradients of the trained leaves -> update; now and then log, evaluate, save
at the end: the best checkpoint by the validation metric -> test split, once
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtl import checkpoint, describe, evals, hosts, metrics, optim, report, run
from jtl.config import Config, as_json, parse
from jtl.errors import UserError, check_type, nearest
from jtl.method import Passes
from jtl.plan import Plan, make_plan, normalisation
from jtl.probe import attach
from jtl.progress import Clock, Progress
from jtl.sharding import Layout
from jtl.start import loaded
from jtl.step import TrainState, compile_predict, compile_slots, compile_step

PyTree = Any


@dataclasses.dataclass
class Host:
    """The rest of what decides the future, on the host; saved with every checkpoint."""

    run: str = ''  # what it is an account of: `jtl.run.identity`
    phase: int = 0
    best: list[list] = dataclasses.field(default_factory=list)  # [step, validation value], the best first
    waited: int = 0  # evaluations since the best
    pending: bool = False  # the evaluation after this step is still to be made
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)  # training metrics not logged yet
    seconds: float = 0.0  # spent so far, over all sessions

    @property
    def best_step(self) -> int | None:
        return self.best[0][0] if self.best else None


class Diverged(UserError):
    """A loss or gradient became NaN or infinite."""


class Stopped(Exception):
    """The run was asked to stop, and can be resumed."""


def train(
    config: Mapping, workdir: str | Path, *, stop: Callable[[], bool] = lambda: False, quiet: bool = False
) -> dict:
    """Trains one model, in `workdir`, and returns what `result.json` says.

    May be called as often as one likes in a process; runs that differ only in seed, rates or data share compiled
    functions. The same call again resumes a run that was cut short, and returns the result of a finished one. When
    several processes train together, all of them make the same call; the first reads and writes `workdir`.

    Args:
        config: see `jtl.config.Config`.
        workdir: the run's folder, made if need be.
        stop: asked after every step and every batch of an evaluation; True saves a checkpoint and raises `Stopped`.
        quiet: prints nothing but a progress line, and that only in runs of some seconds.

    Raises:
        UserError: something given is wrong; raised before anything is written.
        Diverged: a training metric is not finite; the last good checkpoint is kept.
    """
    workdir = Path(workdir)
    plan = make_plan(parse(config))
    attach.check(plan)
    weights, files = (plan.weights.sha256, plan.weights.files) if plan.weights else (None, ())
    record = run.record(as_json(plan.config), plan.data.fingerprint, weights, files)
    hosts.agreed('The config, or the data or weights behind it,', {k: record[k] for k in ('config', 'data', 'weights')})
    say = (lambda text: None) if quiet or not hosts.is_first() else print
    with contextlib.ExitStack() as held:
        result = hosts.told(lambda: claim(plan, workdir, record, held))
        if result is None:
            asked = hosts.asked_anywhere(stop)
            ts, host = begin(plan, workdir, record, say)
            plan = attach.cached(plan, ts.params, ts.state, say, quiet, functools.partial(end_if, asked))
            ts, host, timing = fit(plan, ts, host, workdir, asked, quiet)
            result = finish(plan, ts, host, timing, workdir, asked)
        if hosts.is_first():
            write_report(plan, workdir)
    return result


def end_if(asked: Callable[[], bool]) -> None:
    if asked():
        raise Stopped('stopped while features were computed; those that were are kept')


def claim(plan: Plan, workdir: Path, record: dict, held: contextlib.ExitStack) -> dict | None:
    """The result of a finished run; else the folder is this process's alone until `held` closes."""
    run.check(workdir, record)
    if (result := run.result(workdir)) is None:
        held.enter_context(run.lock(workdir))
        run.check(workdir, record)  # again: whoever had the lock may have ended just now
        result = run.result(workdir)
    return result


def write_report(plan: Plan, workdir: Path) -> None:
    """The page of a finished run, unless it is there."""
    if plan.config.report and not (workdir / 'report.html').exists():
        report.write(workdir, functools.partial(plan.data.picture, 'test') if 'test' in plan.data.sizes else None)


# Start and resume.


def begin(plan: Plan, workdir: Path, record: dict, say: Callable[[str], None]) -> tuple[TrainState, Host]:
    """The state to go on from: the newest whole checkpoint's, or a fresh one."""
    saved = hosts.told(lambda: checkpoint.newest(workdir / 'checkpoints'))
    if saved:
        step, parts, progress, damaged = saved
        for text in damaged if hosts.is_first() else ():
            print(f'{text} Going on from the one before it.')
        ts, host = resume(plan, step, parts, progress, run.identity(record), str(workdir / 'checkpoints'))
        say(f'{workdir}: going on from step {step} of {plan.steps}.')
        others = [best for best, _ in host.best if best != step]
        lost = hosts.told(lambda: checkpoint.damaged(workdir / 'checkpoints', others))
        host.best = [pair for pair in host.best if pair[0] not in lost]
        for text in lost.values() if hosts.is_first() else ():
            print(f'{text} It was the best by validation; now the best of the others will be taken.')
        if hosts.is_first() and (note := run.note_change(workdir, record)):
            print(note)
    else:
        ts, table = start(plan)
        host = Host(run.identity(record))
        if hosts.is_first():
            tokenizer = plan.weights.tokenizer if plan.weights else {}
            run.write_start(workdir, record, run.model_record(record['config'], plan.data), table, tokenizer)
        say(table)
    if plan.layout.mesh:
        say(describe.devices(ts, plan.layout.mesh.size))
    return ts, host


def start(plan: Plan) -> tuple[TrainState, str]:
    """A fresh run: init -> load -> prepare -> optimiser. `(state, the text of params.txt)`."""
    rng_init, rng_prepare, rng_train = jax.random.split(jax.random.key(plan.config.seed), 3)
    params, state, origin = loaded(plan, rng_init)
    params, state = plan.method.prepare(params, state, Passes(lambda: plan.data.plain('train')), rng_prepare)
    step, rng, params, state = plan.layout.place((jnp.int32(0), rng_train, params, state))
    slots = compile_slots(plan.phases[0], plan.optim, plan.layout)(params)
    ts = TrainState(step, rng, params, state, *slots)
    check_select(plan, ts)
    return ts, describe.parameters(params, state.get('model', {}), plan.phases, origin, ts.opt_state)


def check_select(plan: Plan, ts: TrainState) -> None:
    """One validation batch through the evaluators, so that a wrong `config.select` is found now."""
    if plan.config.select and 'val' in plan.data.sizes:
        values, _ = evaluate(plan, ts, 'val', batches=1)
        known = metrics.scalars(values)
        if plan.config.select not in known:
            what = f'config.select: no validation metric {plan.config.select!r}'
            raise UserError(f'{what}; {nearest(plan.config.select, known)}')


def resume(
    plan: Plan, step: int, parts: dict[str, PyTree], progress: dict, identity: str, what: str
) -> tuple[TrainState, Host]:
    """All from a checkpoint: `load` and `prepare` are not done again, and `state` has the shapes it had.

    Raises:
        UserError: it is of another model, optimiser, version or run.
    """
    host = read_host(progress, len(plan.phases), f'{what}: the checkpoint of step {step}')
    slots, state = compile_slots(plan.phases[host.phase], plan.optim, plan.layout), parts.get('state', {})
    params = checkpoint.restore(plan.shapes[0], parts.get('params', {}), what)
    checkpoint.restore(plan.shapes[1].get('model', {}), state.get('model', {}), what)
    like = slots.eval_shape(params)
    opt_state = checkpoint.restore(like[0], parts.get('opt_state', {}), what)
    ema = checkpoint.restore(like[1], parts.get('ema', {}), what)
    loop = checkpoint.restore({'rng': jax.eval_shape(jax.random.key, 0)}, parts.get('loop', {}), what)
    if host.run != identity:
        raise UserError(f'{what}: the checkpoint of step {step} is of a run with another config, data or weights.')
    return plan.layout.place(TrainState(jnp.int32(step), loop['rng'], params, state, opt_state, ema)), host


def read_host(progress: dict, phases: int, what: str) -> Host:
    """The host's account as it was saved; a checkpoint is untrusted.

    Raises:
        UserError: it is not what this version of jtl writes.
    """
    numbers = lambda values: all(type(value) in (int, float) for value in values)
    try:
        host = Host(**progress)
        for field in dataclasses.fields(Host):
            check_type(field.name, progress[field.name], field.type)
        fine = 0 <= host.phase < phases and all(type(step) is int and numbers([value]) for step, value in host.best)
        fine &= all(numbers(row.values()) and row.keys() == host.window[0].keys() for row in host.window)
    except (TypeError, ValueError, KeyError, AttributeError, UserError) as e:
        raise UserError(f'{what} is of another version of jtl: progress.json: {e}') from e
    if not fine:
        raise UserError(f'{what} is of another version of jtl: progress.json: {progress}')
    return host


def save(writer: checkpoint.Writer, layout: Layout, ts: TrainState, host: Host, step: int) -> None:
    parts = {'params': ts.params, 'state': ts.state, 'opt_state': ts.opt_state, 'ema': ts.ema, 'loop': {'rng': ts.rng}}
    writer.save(step, layout.gather(parts), dataclasses.asdict(host), best=[step for step, _ in host.best])


# The loop.


def fit(
    plan: Plan, ts: TrainState, host: Host, workdir: Path, asked: Callable[[], bool], quiet: bool
) -> tuple[TrainState, Host, dict]:
    """Steps until the end, until patience runs out, or until asked to stop."""
    config, phases, first = plan.config, plan.phases, int(ts.step)
    folder = workdir if hosts.is_first() else None
    log = metrics.Writer(folder, first, 'val' if host.pending else None, config.tensorboard)
    clock = Clock(config.batch_size, host.seconds)
    with (
        checkpoint.Writer(folder and folder / 'checkpoints', config.keep_last) as writer,
        Progress(first, plan.steps, quiet, silent=folder is None) as progress,
    ):

        def look(step: int, saving: bool, stopping: bool) -> bool:
            """Evaluates and saves what is due after `step`; whether the run ends with it."""
            if host.pending and not stopping:
                values, _ = evaluate(plan, ts, 'val', asked)
                stopping = values is None
                if values is not None:
                    host.pending = False
                    log.write(step, 'val', metrics.scalars(values))
                    saving |= improves(host, config, values, step)
            last = not host.pending and (step == plan.steps or exhausted(host, config))
            if plan.save_every and (saving or stopping or last):
                host.seconds = clock.total()
                save(writer, plan.layout, ts, host, step)
            if stopping and not last:
                writer.wait()  # what went wrong with it is told instead
                kept = 'saved' if plan.save_every else 'not saved, since config.checkpoint_every is 0'
                raise Stopped(f'stopped after step {step} of {plan.steps}, {kept}')
            return last

        ended = first == plan.steps or exhausted(host, config)  # killed after its last step
        if host.pending:  # stopped in the middle of an evaluation, which comes before the next step
            ended = look(first, saving=True, stopping=asked())
        end = first if ended else plan.steps
        for step, batch in enumerate(plan.data.train(first, end, plan.share), first + 1):
            phase = optim.phase_at(phases, step - 1)
            if phase != host.phase:
                ts, host.phase = enter(plan, ts, phases[phase]), phase
            update = compile_step(plan.method, phases[phase], plan.optim, plan.layout)
            ts, measured = update(ts, plan.layout.batch(batch), plan.rates)
            host.window.append(measured)
            clock.step(phase, wait_for=host.window[-2:])

            stopping = asked()
            logging, evaluating = (step == plan.steps or step % n == 0 for n in (config.log_every, plan.eval_every))
            saving = bool(plan.save_every) and step % plan.save_every == 0
            host.pending = evaluating and 'val' in plan.data.sizes
            if logging or evaluating or saving or stopping:
                fetch(host, step)  # from here on the window is finite numbers
                clock.caught_up()
            if logging:
                values = {name: float(np.mean([m[name] for m in host.window])) for name in host.window[0]}
                values['examples_per_second'] = clock.rate()
                log.write(step, 'train', values)
                progress.show(values)
                host.window = []
            progress.step(step)
            if look(step, saving, stopping):
                break
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
    opt_state, ema = compile_slots(phase, plan.optim, plan.layout)(ts.params)
    if plan.optim.ema:
        ema = jax.tree.map(lambda new, old: new if old is None else old, ema, ts.ema, is_leaf=lambda x: x is None)
        ema, _ = optim.split(optim.merge(ema, ts.params), phase)
    return ts._replace(opt_state=optim.carry(ts.opt_state, opt_state), ema=ema)


def improves(host: Host, config: Config, values: Mapping, step: int) -> bool:
    """Whether the validation metric is among the `keep_best` best so far; counts evaluations since the best."""
    if config.select is None:
        return False
    sign = 1 if config.select in metrics.LOWER_IS_BETTER else -1
    value = float(values[config.select])
    gain = not math.isnan(value) and (not host.best or sign * value < sign * host.best[0][1])
    host.waited = 0 if gain else host.waited + 1
    if math.isnan(value):
        return False
    ranked = sorted([[step, value], *host.best], key=lambda b: sign * b[1])  # of equals the latest first
    host.best = ranked[: config.keep_best]
    return [step, value] in host.best


def exhausted(host: Host, config: Config) -> bool:
    """Whether patience has run out."""
    return config.patience is not None and host.waited >= config.patience


def evaluate(
    plan: Plan, ts: TrainState, split: str, asked: Callable[[], bool] | None = None, batches: int | None = None
) -> tuple[dict | None, dict]:
    """One exact pass over a split, or over its first few batches: `(values by name, outputs on the host)`.

    Of a pass during which the run is asked to stop, the values are None.
    """
    params = optim.merge(ts.ema, ts.params) if plan.optim.ema else ts.params
    compiled = compile_predict(plan.method, plan.layout)
    predict = lambda batch: compiled(params, ts.state, plan.layout.batch(batch))

    def passes() -> Iterator[dict]:
        for batch in itertools.islice(plan.data.plain(split, plan.share), batches):
            if asked is not None and asked():
                raise _Interrupted
            yield batch

    try:
        known = normalisation(plan.data.preprocess)
        seen = evals.Seen({}, plan.data.classes, predict, passes, plan.method, params, ts.state, known)
        return evals.measure(plan.config.evals, seen)
    except _Interrupted:
        return None, {}


class _Interrupted(Exception):
    pass


def finish(plan: Plan, ts: TrainState, host: Host, timing: dict, workdir: Path, asked: Callable[[], bool]) -> dict:
    """Takes the selected checkpoint, reads the test split once, and writes the result."""
    what, last = str(workdir / 'checkpoints'), int(ts.step)
    while plan.save_every and host.best_step not in (None, last):
        try:
            saved = hosts.told(lambda: checkpoint.load(Path(what), host.best_step))
        except checkpoint.Damaged as e:
            print(f'{e} It is the best by validation; the next best is taken, or the last.')
            host.best.pop(0)
            continue
        ts, _ = resume(plan, host.best_step, *saved, host.run, what)
        break
    result = {}
    for split in ('val', 'test'):
        if split in plan.data.sizes:
            values, outputs = evaluate(plan, ts, split, asked)
            if values is None:
                raise Stopped('stopped after the last step, before the end of the final evaluation')
            values = {name: np.asarray(value).tolist() for name, value in values.items()}
            result[split] = {**values, 'majority': plan.data.majority.get(split)}
            if split == 'test' and hosts.is_first():
                np.savez(workdir / 'predictions.npz', **{k: outputs[k] for k in ('index', 'label', 'logits')})
    result |= {'step': int(ts.step), 'params': describe.sizes(ts.params, plan.phases), **timing}
    if hosts.is_first():
        run.write_json(workdir / 'result.json', metrics.finite(result))
    return result
