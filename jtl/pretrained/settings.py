"""What a `config.json` says that shapes do not show, and how far shapes that a stranger wrote can be believed.

Nothing in either is taken for granted. A key of the configuration that is missing or null says nothing.
"""

import re
from collections.abc import Iterable, Mapping

from jtl.errors import UserError, nearest

Shapes = Mapping[str, tuple[int, ...]]


def only(config: Mapping, **ours) -> None:
    """Refuses a configuration that asks for anything but `ours`, the one value that we build for each key."""
    for key, value in ours.items():
        if config.get(key) not in (None, value):
            raise UserError(f'config.json: {key}={config[key]!r} is not supported, only {value!r}.')


def chosen(config: Mapping, key: str, known: Mapping[str, str], default: str) -> str:
    """Our word for a configuration's choice; `default` is one of theirs."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise UserError(f'config.json: {key}={value!r} is not supported: {nearest(str(value), known)}')
    return known[value]


def number(config: Mapping, key: str, default: float | None, least: float, most: float = 1_000_000) -> float | None:
    """A number from `least` to `most`, a whole one if `least` is."""
    value = config.get(key)
    if value is None:
        return default
    whole = isinstance(least, int)
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not least <= value <= most:
        kind = 'a whole number' if whole else 'a number'
        raise UserError(f'config.json: {key}={value!r} should be {kind} from {least} to {most}.')
    return value if whole else float(value)


def eps(config: Mapping, key: str, default: float | None) -> float | None:
    """What a normalisation adds to the variance: above 0, and no larger than a variance is."""
    return number(config, key, default, 1e-20, 1.0)


def architecture(config: Mapping) -> str:
    """timm's name of a network, without the tag of its training; empty if it is not told."""
    return str(config.get('architecture') or '').partition('.')[0]


def check_shapes(shapes: Shapes) -> None:
    """Refuses leaves of which no network can be made: empty ones, scalars, and kernels without the axes of one."""
    for path, shape in shapes.items():
        axes = 4 if re.search(r'(conv\d*|patch)/kernel$', path) else 2 if re.search(r'fc\d/kernel$', path) else None
        if not shape or 0 in shape or len(shape) != (axes or len(shape)):
            expected = f'{axes} axes' if axes else 'at least one axis'
            raise UserError(f'{path} is of shape {shape}, expected {expected}, and no axis of length 0.')


def count(numbers: Iterable[int], what: str, first: int = 0) -> int:
    """How many there are of what is numbered from `first`, of which weights may lack a few: up to the largest number.

    A network of as many is built, so a single tensor with a large number in its name must not ask for a huge one.

    Args:
        what: for the message, `backbone/block` for instance.

    Raises:
        UserError: most are not there.
    """
    found = {number for number in numbers if number >= first}
    largest = max(found, default=first - 1)
    total = largest + 1 - first
    if total > 4 * len(found) + 4:
        raise UserError(
            f'{what}{largest} is there, but only {len(found)} of {total} up to it: this is no whole network.'
        )
    return total


def stages(shapes: Shapes) -> tuple[int, ...]:
    """The number of blocks in each stage of what is called `stage1/block0`, …

    Raises:
        UserError: most of them are missing, or all of a stage before the last.
    """
    found: dict[int, set[int]] = {}
    for path in shapes:
        if match := re.search(r'/stage(\d+)/block(\d+)/', path):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    last = count(found, 'backbone/stage', first=1)
    blocks = tuple(count(found.get(i, ()), f'backbone/stage{i}/block') for i in range(1, last + 1))
    if 0 in blocks:
        raise UserError(f'backbone/stage{last} is there, but nothing of backbone/stage{blocks.index(0) + 1}.')
    return blocks
