"""How much of the accuracy is left when every picture may be changed a little, in the worst way that is found.

Shapes: N examples of the split, B rows of a padded batch, K classes.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jtl.errors import UserError
from jtl.evals import Seen
from jtl.losses import sigmoid_cross_entropy, softmax_cross_entropy
from jtl.method import Method
from jtl.methods.adversarial import Threat, ascend, begin, pictures, shifted, threat

SEES_INPUTS = True


def run(
    seen: Seen,
    *,
    epsilon: float = 8 / 255,
    steps: int = 20,
    step_size: float | None = None,
    norm: str = 'linf',
    random_start: bool = True,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Yields `robust_accuracy` and `robust_loss`: of each example, the worse of its picture and the attacked picture.

    The attack is projected gradient ascent on the cross-entropy of `method.predict` (Madry et al. 2018; see
    `jtl.methods.adversarial`), a sigmoid's for each class where labels are several, and then accuracy is the share of
    decisions that are right on both pictures. What is found is an upper bound: a better attack may leave less. Costs
    `steps` gradients an example. An example's start is drawn by `seed` and its `index`, whatever batch it is in.

    Raises:
        UserError: an option out of its range, no pictures, several processes.
    """
    where = 'config.evals: robust'
    about = threat(epsilon, steps, step_size, norm, random_start, seen.preprocess, where)
    if jax.process_count() > 1:
        raise UserError(f'{where}: attacks with one process; evaluate the finished run with `jtl eval`.')
    start, climb, judge = _compiled(seen.method, about)
    right, losses = [], []
    for number, batch in enumerate(seen.batches()):
        image, real = pictures(batch, where), np.asarray(batch.get('mask', np.ones(len(batch['label'])))) > 0
        index = np.asarray(batch.get('index', number * len(real) + np.arange(len(real))), np.uint32)
        delta = start(image, index, seed)
        for _ in range(about.steps):
            delta = climb(seen.params, seen.state, batch, delta)
        found = judge(seen.params, seen.state, batch, delta)
        for kept, values in zip((right, losses), found):
            kept.append(np.asarray(values)[real])
    yield 'robust_accuracy', float(np.concatenate(right).mean(dtype=np.float64))
    yield 'robust_loss', float(np.concatenate(losses).mean(dtype=np.float64))


@functools.lru_cache(maxsize=16)
def _compiled(method: Method, about: Threat) -> tuple[Callable, Callable, Callable]:
    """`start`; `climb`, one step of the attack, which the host repeats, so that it is compiled once; and `judge`."""

    @jax.jit
    def start(image: jax.Array, index: jax.Array, seed: jax.Array) -> jax.Array:
        rngs = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(index)
        return begin(image, rngs, about)

    @jax.jit
    def climb(params, state, batch: dict, delta: jax.Array) -> jax.Array:
        total = lambda image: entropy(method.predict(params, state, {**batch, 'image': image})['logits'], batch).sum()
        return ascend(total, batch['image'], delta, about)

    @jax.jit
    def judge(params, state, batch: dict, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        clean, attacked = (
            method.predict(params, state, {**batch, 'image': image})['logits']
            for image in (batch['image'], shifted(batch['image'], delta, about))
        )
        right = decisions(clean, batch) & decisions(attacked, batch)
        return right.mean(-1, dtype=jnp.float32), jnp.maximum(entropy(clean, batch), entropy(attacked, batch))  # [B]

    return start, climb, judge


def entropy(logits: jax.Array, batch: dict) -> jax.Array:
    """Cross-entropy: [B, K] -> [B]."""
    label = batch['label']
    if label.ndim == 2:
        return sigmoid_cross_entropy(logits, label, 1.0)
    return softmax_cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]), 1.0)


def decisions(logits: jax.Array, batch: dict) -> jax.Array:
    """What is right: [B, 1], or, of several labels, [B, K]. Logits that are not finite are wrong."""
    label = batch['label']
    if label.ndim == 2:
        return ((logits > 0) == (label > 0.5)) & ~jnp.isnan(logits)
    sound = ~(jnp.isnan(logits) | jnp.isposinf(logits)).any(-1)
    return ((logits.argmax(-1) == label) & sound)[:, None]
