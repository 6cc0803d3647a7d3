"""A ResNet of more channels and of more blocks a stage.

Wider: the residual stream of a stage has one g (which of the new channels is a copy of which old one) for all of its
blocks, since they add to it; within a block any will do. A projection reads one stream and gives another. The
parameter-free shortcut (option A) puts the old stream's channels into the middle of the new one's and zeros around
them, before growth and after, so it says where the copies in the middle are, and the zeros are copies of zeros.

Deeper: a block whose last BatchNorm has scale and bias 0 gives relu(0 + x) = x, since x left a relu. It learns: its
convolutions are fresh, so the scale has a gradient at once, and they have one as soon as the scale has moved.
"""

import numpy as np

from jtl.errors import UserError
from jtl.models.resnet import convolutions
from jtl.morph.least import not_below
from jtl.morph.operations import STATISTICS, Layer, below, units, widened

GROWS = ('width', 'stages', 'depth')


def check(old, new) -> None:
    """Any width and any numbers of blocks that are not below, of as many stages."""
    not_below('width', old.width, new.width)
    before, after = _stages(old), _stages(new)
    if len(before) != len(after):
        raise UserError(
            f'config.model.stages: {len(after)} stages, and the weights have {len(before)}; one more would halve the '
            'resolution and double the channels, which no weights make the identity.'
        )
    for i, (few, many) in enumerate(zip(before, after)):
        not_below(f'stages[{i}]', few, many, 'blocks')
        if many and not few:
            raise UserError(
                f'config.model.stages[{i}]: the weights have no block there, and the first changes the shape.'
            )


def grow(leaves, fresh, old, new, noise: float, rng: np.random.Generator):
    """See `jtl.morph`."""
    layers, stream = _wider(old, new, rng)
    made = widened(leaves, layers, noise, rng)
    last = len(convolutions(old.block, 1, 1))
    for i, (few, many) in enumerate(zip(_stages(old), _stages(new)), 1):
        for j in range(few, many):
            block = f'backbone/stage{i}/block{j}'
            norm = below(fresh, f'{block}/bn{last}')
            made |= below(fresh, block)
            made |= {path: np.zeros_like(x) for path, x in norm.items() if not path.startswith(STATISTICS)}
    return made, stream


def _wider(old, new, rng: np.random.Generator) -> tuple[dict[str, Layer], np.ndarray]:
    """How every layer changes, and g of the last stage's stream."""
    stream, channels = units(old.width, new.width, rng), (old.width, new.width)
    layers = {'backbone/stem/conv': Layer(gives=stream), 'backbone/stem/bn': Layer(gives=stream)}
    for i, blocks in enumerate(_stages(old)):
        widths = old.width * 2**i, new.width * 2**i
        wide = tuple(convolutions(old.block, width, 1)[-1][0] for width in widths)
        for j in range(blocks):
            name = f'backbone/stage{i + 1}/block{j}'
            before, stream, channels = stream, _stream(stream, channels, wide, old.shortcut, rng), wide
            layers[f'{name}/shortcut/conv'] = Layer(before, stream)  # if there is one
            layers[f'{name}/shortcut/bn'] = Layer(gives=stream)
            inside = [units(*widths, rng) for _ in convolutions(old.block, 1, 1)[:-1]]
            for k, (reads, gives) in enumerate(zip([before, *inside], [*inside, stream]), 1):
                layers[f'{name}/conv{k}'] = Layer(reads, gives)
                layers[f'{name}/bn{k}'] = Layer(gives=gives)
    return layers, stream


def _stream(before, channels: tuple[int, int], wide: tuple[int, int], shortcut: str, rng) -> np.ndarray:
    """g of what a block gives, by g of what it is given; each with its channels in the old and the new network."""
    if channels[0] == wide[0]:  # the block adds to what it is given
        return before
    if shortcut == 'projection':
        return units(*wide, rng)
    start, begin = ((after - given) // 2 for given, after in zip(channels, wide))  # as `pad_shortcut` has it
    padding = np.concatenate([np.arange(start), np.arange(start + channels[0], wide[0])])  # zeros in the old network
    padded = padding[units(len(padding), wide[1] - channels[1], rng)]
    return np.concatenate([padded[:begin], start + before, padded[begin:]])


def _stages(resnet) -> tuple[int, ...]:
    return tuple(resnet.stages[: resnet.depth])
