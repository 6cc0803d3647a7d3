"""The parameters that a run begins with."""

from typing import Any

import jax

from jtl.plan import Plan, example
from jtl.pretrained.into import into
from jtl.step import compile_init

PyTree = Any


def loaded(plan: Plan, rng: jax.Array) -> tuple[PyTree, PyTree, dict[str, str]]:
    """Initialised, and with pretrained weights in: `(params, state, {path: where it came from})`."""
    batch = example(plan.data)
    params, state = compile_init(plan.method, plan.layout)(rng, batch)
    if not plan.weights:
        return params, state, {}
    params, state = plan.layout.gather((params, state))
    return into(params, state, plan.weights, plan.data.classes, plan.config.model, batch)
