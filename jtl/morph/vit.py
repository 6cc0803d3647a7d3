"""A ViT of more blocks, heads and width: see `transformer`. Its blocks normalise within their branches, so a new one
whose branches are 0 is the identity, before the last normalisation."""

import numpy as np

from jtl.errors import UserError
from jtl.morph import transformer
from jtl.morph.least import not_below
from jtl.morph.operations import Layer, units, widened

GROWS = ('depth', 'heads', 'mlp_ratio', 'pre_logits', 'width')


def check(old, new) -> None:
    """See `transformer.check`; and a hidden layer, of the MLP or before the logits, is not below."""
    transformer.check(old, new)
    not_below('mlp_ratio', *_hidden(old, new), 'hidden units')
    if (old.pre_logits is None) != (new.pre_logits is None):
        raise UserError(f'config.model.pre_logits: {new.pre_logits} is not the {old.pre_logits} of the weights.')
    if old.pre_logits is not None:
        not_below('pre_logits', old.pre_logits, new.pre_logits)


def grow(leaves, fresh, old, new, noise: float, rng: np.random.Generator):
    """See `jtl.morph`."""
    stream, layers = transformer.blocks(old, new, _hidden(old, new), rng)
    for name in ('backbone', 'backbone/patch', 'backbone/norm', 'backbone/fc_norm'):  # the first has tokens, position
        layers[name] = Layer(gives=stream)
    features = np.concatenate([stream, old.width + stream]) if old.pool == 'both' else stream
    if old.pre_logits is not None:
        before, features = features, units(old.pre_logits, new.pre_logits, rng)
        layers['backbone/pre_logits'] = Layer(before, features)
    return widened(leaves, layers, noise, rng) | transformer.new_blocks(fresh, old, new), features


def _hidden(old, new) -> tuple[int, int]:
    return tuple(round(vit.mlp_ratio * vit.width) for vit in (old, new))
