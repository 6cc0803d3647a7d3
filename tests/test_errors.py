"""Suggestions, signatures as schemas, and exit statuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from jtl.errors import UserError, check_kwargs, check_type, exit_status, nearest


def section(size: int, *, rate: float = 0.1, name: str | None = None, seed: int = 0):
    pass


def anything(size: int, **kwargs):
    pass


def test_nearest_suggests_and_lists():
    assert nearest('widht', ['width', 'depth']) == "did you mean 'width'? Known: depth, width."
    assert nearest('zzz', ['width', 'depth']) == 'Known: depth, width.'
    assert nearest('x', []) == 'Known: none.'


def test_check_kwargs_takes_what_the_signature_takes():
    assert check_kwargs(section, {'size': 3, 'rate': 1, 'name': None}, 'config.x') is None
    assert check_kwargs(anything, {'size': 3, 'more': 'x'}, 'config.x') is None


@pytest.mark.parametrize(
    'fn, given, message',
    [
        (
            section,
            {'size': 3, 'raet': 1.0},
            r"unknown key config\.x\.raet: did you mean 'rate'\? Known: name, rate, size",
        ),
        (section, {}, r'missing key config\.x\.size'),
        (section, {'size': '3'}, r"config\.x\.size: '3' should be int\."),
        (section, {'size': 3, 'name': 4}, r'config\.x\.name: 4 should be str \| None'),
        (section, {'size': 3, 'seed': 4}, r'unknown key config\.x\.seed'),  # filled in by the caller
        (anything, {'size': 3, 'seed': 4}, r'unknown key config\.x\.seed'),
    ],
)
def test_check_kwargs_refuses(fn, given, message):
    with pytest.raises(UserError, match=message):
        check_kwargs(fn, given, 'config.x', ignore=('seed',))


@pytest.mark.parametrize(
    'value, kind, fits',
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        (True, int, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        (None, int, False),
        ((1, 2), tuple[int, ...], True),
        ([1, 2], tuple[int, ...], True),
        ((1, 'a'), tuple[int, ...], False),
        ('ab', tuple, False),
        ('ab', Sequence[str], False),
        ('ab', str | Sequence[float] | None, True),
        ([1, 0.5], str | Sequence[float] | None, True),
        ({'a': 1}, Mapping[str, Any], True),
        (object(), Any, True),
        (object(), 'an annotation as text', True),
    ],
)
def test_check_type(value, kind, fits):
    if fits:
        check_type('key', value, kind)
    else:
        with pytest.raises(UserError, match='^key: .* should be '):
            check_type('key', value, kind)


@pytest.mark.parametrize('error', [UserError('no such thing'), OSError(28, 'No space left on device', 'file')])
def test_exit_status_tells_without_a_traceback_unless_debug(error, capsys):
    def command():
        raise error

    assert exit_status(command, debug=False) == 2
    assert capsys.readouterr().err == f'jtl: {error}\n'
    with pytest.raises(type(error)):
        exit_status(command, debug=True)


def test_exit_status_of_what_went_well():
    assert exit_status(lambda: None, debug=False) == 0
    assert exit_status(lambda: 3, debug=False) == 3
