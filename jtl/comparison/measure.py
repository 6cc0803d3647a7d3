"""What one training step of a method holds and computes, read from the compiled step itself."""

from collections.abc import Mapping
from pathlib import Path

import jax

from jtl import metrics, run
from jtl.config import parse
from jtl.errors import UserError, nearest
from jtl.optim import FROZEN
from jtl.plan import Plan, make_plan
from jtl.step import TrainState, compile_step
from jtl.train import enter, evaluate, start


def measure(values: Mapping, path: Path, metric: str) -> dict:
    """Compiles one step of a run, and writes what it needs: bytes and operations.

    A step holds what goes into it (parameters, state, optimiser slots, the batch), what comes out of it in buffers of
    its own, and the temporaries in between, activations above all:

        bytes = arguments + outputs + temporaries - outputs that take the place of arguments

    by `compiled.memory_analysis()`. Of several phases it is that which trains the most. `flops` is XLA's count, in
    which the body of a loop counts once.

    Raises:
        UserError: the method's `prepare` refuses the run, or there is no such `metric`.
    """
    plan = make_plan(parse(values))
    ts, _ = start(plan)
    check_metric(plan, ts, metric)
    phase = max(plan.phases, key=lambda phase: sum(label != FROZEN for label in phase.labels))
    if phase != plan.phases[0]:
        ts = enter(plan, ts, phase)
    batch = plan.layout.batch(next(iter(plan.data.train(0, 1, plan.share))))
    compiled = compile_step(plan.method, phase, plan.optim, plan.layout).lower(ts, batch, plan.rates).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    needs = ('argument', 'output', 'temp')
    found = {'bytes': sum(getattr(memory, f'{what}_size_in_bytes') for what in needs) - memory.alias_size_in_bytes}
    found |= {what: getattr(memory, f'{what}_size_in_bytes') for what in needs}
    found |= {'slots': sum(leaf.nbytes for leaf in jax.tree.leaves(ts.opt_state)), 'flops': cost.get('flops')}
    path.parent.mkdir(parents=True, exist_ok=True)
    run.write_json(path, found)
    return found


def check_metric(plan: Plan, ts: TrainState, metric: str) -> None:
    """One batch through the evaluators, so that a metric that is not there is found now."""
    split = 'val' if 'val' in plan.data.sizes else 'test'
    known = metrics.scalars(evaluate(plan, ts, split, batches=1)[0])
    if metric not in known:
        raise UserError(f'--metric {metric!r}: no evaluator of config.evals gives it; {nearest(metric, known)}')
