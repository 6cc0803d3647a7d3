"""What are these weights? Every family's name tables are tried, and the one that knows most of the names has it."""

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from jtl.errors import UserError
from jtl.pretrained import names
from jtl.pretrained.table import Arrays, Dialect, Translation, some, translate

WRAPPERS = ('module.', '_orig_mod.', 'model.', 'net.', 'backbone.')  # of DataParallel, torch.compile, Lightning, …


class Recognised(NamedTuple):
    """Weights that we know.

    Attributes:
        family: `resnet`, `vit`, …
        dialect: whose names they bear.
        translation: the tensors under our names.
        model: the `config.model` that they belong to.
        preprocess: what they expect of a picture, if nothing of their own says it; {} is what the model's file says.
        why: what speaks for it, in words.
    """

    family: str
    dialect: Dialect
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
    tensors, wrapper = unwrap(tensors)
    family, dialect, translation = closest(tensors)
    known = len(tensors) - len(translation.unknown)
    if 2 * known < len(tensors) or not translation.leaves:
        forms = '; '.join(f'{f.FAMILY} of {", ".join(d.name for d in f.DIALECTS)}' for f in families())
        raise UserError(
            f'{uri}: {len(tensors)} tensors that look like no model of jtl: {some(list(tensors))}. Known: {forms}.'
        )
    shapes = {path: leaf.shape for path, leaf in translation.leaves.items()}
    try:
        model = family.model(shapes, dialect.settings(tensors, config))
        preprocess = dialect.preprocess(tensors, config)
    except UserError as e:
        raise UserError(f'{uri}: {e}') from e
    why = f'{known} of {len(tensors)} tensors have names of {family.FAMILY} in {dialect.name}'
    return Recognised(
        family.FAMILY, dialect, translation, model, preprocess, why + (f', after {wrapper!r}' if wrapper else '')
    )


def closest(tensors: Arrays) -> tuple[ModuleType, Dialect, Translation]:
    """The file and the dialect that know the most of the names, the first of equals, and what they make of them."""
    tried = [(family, dialect, translate(tensors, dialect)) for family, dialect in dialects()]
    return min(tried, key=lambda found: len(found[2].unknown))


def unwrap(tensors: Arrays) -> tuple[Arrays, str]:
    """Without the prefixes that wrappers of a module put before every name; `(tensors, the prefix)`."""
    taken = ''
    while wrapper := next((w for w in WRAPPERS if tensors and all(name.startswith(w) for name in tensors)), None):
        tensors = {name.removeprefix(wrapper): x for name, x in tensors.items()}
        taken += wrapper
    return tensors, taken
