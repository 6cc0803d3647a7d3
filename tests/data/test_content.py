"""A hash of all that data is read from."""

import os

import numpy as np
import pytest

from jtl.data.content import content, examples
from jtl.errors import UserError


def made(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in files]


def test_content_depends_on_names_and_bytes_but_not_on_the_place_or_the_order(tmp_path):
    files = {'a/1': b'one', 'b/2': b'two'}
    one, two = made(tmp_path / 'x', files), made(tmp_path / 'elsewhere/y', files)
    assert content(one) == content(two) == content(one[::-1])
    assert content(made(tmp_path / 'z', {'a/1': b'one', 'b/3': b'two'})) != content(one)
    assert content(made(tmp_path / 'w', {'a/1': b'one', 'b/2': b'twO'})) != content(one)
    assert content(made(tmp_path / 'v', {'a/1': b'onet', 'b/2': b'wo'})) != content(one)


def test_content_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    files = made(tmp_path / 'x', {'a': b'one', 'b': b'two'})
    first, reads = content(files, tmp_path / 'memory'), []
    monkeypatch.setattr('jtl.data.content._read', lambda files: reads.append(files) or 64 * '0')
    assert content(files, tmp_path / 'memory') == first and not reads
    stat = os.stat(files[0])
    made(tmp_path / 'x', {'a': b'onE'})
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time of change
    assert content(files, tmp_path / 'memory') == 64 * '0' and len(reads) == 1


def test_content_does_not_believe_a_broken_memory(tmp_path):
    files = made(tmp_path / 'x', {'a': b'one'})
    first = content(files, tmp_path / 'memory')
    (known,) = (tmp_path / 'memory').iterdir()
    for broken in (first[:20].encode(), bytes(64), b'\xff\xfe\xff', first.encode(), known.read_bytes()[:-1] + b'g'):
        known.write_bytes(broken)
        assert content(files, tmp_path / 'memory') == first


def test_content_names_a_file_that_is_gone(tmp_path):
    with pytest.raises(UserError, match='gone: cannot be read'):
        content([str(tmp_path / 'gone')])


def test_examples_are_told_apart_by_values_shapes_and_order():
    a, b = np.zeros((2, 3), np.uint8), np.ones((2, 3), np.uint8)
    made = [examples({'image': x} for x in order) for order in ([a, b], [b, a], [a], [a.reshape(3, 2), b])]
    assert len(set(made)) == 4 and made[0] == examples(iter([{'image': a.copy()}, {'image': b}]))


def test_content_that_cannot_be_remembered_is_found_all_the_same(tmp_path):
    files = made(tmp_path / 'x', {'a': b'one'})
    (tmp_path / 'memory').write_text('a file')
    assert content(files, tmp_path / 'memory' / 'below') == content(files)
