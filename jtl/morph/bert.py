"""A BERT of more blocks, heads and width (see `transformer`), of more words and positions.

Its blocks end with a LayerNorm, z ↦ norm(z + mlp(z)), so zero branches alone are no identity: what the block before
gives is s · ẑ + b, and its variance is not that of ẑ. So the last block of the weights gives ẑ (scale 1, bias 0), which
norms leave as it is, and s and b move to the end of the last new block. Exact up to eps / variance.
"""

import numpy as np

from jtl.errors import UserError
from jtl.morph import transformer
from jtl.morph.least import not_below
from jtl.morph.operations import Layer, widened

GROWS = ('depth', 'heads', 'mlp', 'positions', 'types', 'vocab', 'width')
TABLES = {'word': 'vocab', 'position': 'positions', 'token_type': 'types'}
EPS = 1e-6  # the most at which a norm of a norm is the norm, to 1e-5


def check(old, new) -> None:
    """See `transformer.check`; a hidden layer and tables are not below; an eps that a second norm does not notice."""
    transformer.check(old, new)
    not_below('mlp', *_hidden(old, new), 'hidden units')
    for key in TABLES.values():
        not_below(key, getattr(old, key), getattr(new, key))
    if new.depth > old.depth and old.eps > EPS:
        raise UserError(
            f'config.model.depth: {new.depth} blocks, and the weights have {old.depth}: a new one normalises again '
            f'what the last has normalised, which with eps {old.eps} changes it; growth needs at most {EPS}.'
        )


def grow(leaves, fresh, old, new, noise: float, rng: np.random.Generator):
    """See `jtl.morph`. New rows of the tables are fresh; none was asked for before."""
    stream, layers = transformer.blocks(old, new, _hidden(old, new), rng)
    for name in ('norm', *TABLES):
        layers[f'backbone/{name}'] = Layer(gives=stream)
    layers['backbone/pooler'] = Layer(stream, stream)
    made = widened(leaves, layers, noise, rng) | transformer.new_blocks(fresh, old, new)
    for name, key in TABLES.items():
        path = f'backbone/{name}/embedding'
        made[path] = np.concatenate([made[path], fresh[path][getattr(old, key) :]])
    if new.depth > old.depth:
        made |= _moved(made, f'backbone/block{old.depth - 1}/norm2', f'backbone/block{new.depth - 1}/norm2')
    return made, stream


def _moved(leaves, last: str, end: str) -> dict[str, np.ndarray]:
    """Scale and bias from the last old norm to the very last; the new norms in between are as initialised, 1 and 0."""
    plain = {'scale': np.ones_like, 'bias': np.zeros_like}
    kept = {f'{end}/{kind}': leaves[f'{last}/{kind}'] for kind in plain}
    return {f'{last}/{kind}': make(leaves[f'{last}/{kind}']) for kind, make in plain.items()} | kept


def _hidden(old, new) -> tuple[int, int]:
    return tuple(bert.mlp or 4 * bert.width for bert in (old, new))
