"""What `jtl features`, `jtl probe` and `jtl advise` share: which data, which weights, which layers."""

import argparse
import ast
import re
from collections.abc import Sequence
from typing import Any

from jtl import config
from jtl.errors import UserError, nearest
from jtl.models import layers as taps
from jtl.models.layers import FEATURES
from jtl.plan import example
from jtl.probe.features import Frozen


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """With the arguments that all of them take."""
    found = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    found.add_argument('--data', metavar='URI', required=True, help='folder:PATH, csv:PATH, npz:PATH, tfds:NAME, …')
    found.add_argument(
        '--layers', metavar='NAMES', default=FEATURES, help="'all', or names and regexes of blocks, separated by commas"
    )
    found.add_argument('--pool', choices=taps.POOLS, default='mean', help='of a block: mean (default), token, none')
    found.add_argument('--cache', metavar='DIR', help='where features are kept (default: $JTL_CACHE or ~/.cache/jtl)')
    found.add_argument(
        '--set',
        metavar='KEY=VALUE',
        action='append',
        default=[],
        help='a value of the config, e.g. preprocess.size=96, data.labels_per_class=10, model.depth=2',
    )
    found.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return found


def sections(data: str, given: Sequence[str], taken: Sequence[str] = ('cache', 'init')) -> dict[str, Any]:
    """A config from `--data` and each `--set`; of sections that are `taken`, another argument decides."""
    overrides = values(given, '--set ')
    for key in overrides:
        if key.partition('.')[0] in taken or key in ('data', 'data.name'):
            raise UserError(f'--set {key}: another argument says that.')
    return config.override({'data': {'name': data}}, overrides)


def values(given: Sequence[str], where: str) -> dict[str, Any]:
    """`['preprocess.size=96']` -> `{'preprocess.size': 96}`.

    Args:
        where: how the message begins that refuses one.
    """
    found = {}
    for item in given:
        key, equals, text = item.partition('=')
        if not equals or not key:
            raise UserError(f'{where}{item}: expected KEY=VALUE, e.g. preprocess.size=96.')
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def chosen(of: Frozen, wanted: str) -> tuple[str, ...]:
    """The layers that `--layers` means, from the input to the features.

    Raises:
        UserError: one of the names or regexes means none.
    """
    known = list(taps.shapes(of.model, of.variables, example(of.data)))
    if wanted == 'all':
        return tuple(known)
    patterns = [part.strip() for part in wanted.split(',') if part.strip()]
    for pattern in patterns:
        try:
            matches = any(re.fullmatch(pattern, name) for name in known)
        except re.error as e:
            raise UserError(f'--layers: {pattern!r} is not a regular expression: {e}.') from e
        if not matches:
            raise UserError(f'--layers: {of.where[1]} has no layer {pattern!r}; {nearest(pattern, known)}')
    if not patterns:
        raise UserError(f'--layers: names none; {nearest("", known)}')
    return tuple(name for name in known if any(re.fullmatch(pattern, name) for pattern in patterns))
