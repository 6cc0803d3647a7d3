"""Suggestions, signatures as schemas, and exit statuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from jtl.errors import UserError, check_kwargs, check_type, exit_status, nearest, printable, some


def section(size: int, *, rate: float = 0.1, name: str | None = None, seed: int = 0):
    pass


def anything(size: int, **kwargs):
    pass


def test_nearest_suggests_and_lists():
    assert nearest('widht', ['width', 'depth']) == "did you mean 'width'? Known: depth, width."
    assert nearest('zzz', ['width', 'depth']) == 'Known: depth, width.'
    assert nearest('x', []) == 'Known: none.'


@pytest.mark.parametrize(
    'names, most, expected',
    [
        ([], 3, ''),
        (['a', 'b', 'c'], 3, 'a, b, c'),
        (('a', 'b', 'c', 'd'), 3, 'a, b, c, … (4 in all)'),
        ({'a': 1, 'b': 2}, 1, 'a, … (2 in all)'),
        (iter('ab'), 5, 'a, b'),
        (['a\x1b[1mb', 'x' * 101], 3, r'a\x1b[1mb, ' + 'x' * 100 + '…'),
    ],
)
def test_some_names_the_first(names, most, expected):
    assert some(names, most) == expected


@pytest.mark.parametrize(
    'text, expected',
    [
        ('Öre, 日本 ×', 'Öre, 日本 ×'),
        ('\x1b]0;title\x07', r'\x1b]0;title\x07'),
        ('a\r\nb\tc', r'a\r\nb\tc'),
        ('\x9b2J', r'\x9b2J'),  # a control sequence of one byte
        ('a\u202eb', r'a\u202eb'),  # writing from right to left
        ('\udc80', r'\udc80'),
        ("it's", "it's"),
    ],
)
def test_printable_escapes_what_a_terminal_obeys(text, expected):
    assert printable(text) == expected and expected.isprintable()


def test_printable_cuts_long_texts():
    assert printable('x' * 200) == 'x' * 200
    assert printable('x' * 201) == 'x' * 200 + '…'
    assert printable('\x1b' * 9, 2) == r'\x1b\x1b…'


def test_nearest_is_printable():
    assert nearest('x\x1bz', ['x\x1by']) == r"did you mean 'x\x1by'? Known: x\x1by."


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


def test_exit_status_sends_no_control_characters_to_the_terminal(capsys):
    def command():
        raise UserError('a tensor named \x1b[2J:\n  ' + 'x' * 500)

    assert exit_status(command, debug=False) == 2
    assert capsys.readouterr().err == 'jtl: a tensor named \\x1b[2J:\n  ' + 'x' * 500 + '\n'


def test_exit_status_of_what_went_well():
    assert exit_status(lambda: None, debug=False) == 0
    assert exit_status(lambda: 3, debug=False) == 3
