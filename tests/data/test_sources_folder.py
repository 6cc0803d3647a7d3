"""Directories and zip files of class folders."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jtl.data.sources import folder
from jtl.errors import UserError


def picture(value, mode='RGB', format='png'):
    buffer = io.BytesIO()
    Image.new(mode, (4, 3), value if mode == 'L' else (value,) * 3).save(buffer, format)
    return buffer.getvalue()


def write(root, files):
    """files: path -> bytes, or a gray level of a picture; a path that ends in / is an empty folder."""
    for path, data in files.items():
        target = root / path
        if path.endswith('/'):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if isinstance(data, bytes) else picture(data))
    return str(root)


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, data in files.items():
            archive.writestr(name, b'' if name.endswith('/') else data if isinstance(data, bytes) else picture(data))
    return str(path)


def write_either(kind, tmp_path, files):
    return write(tmp_path / 'root', files) if kind == 'directory' else write_zip(tmp_path / 'root.zip', files)


def levels(split):
    return [int(split.get(i)['image'][0, 0, 0]) for i in range(len(split.labels))]


PLAIN = {'dog/b.PNG': 1, 'dog/a.png': 2, 'cat/z.png': 3, 'cat/.hidden': b'', 'cat/Thumbs.db': b'', 'README.md': b'hi'}
either = pytest.mark.parametrize('kind', ['directory', 'zip'])


@either
@pytest.mark.parametrize('wrapper', ['', 'flowers-1.0/'])
def test_folder_reads_classes(kind, wrapper, tmp_path):
    junk = {'__MACOSX/dog/._a.png': b'junk'}
    source = folder.read(write_either(kind, tmp_path, {wrapper + path: data for path, data in PLAIN.items()} | junk))
    assert source.classes == ('cat', 'dog') and source.channels == 3 and list(source.splits) == ['train']
    np.testing.assert_array_equal(source.splits['train'].labels, [0, 1, 1])
    assert source.splits['train'].labels.dtype == np.int32
    assert levels(source.splits['train']) == [3, 2, 1]  # cat/z, dog/a, dog/b
    assert source.splits['train'].get(0)['image'].shape == (3, 4, 3)


@either
@pytest.mark.parametrize('wrapper', ['', 'data/'])
def test_folder_reads_splits(kind, wrapper, tmp_path):
    files = {'Train/cat/a.png': 1, 'Train/dog/images/b.png': 2, 'validation/dog/c.png': 3, 'test/cat/d.png': 4}
    source = folder.read(write_either(kind, tmp_path, {wrapper + path: data for path, data in files.items()}))
    assert set(source.splits) == {'train', 'val', 'test'}
    assert {name: (split.labels.tolist(), levels(split)) for name, split in source.splits.items()} == {
        'train': ([0, 1], [1, 2]),
        'val': ([1], [3]),
        'test': ([0], [4]),
    }


def test_folder_may_have_only_a_train_folder(tmp_path):
    source = folder.read(write(tmp_path, {'train/cat/a.png': 1, 'train/dog/a.png': 2}))
    assert source.classes == ('cat', 'dog')


def test_folder_may_have_a_class_called_test(tmp_path):
    assert folder.read(write(tmp_path, {'test/a.png': 1, 'blank/a.png': 2})).classes == ('blank', 'test')


def test_folder_finds_gray(tmp_path):
    source = folder.read(write(tmp_path, {'a/x.png': picture(7, 'L'), 'b/x.png': picture(8, 'L')}))
    assert source.channels == 1 and source.splits['train'].get(1)['image'].shape == (3, 4, 1)
    source = folder.read(write(tmp_path, {'c/x.png': 9}))  # one colour picture among them
    assert source.channels == 3


@either
@pytest.mark.parametrize(
    'files, message',
    [
        ({}, 'no class folders'),
        ({'README.txt': b''}, 'no class folders'),
        ({'a.png': 1}, 'the picture a.png is in no class folder'),
        ({'train/a.png': 1}, 'the picture train/a.png is in no class folder'),
        ({'train/a/a.png': 1, 'val/a.png': 1}, 'the picture val/a.png is in no class folder'),
        ({'a/x.png': 1, 'b/': b''}, 'class folder b has no pictures'),
        ({'a/x.png': 1, 'b/notes.txt': b''}, 'class folder b has no pictures'),
        ({'train/a/x.png': 1, 'val/a/': b''}, 'class folder val/a has no pictures'),
        ({'train/a/x.png': 1, 'val/': b''}, 'folder val has no class folders'),
        ({'a/x.png': 1, 'a/x.heic': b''}, 'a/x.heic is not a picture'),
        ({'train/a/x.png': 1, 'extra/a/x.png': 1}, r'split folders \(train\) and others \(extra\)'),
        ({'val/a/x.png': 1, 'test/a/x.png': 1}, 'no train folder, only: test, val'),
        ({'train/a/x.png': 1, 'val/a/x.png': 1, 'dev/a/x.png': 1}, 'two folders for one split'),
        ({'train/rose/x.png': 1, 'val/rosse/x.png': 1}, "'rosse' is in split 'val' but not in train: .*'rose'"),
        ({'a/x.png': b'not a picture'}, 'cannot decode .*a/x.png'),
    ],
)
def test_folder_refuses(kind, files, message, tmp_path):
    if kind == 'directory':
        (tmp_path / 'root').mkdir()
    with pytest.raises(UserError, match=message):
        folder.read(write_either(kind, tmp_path, files))


@either
def test_folder_names_a_damaged_picture_when_it_is_read(kind, tmp_path):
    source = folder.read(write_either(kind, tmp_path, {'a/x.png': 1, 'a/y.png': picture(1)[:45]}))
    with pytest.raises(UserError, match='cannot decode .*a/y.png'):
        source.splits['train'].get(1)


def test_folder_suggests_a_path(tmp_path):
    write_zip(tmp_path / 'flowers.zip', {'a/x.png': 1})
    with pytest.raises(UserError, match="did you mean 'flowers.zip'"):
        folder.read(str(tmp_path / 'flower.zip'))


def test_folder_refuses_what_is_no_zip(tmp_path):
    path = tmp_path / 'a.zip'
    path.write_bytes(b'hello')
    with pytest.raises(UserError, match='neither a directory nor a readable zip'):
        folder.read(str(path))


def test_folder_refuses_unusual_compression(tmp_path):
    with pytest.raises(UserError, match='method 14; use deflate'):  # 14 is LZMA in the zip specification
        folder.read(write_zip(tmp_path / 'a.zip', {'a/x.png': 1}, zipfile.ZIP_LZMA))


def test_folder_refuses_encryption(tmp_path):
    path = write_zip(tmp_path / 'a.zip', {'a/x.png': 1})
    data = bytearray(Path(path).read_bytes())
    data[data.index(b'PK\x01\x02') + 8] |= 1  # bit 0 of the flags in the archive's directory: encrypted
    Path(path).write_bytes(data)
    with pytest.raises(UserError, match='encrypted'):
        folder.read(path)


def test_folder_finds_damage_in_a_zip(tmp_path):
    path = write_zip(tmp_path / 'a.zip', {'a/x.png': 1, 'a/y.png': 2}, zipfile.ZIP_STORED)
    source = folder.read(path)
    data = bytearray(Path(path).read_bytes())
    data[data.rindex(b'IDAT') + 6] ^= 1
    Path(path).write_bytes(data)
    source.splits['train'].get(0)
    with pytest.raises(UserError, match='a.zip/a/y.png: wrong checksum'):
        source.splits['train'].get(1)
    Path(path).write_bytes(data[:10])
    with pytest.raises(UserError, match='cannot read .*a.zip/a/x.png: the zip file is damaged'):
        source.splits['train'].get(0)


@either
@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_folder_reads_from_threads_and_other_processes(kind, method, tmp_path):
    files = {f'c/{i:03}.png': i for i in range(64)}
    path = write(tmp_path / 'r', files) if kind == 'directory' else write_zip(tmp_path / 'r.zip', files, method)
    split = folder.read(path).splits['train']
    get = pickle.loads(pickle.dumps(split.get))
    with ThreadPoolExecutor(8) as pool:
        assert [int(x['image'][0, 0, 0]) for x in pool.map(get, list(range(64)) * 4)] == list(range(64)) * 4
    if hasattr(os, 'fork') and method == zipfile.ZIP_DEFLATED and kind == 'zip':
        (tmp_path / 'get.pkl').write_bytes(pickle.dumps(split.get))
        code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))(5)['image'].max())"
        command = [sys.executable, '-c', code, str(tmp_path / 'get.pkl')]
        assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == '5'


def test_folder_never_writes(tmp_path):
    path = write_zip(tmp_path / 'a.zip', {'a/x.png': 1})
    folder.read(path).splits['train'].get(0)
    assert os.listdir(tmp_path) == ['a.zip']
