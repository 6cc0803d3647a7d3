"""Reading and writing safetensors, in one file and in several; what headers may not say."""

import errno
import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torchfiles import tensor, write_zip

from jtl.errors import UserError
from jtl.pretrained.formats import safetensors as ours
from jtl.pretrained.formats import torch

TENSORS = {
    'w': np.arange(6, dtype=np.float32).reshape(2, 3),
    'half': np.arange(4, dtype=np.float16),
    'brain': np.arange(4).astype(ml_dtypes.bfloat16),
    'e4m3': np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    'e5m2': np.arange(4).astype(ml_dtypes.float8_e5m2),
    'flag': np.array([True, False]),
    'steps': np.array(7, np.int64),
    'none': np.zeros((0, 3), np.int8),
    'complex': np.array([1 + 2j], np.complex64),
    **{f'{kind}{bits}': np.arange(3).astype(f'{kind}{bits}') for kind in ('int', 'uint') for bits in (8, 16, 32, 64)},
}


def raw(header: dict | str, numbers: bytes = bytes(24), size: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack('<Q', len(text) if size is None else size) + text + numbers


def entry(dtype: object = 'F32', shape: object = (2, 3), begin: object = 0, end: object = 24, **more) -> dict:
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]} | more


def refused(path: Path, match: str, data: bytes | None = None) -> None:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=match) as e:
        ours.read(path)
    assert str(path) in str(e.value) and len(str(e.value)) < 1000


def assert_same(read: dict, expected: dict) -> None:
    assert read.keys() == expected.keys()
    for name, x in expected.items():
        assert read[name].dtype == x.dtype and read[name].shape == x.shape, name
        assert read[name].tobytes() == x.tobytes(), name


def test_write_and_read_keep_every_dtype_and_shape(tmp_path):
    path = tmp_path / 'x.safetensors'
    ours.write(path, TENSORS)
    read = ours.read(path)
    assert_same(read, TENSORS)
    assert not read['w'].flags.writeable
    assert list(tmp_path.iterdir()) == [path]
    with safetensors.safe_open(path, 'np') as f:
        assert f.metadata() == {'format': 'pt'}


def test_read_agrees_with_the_library(tmp_path):
    path = tmp_path / 'x.safetensors'
    plain = {name: x for name, x in TENSORS.items() if x.dtype.name not in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2')}
    safetensors.numpy.save_file(plain, path)
    assert_same(ours.read(path), safetensors.numpy.load_file(path))


def test_write_takes_views_and_the_other_byte_order(tmp_path):
    path, x = tmp_path / 'x.safetensors', TENSORS['w']
    ours.write(path, {'turned': x.T, 'every': x[:, ::2], 'big': x.astype('>f4')})
    assert_same(ours.read(path), {'turned': x.T.copy(), 'every': x[:, ::2].copy(), 'big': x})


def test_write_that_fails_leaves_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    ours.write(path, {'w': TENSORS['w']})
    with pytest.raises(UserError, match='dtype complex128'):
        ours.write(path, {'w': np.zeros(2, np.complex128)})

    def full(file):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(os, 'fsync', full)
        ours.write(path, {'w': TENSORS['half']})
    assert_same(ours.read(path), {'w': TENSORS['w']})
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match='does not exist'):
        ours.write(tmp_path / 'no' / 'x.safetensors', {})


