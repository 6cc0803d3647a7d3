"""Errors that a person can act on, and suggestions for misspelt names."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping


class UserError(Exception):
    """A mistake in what the user gave: a key, a path, a file, a shape.

    The message names what is wrong, what was expected and the nearest right thing. `jtl` prints it
    without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest of `known` to `name`, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}Known: {", ".join(known) or "none"}.'


def check_kwargs(fn: Callable, given: Mapping, where: str, ignore: Iterable[str] = ()) -> None:
    """Refuse keys of `given` that `fn` has no keyword argument for, and required ones that are missing.

    Args:
        fn: the function (or class) whose signature is the schema.
        given: the keys the user wrote.
        where: how the user knows this mapping, e.g. `config.optim`.
        ignore: parameters that are filled in by the caller, which the user may not give.
    """
    parameters = inspect.signature(fn).parameters.values()
    known = {p.name: p for p in parameters if p.name not in ignore and p.kind is not p.VAR_KEYWORD}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in given:
            if key not in known:
                raise UserError(f'unknown key {where}.{key}: {nearest(key, known)}')
    for key, p in known.items():
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and key not in given:
            raise UserError(f'missing key {where}.{key}.')
