"""Rules by path: `(regex, value)`, of which the first whose regex matches a parameter's whole path decides."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jtl.errors import UserError, nearest


def pairs(rules: Any) -> bool:
    """Whether `rules` has the shape `((regex, value), …)`."""
    return isinstance(rules, tuple | list) and all(
        isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str) for rule in rules
    )


def any_matches(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the regexes matches the whole path."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def match(rules: Sequence[tuple[str, Any]], paths: Iterable[str], what: str, last: str) -> dict[str, Any]:
    """The value of each path under `rules`.

    Args:
        what: the rules, as the user knows them: `config.rules`.
        last: a rule to end with, for the message about a path that none covers.

    Raises:
        UserError: a regex is malformed or matches no path at all, or a path is covered by none.
    """
    patterns = []
    for regex, value in rules:
        try:
            patterns.append((regex, re.compile(regex), value))
        except re.error as e:
            raise UserError(f'{what}: {regex!r} is not a regular expression: {e}') from e
    paths = list(paths)
    for regex, pattern, _ in patterns:
        if not any(pattern.fullmatch(path) for path in paths):
            raise UserError(f'{what}: {regex!r} matches no parameter. {nearest(regex, _outline(paths))}')
    values = {}
    for path in paths:
        hit = next((p for p in patterns if p[1].fullmatch(path)), None)
        if hit is None:
            raise UserError(f'{what}: no rule covers {path!r}. End with {last} for what is left.')
        values[path] = hit[2]
    return values


def _outline(paths: list[str]) -> list[str]:
    """Paths short enough to print: two levels, then `.*`."""
    return sorted({'/'.join(p.split('/')[:2]) + ('/.*' if p.count('/') > 1 else '') for p in paths})
