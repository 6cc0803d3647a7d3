"""Evaluators: plug-ins that look at one pass over a split and yield `(name, value)`.

An evaluator is a module with `run(seen, **options) -> Iterator[tuple[str, float | np.ndarray]]`. A split is passed
over once (`collect`), however many evaluators look at it; one that needs more than the outputs has `seen.predict` and
`seen.batches`, and one that differentiates, such as an attack, the method and what it was evaluated with.

Shapes: N examples of the split, B rows of a padded batch, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jtl import names
from jtl.errors import UserError, check_kwargs
from jtl.method import Method

Evaluators = Iterable[str | tuple[str, Mapping]]
"""Names, or `(name, options)`."""


class Seen(NamedTuple):
    """One pass over a split: what an evaluator may look at."""

    outputs: dict  # on the host, no padding: logits float32 [N, K], label int32 [N] or float [N, K], index int [N]
    classes: tuple[str, ...]  # K names
    predict: Callable[[Mapping], Mapping]  # batch -> outputs, bound to the current params and state
    batches: Callable[
        [], Iterator[Mapping]
    ]  # () -> padded batches with 'mask' [B], 0 = padding row: this process's rows
    method: Method | None = None
    params: Any = None  # with the averages in, if the run averages
    state: Any = None
    preprocess: Mapping[str, Any] = {}  # fields of `jtl.data.Preprocess`: mean, std


def measure(evaluators: Evaluators, seen: Seen) -> tuple[dict, dict]:
    """One pass over a split and what each evaluator, a file in this folder, says of it: `(values by name, outputs)`.

    Args:
        seen: without outputs, which the pass adds.
    """
    seen = seen._replace(outputs=collect(seen.predict, seen.batches()))
    values = {}
    for run, options in map(_evaluator, evaluators):
        values.update(run(seen, **options))
    return values, seen.outputs


def check(evaluators: Evaluators) -> None:
    """Refuses names and options that no evaluator has."""
    for evaluator in evaluators:
        run, options = _evaluator(evaluator)
        check_kwargs(run, options, f'config.evals: {evaluator[0]}', ignore=('seen',))


def sees_inputs(evaluators: Evaluators) -> bool:
    """Whether one of them looks at what a backbone reads, so that features of it will not do in its place."""
    modules = (names.module('jtl.evals', e if isinstance(e, str) else e[0], f'config.evals: {e!r}') for e in evaluators)
    return any(getattr(module, 'SEES_INPUTS', False) for module in modules)


def _evaluator(evaluator: str | tuple[str, Mapping]) -> tuple[Callable, dict]:
    name, options = (evaluator, {}) if isinstance(evaluator, str) else evaluator
    return names.module('jtl.evals', name, f'config.evals: {name!r}').run, dict(options)


def collect(predict: Callable, batches: Iterable[Mapping], keep: Iterable[str] = ('logits',)) -> dict:
    """Run `predict` over padded batches and concatenate the real rows on the host.

    Rows with mask 0 are dropped, so that what is computed from the result is exact on a split of any size. One
    batch is kept in flight: the device works on it while the host copies the one before.

    Args:
        predict: batch -> outputs, arrays with leading axis B (or trees of them, `{task: array}`). Where it gives
            'label', 'index' and 'mask' as well, these are taken: a process may have read but some of the rows.
        batches: padded batches; without 'mask' every row is real.
        keep: the outputs to bring to the host, as float32 (those that `predict` does not give are left out).

    Returns:
        The kept outputs and, where the batches have them, 'label' and 'index', each with leading axis N.
    """
    keep, rows, flying = tuple(keep), [], None
    for batch in batches:
        outputs = predict(batch)  # returns before the device is done
        launched = {name: outputs[name] for name in keep if name in outputs}
        if flying is not None:
            rows.append(_to_host(*flying))
        flying = {**batch, **outputs}, launched
    if flying is None:
        raise UserError('cannot evaluate: the split has no batches.')
    rows.append(_to_host(*flying))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _to_host(batch: Mapping, outputs: Mapping) -> dict:
    """The real rows of one batch, as NumPy arrays."""
    given = {name: batch[name] for name in ('label', 'index') if name in batch}
    leading = len(jax.tree.leaves((given, outputs))[0])
    real = np.asarray(batch['mask']) > 0 if 'mask' in batch else np.ones(leading, bool)
    floats = jax.tree.map(lambda x: np.asarray(x).astype(np.float32), dict(outputs))
    return jax.tree.map(lambda x: x[real], {k: np.asarray(v) for k, v in given.items()} | floats)
