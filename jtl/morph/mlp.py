"""A wider and deeper MLP: new layers behind the old ones are the identity, then any layer gets more units.

What leaves a relu is at least 0, and relu(x · 1 + 0) = x there.
"""

import numpy as np

from jtl.errors import UserError
from jtl.morph.least import not_below
from jtl.morph.operations import Layer, deepen, units, widened

GROWS = ('hidden',)


def check(old, new) -> None:
    """Layers may be wider, and more may follow, each at least as wide as the last of the weights."""
    not_below('hidden', len(old.hidden), len(new.hidden), 'layers')
    if new.hidden and not old.hidden:
        raise UserError(
            'config.model.hidden: the weights have no hidden layer, and relu(x) = x only where x is at least 0, which '
            'features as they come need not be.'
        )
    for i, (before, after) in enumerate(zip(_deep(old, new), new.hidden)):
        not_below(f'hidden[{i}]', before, after)


def grow(leaves, fresh, old, new, noise: float, rng: np.random.Generator):
    """See `jtl.morph`."""
    if not new.hidden:
        return dict(leaves), None
    deep = dict(leaves)
    for i in range(len(old.hidden), len(new.hidden)):
        deep |= {f'backbone/fc{i + 1}/{kind}': x for kind, x in deepen(old.hidden[-1]).items()}
    wider = [None, *(units(before, after, rng) for before, after in zip(_deep(old, new), new.hidden))]
    layers = {f'backbone/fc{i}': Layer(wider[i - 1], wider[i]) for i in range(1, len(wider))}
    return widened(deep, layers, noise, rng), wider[-1]


def _deep(old, new) -> tuple[int, ...]:
    """The widths once the identities are there."""
    return (*old.hidden, *old.hidden[-1:] * (len(new.hidden) - len(old.hidden)))
