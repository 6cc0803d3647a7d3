"""A wider Conv4: more channels in each of the four convolutions, with their BatchNorms.

The features are a map flattened with its channels last, so the copies of a channel come at every position.
"""

import numpy as np

from jtl.morph.least import not_below
from jtl.morph.operations import Layer, head_layer, units, widened

GROWS = ('width',)


def check(old, new) -> None:
    """Any width that is not below."""
    not_below('width', old.width, new.width)


def grow(leaves, fresh, old, new, noise: float, rng: np.random.Generator):
    """See `jtl.morph`. Without a head nothing says how many positions there are, and nothing asks."""
    wider = [None, *(units(old.width, new.width, rng) for _ in range(4))]
    layers = {}
    for i in range(1, 5):
        layers[f'backbone/block{i}/conv'] = Layer(wider[i - 1], wider[i])
        layers[f'backbone/block{i}/bn'] = Layer(gives=wider[i])
    made, head = widened(leaves, layers, noise, rng), head_layer(leaves)
    if not head:
        return made, None
    positions = np.arange(len(leaves[f'{head}/kernel']) // old.width)[:, None]  # [H W, 1]
    return made, (positions * old.width + wider[4]).reshape(-1)  # [H W width]
