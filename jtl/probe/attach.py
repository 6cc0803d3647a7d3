"""A run whose backbone is frozen needs the backbone once: its batches hold cached features in place of pictures.

The loop, the step and the method are the same; the data is other (`jtl.data.Data.serve`), and the model enters at the
features (`embedding`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jtl import evals, models, optim
from jtl.errors import UserError
from jtl.models import layers as taps
from jtl.models.layers import FEATURES
from jtl.plan import Plan, example
from jtl.probe.cache import USES, Caching, Unusable, caching
from jtl.probe.features import Frozen, ensure, frozen

PyTree = Any


def check(plan: Plan) -> None:
    """Refuses a cache that is asked for where none can be.

    Raises:
        UserError: saying what of the run forbids it.
    """
    options = caching(**plan.config.cache)
    if options.views is None and options.use != 'always':
        return
    if options.use == 'never':
        raise UserError(f'config.cache.views: {options.views}, but config.cache.use is "never"; of {", ".join(USES)}.')
    if options.views and not plan.data.augment:
        raise UserError('config.cache.views: nothing is augmented (config.data.augment), so all views are the same.')
    if reason := obstacle(plan):
        raise UserError(f'config.cache: features cannot be cached: {reason}.')


def obstacle(plan: Plan) -> str | None:
    """Why this run's features cannot be computed once, if they cannot."""
    options = caching(**plan.config.cache)
    frozen_in = [optim.frozen_paths(plan.shapes[0], phase) for phase in plan.phases]
    paths = [path for path in frozen_in[0] if not path.startswith('head/')]
    moving = [path for path in paths if not all(frozen[path] for frozen in frozen_in)]
    if options.use == 'never':
        return 'config.cache.use is "never"'
    backbone = [path for path in paths if path.startswith('backbone/')]
    if not backbone:
        return 'the backbone has no parameters'
    if moving:
        return f'the backbone is trained ({moving[0]})' if moving[0] in backbone else f'{moving[0]} is trained'
    if plan.data.augment and not options.views:
        return 'training pictures are augmented at random; config.cache.views=K keeps K views of each'
    if evals.sees_inputs(plan.config.evals):
        return 'config.evals look at the pictures themselves'
    if jax.process_count() > 1:
        return 'several processes train together'
    params, state = plan.shapes
    batch, variables = example(plan.data), {'params': params, **state.get('model', {})}
    model = models.build(num_classes=len(plan.data.classes), **plan.config.model)
    if not taps.is_deterministic(model, variables, batch):
        return 'the backbone drops at random in training'
    width = jax.eval_shape(lambda v: taps.extract(model, v, batch), variables)[FEATURES]
    given = {**{key: batch[key] for key in ('label', 'mask', 'index')}, 'embedding': width}
    try:
        jax.eval_shape(plan.method.loss, params, state, given, jax.random.key(0), jnp.int32(0))
    except UserError as e:
        return str(e)
    return None


def cached(
    plan: Plan,
    params: PyTree,
    state: PyTree,
    say: Callable[[str], None],
    quiet: bool,
    pulse: Callable[[], None] = lambda: None,
) -> Plan:
    """The plan with cached features in the place of what the backbone reads, if nothing speaks against it.

    Args:
        params, state: as the run has them; the backbone in them stays as it is.
        say: is told in one line how many features were read and how many were computed.
        pulse: called now and then; what it raises ends the pass, whose rows are kept.
    """
    if obstacle(plan):
        return plan
    options = caching(**plan.config.cache)
    try:
        return _served(plan, frozen(plan, params, state), options, say, quiet, pulse)
    except Unusable as e:
        if options.use == 'always' or options.views:
            raise
        say(f'The backbone is frozen, but its features are not kept: {e}')
        return plan


def _served(plan: Plan, of: Frozen, options: Caching, say: Callable, quiet: bool, pulse: Callable) -> Plan:
    steps, batch_size, counts = plan.steps, plan.config.batch_size, []

    def kept(split: str, epoch: int | None = None) -> np.ndarray:
        where, index = plan.data.parts[split]
        if split == 'train' and steps * batch_size < len(index):  # not all of them are met
            index = np.unique([plan.data.order(step)[0] for step in range(steps)])
        how = {'epoch': epoch, 'folder': options.folder, 'say': say, 'quiet': quiet, 'pulse': pulse}
        entry, counted = ensure(of, where, index, **how)
        counts.append(counted)
        return entry.read(FEATURES)

    plain = {split: Embedding((kept(split),)) for split in plan.data.parts if split != 'train' or not plan.data.augment}
    round_of_classes = math.ceil(len(plan.data.classes) / batch_size)  # with balanced sampling, all are in the last
    epochs = 1 + max(plan.data.order(step)[1].max() for step in range(max(steps - 1 - round_of_classes, 0), steps))
    views = tuple(kept('train', epoch) for epoch in range(min(options.views or 1, epochs))) if plan.data.augment else ()
    read, computed, _ = map(sum, zip(*counts))
    say(f'The backbone is frozen: features of {read} examples come from the cache, of {computed} are computed, once.')
    return plan._replace(data=plan.data.serve(Embedding(views) if views else plain['train'], plain))


class Embedding(NamedTuple):
    """`jtl.data.pipeline.Inputs` from features on disk: epoch e has view e, and after the last the first again.

    Attributes:
        views: each [N, D], of all examples of a split of the source.
    """

    views: tuple[np.ndarray, ...]

    def __call__(self, index: np.ndarray, epoch: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if epoch is None or len(self.views) == 1:
            return {'embedding': np.asarray(self.views[0][index])}
        return {'embedding': np.stack([self.views[e % len(self.views)][i] for i, e in zip(index, epoch)])}
