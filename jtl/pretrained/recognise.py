"""What are these weights? Every family's name tables are tried, and the one that knows most of the names has it."""

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from jtl.errors import UserError, some
from jtl.pretrained import names
from jtl.pretrained.table import Arrays, Dialect, Translation, translate

MOST = 20_000  # tensors; the largest models here have about 2,000
WRAPPERS = (
    'module.',
    '_orig_mod.',
    'model.',
    'net.',
    'backbone.',
    'encoder.',
)  # of DataParallel, torch.compile, Lightning, …


class Recognised(NamedTuple):
    """Weights that we know.

    Attributes:
        family: `resnet`, `vit`, …
        dialect: whose names they bear.
        tensors: by these, without the prefix of a wrapper.
        translation: the tensors under our names.
        model: the `config.model` that they belong to.
        preprocess: what they expect of a picture, if nothing of their own says it; {} is what the model's file says.
        why: what speaks for it, in words.
    """

    family: str
    dialect: Dialect
    tensors: Arrays
    translation: Translation
    model: dict
    preprocess: dict
    why: str


@functools.cache
def families() -> tuple[ModuleType, ...]:
    """The files of `jtl.pretrained.names`, each with `FAMILY`, `DIALECTS` and `model`; a family may have several."""
    return tuple(importlib.import_module(f'{names.__name__}.{m.name}') for m in pkgutil.iter_modules(names.__path__))


def dialects() -> list[tuple[ModuleType, Dialect]]:
    """Every dialect, with the file that it is in."""
    return [(family, dialect) for family in families() for dialect in family.DIALECTS]


def recognise(tensors: Arrays, config: dict, uri: str) -> Recognised:
    """The family, the dialect and the model of tensors, by their names and shapes and by their `config.json`, if any.

    Raises:
        UserError: they look like nothing that we know, or like a variant that we do not build.
    """
    if len(tensors) > MOST:
        raise UserError(f'{uri}: {len(tensors):,} tensors, more than any model of jtl has.')
    family, dialect, tensors, wrapper, translation = closest(tensors)
    known = len(tensors) - len(translation.unknown)
    if 2 * known < len(tensors) or not translation.leaves:
        forms = '; '.join(f'{f.FAMILY} of {", ".join(d.name for d in f.DIALECTS)}' for f in families())
        raise UserError(
            f'{uri}: {len(tensors)} tensors that look like no model of jtl: {some(tensors)}. Known: {forms}.'
        )
    why = f'{known} of {len(tensors)} tensors have names of {family.FAMILY} in {dialect.name}'
    why += f', after {wrapper!r}' if wrapper else ''
    shapes = {path: leaf.shape for path, leaf in translation.leaves.items()}
    for path, shape in shapes.items():
        if not shape or not all(0 < n < 2**31 for n in shape):
            raise UserError(f'{uri}: {translation.origin[path]} is of shape {shape}; a part of {path} is missing.')
    try:
        model = family.model(shapes, dialect.settings(tensors, config))
        preprocess = dialect.preprocess(tensors, config)
    except UserError as e:
        raise UserError(f'{uri}: {why}, but: {e}') from e
    return Recognised(family.FAMILY, dialect, tensors, translation, model, preprocess, why)


class Closest(NamedTuple):
    """The dialect that knows the most of the names, the first of equals."""

    family: ModuleType
    dialect: Dialect
    tensors: Arrays  # without the prefix of a wrapper
    wrapper: str
    translation: Translation


def closest(tensors: Arrays) -> Closest:
    """What tensors look like most, with or without the prefixes that wrappers of a module put before names."""
    tried = [
        Closest(family, dialect, bare, wrapper, translate(bare, dialect))
        for bare, wrapper in unwrapped(tensors)
        for family, dialect in dialects()
    ]
    return min(tried, key=lambda found: len(found.translation.unknown))


def unwrapped(tensors: Arrays) -> list[tuple[Arrays, str]]:
    """The tensors as they are, then without a prefix that most of the names have, then without the next one."""
    taken, found = '', [(tensors, '')]
    for _ in range(3):
        count = {w: sum(name.startswith(w) for name in tensors) for w in WRAPPERS}
        wrapper = max(count, key=count.get)
        bare = {name.removeprefix(wrapper): x for name, x in tensors.items()}
        if 2 * count[wrapper] < len(tensors) or len(bare) < len(tensors):
            break
        tensors, taken = bare, taken + wrapper
        found.append((tensors, taken))
    return found
