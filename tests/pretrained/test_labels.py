"""Class names from configs and from files."""

import json

import pytest

from jtl.errors import UserError
from jtl.pretrained.labels import class_names, read_labels


@pytest.mark.parametrize(
    'config, expected',
    [
        ({}, ()),
        ({'id2label': {'10': 'k', **{str(i): 'abcdefghij'[i] for i in range(10)}}}, tuple('abcdefghijk')),
        ({'id2label': {'0': 'LABEL_0', '1': 'LABEL_1'}}, ()),
        ({'label_names': ['n01', 'n02'], 'label_descriptions': {'n01': 'tench'}}, ('n01', 'n02')),
        ({'pretrained_cfg': {'label_names': ['cat', 'dog']}}, ('cat', 'dog')),
        ({'label_names': {'1': 'dog', '0': 'cat'}}, ('cat', 'dog')),
        ({'id2label': {'0': 'crane', '1': 'crane'}}, ('crane', 'crane')),  # ImageNet has two of them
    ],
)
def test_class_names(config, expected):
    assert class_names(config, 'config.json') == expected


@pytest.mark.parametrize(
    'config, message',
    [
        ({'id2label': {'0': 'a', '2': 'b'}}, 'id2label: expected a name for each of 0 … 1, found 2'),
        ({'id2label': {'0': 'a', '-1': 'b'}}, 'found -1'),
        ({'id2label': {'0': ['a']}}, 'expected a list of class names'),
        ({'id2label': 7}, 'id2label: expected a list'),
        ({'label_names': ['a', None]}, 'label_names: expected a list'),
    ],
)
def test_class_names_refuses(config, message):
    with pytest.raises(UserError, match=message):
        class_names(config, 'config.json')


@pytest.mark.parametrize(
    'said',
    [
        ['cat', 'dog'],
        {'labels': ['cat', 'dog']},
        {'1': 'dog', '0': 'cat'},
        {'dog': 1, 'cat': 0},
        {'labels': {'0': 'cat', '1': 'dog'}},
    ],
)
def test_read_labels_takes_json(said, tmp_path):
    (tmp_path / 'x.json').write_text(json.dumps(said))
    assert read_labels(str(tmp_path / 'x.json')) == ('cat', 'dog')


def test_read_labels_takes_lines(tmp_path):
    (tmp_path / 'x.txt').write_bytes('\ufeffcat, house cat\r\nÖre\n\n'.encode())
    assert read_labels(str(tmp_path / 'x.txt')) == ('cat, house cat', 'Öre')


def test_read_labels_of_a_home(tmp_path, monkeypatch):
    (tmp_path / 'x.txt').write_text('cat')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert read_labels('~/x.txt') == ('cat',)
    with pytest.raises(UserError, match='~nobody-of-this-name/x'):
        read_labels('~nobody-of-this-name/x')


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('x.txt', b'', 'expected a class name a line, found none'),
        ('x.txt', b'a\n\nb\n', 'found an empty one'),
        ('x.txt', b'\xff\xfe\x00', 'not a text in UTF-8'),
        ('x.json', b'[1, 2]', 'expected a list of class names'),
        ('x.json', b'["a"', 'is not JSON'),
        ('x.json', b'{"a": 0, "b": 0}', 'found one twice'),
        ('x.json', b'{}', 'expected a list'),
        ('x.json', b'{"cat": 0, "cat": 1}', "'cat' is there twice"),
        ('x.json', rb'{"\u001b[2J": "a"}', r'found \\x1b\[2J\.'),
        ('x.json', b'3', 'holds a int, expected an object or a list'),
        ('y.json', b'', "x.json does not exist: did you mean 'y.json'"),
    ],
)
def test_read_labels_refuses(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labels(str(tmp_path / name.replace('y', 'x')))
