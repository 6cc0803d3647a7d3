"""Paths as people write them, and JSON that nobody vouches for."""

import json
import os

import pytest

from jtl import files
from jtl.errors import UserError
from jtl.files import read_small


def test_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert files.expanded('~/x') == tmp_path / 'x' and str(files.expanded('x/~')) == 'x/~'
    with pytest.raises(UserError, match='~nobody-of-this-name/x: '):
        files.expanded('~nobody-of-this-name/x')


@pytest.mark.parametrize('value', [{}, {'a': {'b': [1, 2.5, None, 'ö']}}])
def test_parse_json_gives_the_value(value):
    text = json.dumps(value, ensure_ascii=False)
    assert files.parse_json(text.encode(), 'x') == value == files.parse_json(text.encode('utf-8-sig'), 'x')


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', 'x is empty'),
        (b'{', 'x is not JSON: Expecting property name'),
        (b'\xff', "x is not JSON: 'utf-8' codec"),
        (b'[' * 10**6, 'x is not JSON: maximum recursion depth'),
        (b'9' * 10**4, 'x is not JSON: Exceeds the limit'),
        (b'[{"a": {"b": 1, "b": 1}}]', "x is not JSON: 'b' is there twice"),
        (rb'{"\u001b[2J": 1, "\u001b[2J": 1}', r"x is not JSON: '\\x1b\[2J' is there twice"),
        (b'[1]', 'x holds a list, expected an object'),
        (b'{"a": 1} ' + b' ' * 2**10, 'x has more than the 1,000 bytes'),
    ],
)
def test_parse_json_refuses(data, message, monkeypatch):
    if message.endswith('bytes'):
        monkeypatch.setattr(files, 'MOST', 1000)
    with pytest.raises(UserError, match=message) as e:
        files.parse_json(data, 'x')
    assert str(e.value).isprintable() and len(str(e.value)) < 300


def test_parse_json_of_other_kinds():
    assert files.parse_json(b'[1]', 'x', (dict, list)) == [1]
    with pytest.raises(UserError, match='x holds a int, expected an object or a list'):
        files.parse_json(b'3', 'x', (dict, list))


def test_read_json_names_the_file(tmp_path):
    path = tmp_path / 'x.json'
    for content, message in ((None, 'no such file'), ('', 'is empty'), ('{', 'is not JSON'), ('[]', 'holds a list')):
        _ = path.write_text(content) if content is not None else None
        with pytest.raises(UserError, match=f'x.json.*{message}'):
            files.read_json(path)
    path.write_text('{"a": 1}')
    assert files.read_json(path) == {'a': 1}


def test_read_small_follows_no_link_out_of_its_folder(tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    (tmp_path / 'secret').write_text('secret')
    (folder / 'own').write_text('own')
    (folder / 'alias').symlink_to('own')
    (folder / 'vocab.txt').symlink_to('../secret')
    assert read_small(folder / 'alias', folder) == b'own' and read_small(folder / 'vocab.txt') == b'secret'
    with pytest.raises(UserError, match=r'vocab\.txt: is a link to .*/secret, outside of .*/folder'):
        read_small(folder / 'vocab.txt', folder)


def test_read_small_waits_for_no_pipe_and_reads_nothing_large(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match='pipe: no such file'):
        read_small(tmp_path / 'pipe')
    with open(tmp_path / 'large', 'wb') as f:
        f.truncate(files.MOST + 1)  # of holes
    with pytest.raises(UserError, match='large has more than the 100,000,000 bytes'):
        read_small(tmp_path / 'large')
