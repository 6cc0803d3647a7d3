"""Errors that a person can act on, and suggestions for misspelt names."""

import collections.abc
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave: a key, a path, a file, a shape.

    The message names what is wrong, what was expected and the nearest right thing. `jtl` prints it
    without a traceback and exits with status 2.
    """


def exit_status(command: Callable[[], int | None], debug: bool) -> int:
    """Runs a command: its status, or 2 after a message if a user's mistake, or the disk, stopped it; 130 after Ctrl-C.

    Args:
        debug: let the exception pass, for its traceback.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        if debug:
            raise
        print('jtl: interrupted.', file=sys.stderr)
        return 130
    except (UserError, OSError) as e:
        if debug:
            raise
        lines = str(e).split('\n')
        print('jtl: ' + '\n'.join(printable(line, len(line)) for line in lines), file=sys.stderr)
        return 2


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest of `known` to `name`, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}Known: {", ".join(map(printable, known)) or "none"}.'


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of them for a message, and how many there are: `a, b, c, … (9 in all)`; '' of none."""
    names = list(names)
    more = f', … ({len(names)} in all)' if len(names) > most else ''
    return ', '.join(printable(name, 100) for name in names[:most]) + more


def printable(text: str, most: int = 200) -> str:
    """Text that a stranger wrote, such as a tensor's name, fit for a terminal and for one line of a message.

    What moves the cursor, changes colours or turns the direction of writing is shown as its escape; of a long text the
    end is left out.
    """
    text = text if len(text) <= most else f'{text[:most]}…'
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_kwargs(fn: Callable, given: Mapping, where: str, ignore: Iterable[str] = ()) -> None:
    """Refuse keys of `given` that `fn` has no keyword argument for, required ones that are missing, and wrong types.

    Args:
        fn: the function (or class) whose signature is the schema.
        given: the keys the user wrote.
        where: how the user knows this mapping, e.g. `config.optim`.
        ignore: parameters that are filled in by the caller, which the user may not give.
    """
    parameters = inspect.signature(fn).parameters.values()
    known = {p.name: p for p in parameters if p.name not in ignore and p.kind is not p.VAR_KEYWORD}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key, value in given.items():
        if key in known:
            check_type(f'{where}.{key}', value, known[key].annotation)
        elif key in ignore or not takes_any:
            raise UserError(f'unknown key {where}.{key}: {nearest(key, known)}')
    for key, p in known.items():
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and key not in given:
            raise UserError(f'missing key {where}.{key}.')


def check_type(key: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the annotated type: an int passes for a float, a list for a tuple."""
    if not _is(value, kind):
        expected = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        expected = expected.replace('collections.abc.', '').replace('typing.', '')
        hint = f', e.g. ({value!r},)' if isinstance(value, str) and _is((value,), kind) else ''
        raise UserError(f'{key}: {value!r} should be {expected}{hint}.')


def _is(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, k) for k in args)
    kind = origin or kind
    if kind in (None, types.NoneType):
        return value is None
    if kind in (Any, inspect.Parameter.empty) or not isinstance(kind, type):  # they say nothing
        return True
    if kind in (tuple, collections.abc.Sequence):
        items = args[:1] if args[1:] in ((), (...,)) else ()
        return isinstance(value, tuple | list) and all(_is(v, k) for v in value for k in items)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)