@pytest.mark.parametrize(
    'data, match',
    [
        (b'', 'is empty'),
        (b'<html>', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
        (b'PK\3\4' + bytes(99), 'zip archive'),
        (b'\x80\x02' + bytes(99), 'Python pickle'),
        (struct.pack('<Q', 5), 'no safetensors file'),
        (raw({'w': entry()}, size=10**7), 'cut short within its header'),
        (raw({'w': entry()}, size=2**62), 'no safetensors file'),
        (raw('{"w": '), 'header is not JSON'),
        (raw('{"a":' * 10**5), 'header is not JSON'),
        (raw('{"a": ' + '9' * 10**5 + '}'), 'header is not JSON'),
        (raw('[1, 2]'), 'no safetensors file'),
        (raw('{"w": 1, "w": 2}'), "'w' is there twice"),
        (raw('{"w": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is there twice"),
        (raw({'w': 3}), 'dtype, shape and data_offsets'),
        (raw({'w': entry(more=1)}), 'dtype, shape and data_offsets'),
        (raw({'w': entry('F4')}), "dtype 'F4' is not read here"),
        (raw({'w': entry(['F32'])}), 'is not read here'),
        (raw({'w': entry(shape=(-2, -3))}), 'a shape should be'),
        (raw({'w': entry(shape=(2, True, 3))}), 'a shape should be'),
        (raw({'w': entry(shape=(2, 3.0))}), 'a shape should be'),
        (raw({'w': entry(shape='23')}), 'a shape should be'),
        (raw({'w': entry(shape=(2**40, 2**40, 0))}), 'a shape should be'),
        (raw({'w': entry(shape=(1,) * 65)}), 'a shape should be'),
        (raw({'w': entry(shape=(2, 4))}), r'has 24 bytes for the shape \(2, 4\)'),
        (raw({'w': entry(shape=(2**20, 2**20))}), 'has 24 bytes for the shape'),
        (raw({'w': entry(end=28)}), 'ends at byte 28 of 24: the file is cut short'),
        (raw({'w': entry(begin=-8)}), 'data_offsets should be'),
        (raw({'w': entry(begin=30)}), 'data_offsets should be'),
        (raw({'w': entry(end=None)}), 'data_offsets should be'),
        (raw({'w': entry() | {'data_offsets': [0]}}), 'data_offsets should be'),
        (raw({'w': entry(), 'v': entry()}), "'w' overlaps"),
        (raw({'w': entry(), 'v': entry(shape=[1], begin=20)}), 'overlaps'),
        (raw({'w': entry(shape=[2], end=8), 'v': entry(shape=[2], begin=16)}), "'v' leaves 8 unused bytes"),
        (raw({'w': entry()}, bytes(25)), '1 bytes behind the last tensor'),
        (raw({'w\x1b[2J': entry()}), 'no name for a tensor'),
        (raw({'__metadata__': {'a': 1}, 'w': entry()}), '__metadata__'),
        (raw({'__metadata__': [], 'w': entry()}), '__metadata__'),
    ],
)
def test_read_refuses_headers_that_lie(tmp_path, data, match):
    refused(tmp_path / 'x.safetensors', match, data)


def test_read_of_a_file_cut_short_anywhere_says_so(tmp_path):
    path = tmp_path / 'x.safetensors'
    ours.write(path, {'w': TENSORS['w'], 'v': TENSORS['half']})
    data = path.read_bytes()
    for size in range(len(data)):
        refused(path, 'cut short|no safetensors file|is empty', data[:size])


# --- several files


def index(folder: Path, weight_map: object, name: str = 'model.safetensors.index.json') -> Path:
    (folder / name).write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': weight_map}))
    return folder / name


def test_read_joins_the_files_of_an_index(tmp_path):
    ours.write(tmp_path / 'a.safetensors', {'w': TENSORS['w']})
    ours.write(tmp_path / 'b.safetensors', {'v': TENSORS['half']})
    path = index(tmp_path, {'w': 'a.safetensors', 'v': 'b.safetensors'})
    assert_same(ours.read(path), {'w': TENSORS['w'], 'v': TENSORS['half']})


def test_read_joins_the_files_of_an_index_of_torch(tmp_path):
    for key in 'ab':
        write_zip(tmp_path / f'{key}.bin', {key: tensor('0', (2, 3))}, {'0': TENSORS['w']})
    path = index(tmp_path, {'a': 'a.bin', 'b': 'b.bin'}, 'pytorch_model.bin.index.json')
    assert_same(torch.read(path), {'a': TENSORS['w'], 'b': TENSORS['w']})


def test_read_says_which_files_and_tensors_of_an_index_are_missing(tmp_path):
    ours.write(tmp_path / 'a.safetensors', {'w': TENSORS['w'], 'more': TENSORS['w']})
    files = {'w': 'a.safetensors', 'v': 'b.safetensors', 'u': 'c.safetensors'}
    refused(index(tmp_path, files), '2 of 3 files: b.safetensors, c.safetensors')
    path = index(tmp_path, {'w': 'a.safetensors', 'v': 'a.safetensors'})
    with pytest.raises(UserError, match=r'model.safetensors.index.json lists: more \(not listed\), v \(missing\)'):
        ours.read(path)
    refused(tmp_path / 'x.safetensors', 'no such file')
    path = index(tmp_path, {'w': 'a.safetensors', 'more': 'a.safetensors', '\x1b[2J': 'a.safetensors'})
    with pytest.raises(UserError, match=r'lists: \\x1b\[2J \(missing\)'):
        ours.read(path)


@pytest.mark.parametrize(
    'shard', ['../x', '/etc/passwd', 'a/b', '..', '', 'a\\b', 'C:x', 'a\0b', 'a\n', '.a', 'a' * 300]
)
def test_read_refuses_an_index_that_names_files_elsewhere(tmp_path, shard):
    refused(index(tmp_path, {'w': shard}), 'no name of a file beside it')


@pytest.mark.parametrize('weight_map', [{}, [], None, {'w': 3}, {'w': ['a']}])
def test_read_refuses_an_index_without_files(tmp_path, weight_map):
    refused(index(tmp_path, weight_map), 'no weight_map')


def test_read_refuses_an_index_of_itself_and_a_damaged_one(tmp_path):
    path = index(tmp_path, {'w': 'model.safetensors.index.json'})
    refused(path, 'is an index')
    refused(path, 'is not JSON', b'{"weight_map": {')
    refused(path, 'is empty', b'')
    refused(tmp_path / 'no.safetensors.index.json', 'no such file')
