"""The one interface that the training loop knows: five pure functions.

Everything left of the optimiser (supervised learning, distillation, MAML, domain adaptation, …) is a `Method`.
Methods compose like optax transformations, Method -> Method.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

PyTree = Any
Batch = dict[str, Any]
"""What arrives at each step. Keys, with B examples:

`image` float32 [B, H, W, C] · `tokens`, `token_types` int32 [B, T] · `features` float32 [B, D] ·
`embedding` float32 [B, D], what a frozen backbone gives, in place of what it reads ·
`label` int32 [B], or float32 [B, K] when multi-label · `mask` float32 [B], 0 marks a padding row ·
`index` int32 [B], the example's number in its source · `weight` float32 [B] ·
nested batches `source`/`target` and `support`/`query`.
"""


def grads_of(loss: Callable) -> Callable:
    """Loss -> gradient function: `(params, state, batch, rng, step) -> (grads, state, metrics)`."""
    differentiate = jax.value_and_grad(loss, has_aux=True)

    def grads(params, state, batch, rng, step):
        (value, (state, outputs)), gradient = differentiate(params, state, batch, rng, step)
        return gradient, state, {'loss': value, **outputs.get('metrics', {})}

    return grads


@dataclasses.dataclass(frozen=True)
class Passes:
    """Batches that can be gone through as often as one likes: `iter` starts another pass."""

    start: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def as_it_is(params: PyTree, state: PyTree, batches: Iterable[Batch], rng: jax.Array) -> tuple[PyTree, PyTree]:
    """The `prepare` of a method that needs none."""
    return params, state


class Method(NamedTuple):
    """How batches become gradients. All functions are pure and can be traced, save `prepare`.

    Attributes:
        init: `(rng, batch) -> (params, state)`. `params` is what may be trained, `{'backbone': …, 'head': …}`;
            `state` is a dict of all else that changes or is carried: running statistics under `model`, a teacher,
            class weights. A method passes on the keys it does not know, so that methods compose.
        loss: `(params, state, batch, rng, step) -> (loss, (state, outputs))`, the training loss, a scalar.
            `outputs` may hold `logits`, `features` and `metrics` (a dict of scalars to log).
        predict: `(params, state, batch) -> outputs` with `logits` [B, K], deterministic.
        prepare: `(params, state, batches, rng) -> (params, state)`, once, after pretrained weights are in and before
            the optimiser is made; every iteration over `batches` is a pass over the training data without augmentation,
            whole and on the host in every process, so that all of them come to the same state. `loss` and `predict` can
            be traced before it, with the state of `init`.
        grads: turns a loss into a gradient function; replace it where the update is not the gradient of one scalar.
    """

    init: Callable
    loss: Callable
    predict: Callable
    prepare: Callable = as_it_is
    grads: Callable = grads_of
