"""What the blocks of ViT and BERT have in common when they grow.

Wider: the stream of tokens gets copies of its D channels, all equally many, so that LayerNorm sees the same mean and
variance. N heads of d = D/N numbers become N' ≥ N of d' ≥ d. Copies of a head share what `out` reads of them. Copies of
a number within a head would count more than once in q · k: the keys are shared among them, and the queries get the
factor √(d'/d) for the logits' 1/√d'.

Deeper: a branch whose last layer is 0 adds nothing. It learns: that layer has a gradient at once, the others have one
as soon as it has moved.

Legend: D width, N heads, d = D/N.
"""

import re

import numpy as np

from jtl.errors import UserError
from jtl.morph.least import not_below
from jtl.morph.operations import Layer, below, units

LAST = re.compile(r'.*/(attn/out|mlp/fc2)/\w+')


def check(old, new) -> None:
    """A multiple of the width, of heads neither fewer nor smaller, and not fewer blocks."""
    for key in ('width', 'heads', 'depth'):
        not_below(key, getattr(old, key), getattr(new, key))
    if new.width % old.width:
        near = sorted({max(new.width // old.width, 1) * old.width, -(-new.width // old.width) * old.width})
        raise UserError(
            f'config.model.width: {new.width} is no multiple of the {old.width} of the weights, and LayerNorm keeps '
            f'its mean and variance only if all channels have equally many copies: use {" or ".join(map(str, near))}.'
        )
    before, after = old.width // old.heads, new.width // new.heads
    if after < before:
        raise UserError(
            f'config.model.heads: {new.heads} heads of a width of {new.width} have {after} numbers each, and those of '
            f'the weights {before}, which fewer cannot stand for: use at most {new.width // before} heads, or a '
            f'width of {-(-before * new.heads // old.width) * old.width}.'
        )


def blocks(old, new, hidden: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Layer]]:
    """g of the stream [D'], and how the layers of all blocks change.

    Args:
        hidden: units of the MLP, before and after.
    """
    stream = units(old.width, new.width)
    layers = {}
    for i in range(old.depth):
        name, inside = f'backbone/block{i}', units(*hidden, rng)
        layers |= {f'{name}/{norm}': Layer(gives=stream) for norm in ('norm1', 'norm2')}
        layers[f'{name}/mlp/fc1'] = Layer(stream, inside)
        layers[f'{name}/mlp/fc2'] = Layer(inside, stream)
        layers |= _attention(f'{name}/attn', stream, old, new, rng)
    return stream, layers


def _attention(name: str, stream: np.ndarray, old, new, rng: np.random.Generator) -> dict[str, Layer]:
    small, large = old.width // old.heads, new.width // new.heads
    heads, numbers = units(old.heads, new.heads, rng), units(small, large, rng)
    every = heads[:, None] * small  # [N', 1]: where each one's old head begins
    whole = (every + numbers).reshape(-1)  # [D']: g of queries, values and what `out` reads
    copies = (every + np.arange(small)).reshape(-1)  # [N' d]: heads are copied,
    within = (np.arange(new.heads)[:, None] * small + numbers).reshape(-1)  # [D']: and keys split within each
    return {
        f'{name}/query': Layer(stream, whole, times=(large / small) ** 0.5),
        f'{name}/key': Layer(stream, copies, splits=within),
        f'{name}/value': Layer(stream, whole),
        f'{name}/out': Layer(whole, stream),
    }


def new_blocks(fresh, old, new) -> dict[str, np.ndarray]:
    """Those that follow the old ones: fresh, save that both branches end with zeros."""
    made = {}
    for i in range(old.depth, new.depth):
        for path, x in below(fresh, f'backbone/block{i}').items():
            made[path] = np.zeros_like(x) if LAST.fullmatch(path) else x
    return made
