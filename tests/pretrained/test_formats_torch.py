"""Reading the files of torch.save: every layout of a tensor, where the weights are, and what is refused.

The files are written by hand in torchfiles.py; that PyTorch's own read the same is in tests/parity.
"""

import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchfiles import WRITERS, Raw, call, code, name, pickled, tensor, write_legacy, write_members, write_zip

from jtl.errors import UserError
from jtl.pretrained.formats import torch

REAL = Path(__file__).resolve().parents[2].parent / 'shared' / 'weights' / 'cifar10_resnets'
NUMBERS = np.arange(12, dtype=np.float32)
ONE = {'0': NUMBERS}  # a storage


def refused(path: Path, match: str = 'x.', key: str | None = None) -> str:
    with pytest.raises(UserError, match=match) as e:
        torch.read(path, key)
    assert str(e.value).startswith(str(path)) and len(str(e.value)) < 1000
    return str(e.value)


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_read_gives_tensors_by_their_names_in_their_order(tmp_path, write):
    storages = {'0': NUMBERS, '1': np.array([7], np.int64), '2': np.arange(4, dtype=np.float16)}
    top = {
        'b.weight': tensor('0', (3, 4)),
        'b.steps': tensor('1', (), kind='LongStorage'),
        'a': tensor('2', (4,), kind='HalfStorage'),
    }
    read = torch.read(write(tmp_path / 'x.pth', top, storages))
    assert list(read) == ['b.weight', 'b.steps', 'a']
    np.testing.assert_array_equal(read['b.weight'], NUMBERS.reshape(3, 4))
    assert read['b.steps'] == 7 and read['b.steps'].shape == () and read['b.steps'].dtype == np.int64
    assert read['a'].dtype == np.float16 and not read['a'].flags.writeable


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_read_follows_offset_and_strides_and_shares_memory(tmp_path, write):
    top = {
        'all': tensor('0', (12,)),
        'row': tensor('0', (4,), 12, offset=4),
        'turned': tensor('0', (4, 3), 12, strides=(1, 4)),
        'expanded': tensor('0', (5, 2), 12, offset=2, strides=(0, 1)),
        'one': tensor('0', (1, 1), 12, offset=11, strides=(2**40, 77)),  # strides that lead nowhere
        'none': tensor('0', (0, 3), 12, offset=12),
    }
    read = torch.read(write(tmp_path / 'x.pth', top, ONE))
    np.testing.assert_array_equal(read['row'], NUMBERS[4:8])
    np.testing.assert_array_equal(read['turned'], NUMBERS.reshape(3, 4).T)
    np.testing.assert_array_equal(read['expanded'], np.broadcast_to(NUMBERS[2:4], (5, 2)))
    np.testing.assert_array_equal(read['one'], [[11]])
    assert read['none'].shape == (0, 3)
    assert np.shares_memory(read['all'], read['turned'])


def test_read_takes_the_byte_order_of_the_archive(tmp_path):
    big = NUMBERS.astype('>f4')
    read = torch.read(write_zip(tmp_path / 'x.pth', {'w': tensor('0', (12,))}, {'0': big}, byteorder=b'big'))
    np.testing.assert_array_equal(read['w'], NUMBERS)
    assert read['w'].dtype == np.float32
    refused(write_zip(tmp_path / 'x.pth', {'w': tensor('0', (12,))}, {'0': big}, byteorder=b'both'), 'byteorder')


def test_read_takes_a_view_of_a_storage_in_the_old_format(tmp_path):
    path = write_legacy(tmp_path / 'x.th', {'w': tensor('0', (3,), 12, view=(('v', 5, 4),), offset=1)}, ONE)
    np.testing.assert_array_equal(torch.read(path)['w'], NUMBERS[6:9])
    path = write_legacy(tmp_path / 'x.th', {'w': tensor('0', (3,), 12, view=(('v', 9, 4),))}, ONE)
    refused(path, 'view beyond its storage')


def test_read_takes_what_lies_beside_the_weights(tmp_path):
    number = call(
        name('numpy.core.multiarray', 'scalar'),
        call(name('numpy', 'dtype'), 'f8', False, True),
        call(name('_codecs', 'encode'), '\x00' * 8, 'latin1'),
    )
    space = Raw(name('argparse', 'Namespace').code + b')\x81' + code({'lr': 0.1}) + b'b')
    ordered = Raw(call(name('collections', 'OrderedDict')).code + b'(' + code('w') + tensor('0', (12,)).code + b'u')
    metadata = Raw(ordered.code + code({'_metadata': {'': {'version': 1}}}) + b'b')
    milestones = call(name('collections', 'Counter'), {30: 1})
    top = {'state_dict': metadata, 'best': number, 'args': space, 'epoch': 3, 'lr': {'milestones': milestones}}
    assert list(torch.read(write_zip(tmp_path / 'x.pth', top, ONE))) == ['w']


def test_read_takes_pickles_of_python_2_and_of_later_protocols(tmp_path):
    pairs = call(name('collections', 'OrderedDict'), [['w', tensor('0', (12,))]])
    assert list(torch.read(write_zip(tmp_path / 'x.pth', pairs, ONE))) == ['w']
    short = Raw(b'}(U\x01w' + tensor('0', (12,)).code + b'u')
    assert list(torch.read(write_zip(tmp_path / 'x.pth', short, ONE))) == ['w']
    framed = Raw(b'\x80\x05\x95' + struct.pack('<Q', 99) + b'}\x94(\x8c\x01w\x94' + tensor('0', (12,)).code + b'u')
    assert list(torch.read(write_zip(tmp_path / 'x.pth', framed, ONE))) == ['w']


def test_read_of_a_deflated_archive_gives_the_same(tmp_path):
    members = {'a/data.pkl': pickled({'w': tensor('0', (12,))}), 'a/data/0': NUMBERS.tobytes()}
    path = write_members(tmp_path / 'x.pth', members, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(torch.read(path)['w'], NUMBERS)


@pytest.mark.skipif(not REAL.is_dir(), reason='no real weights here')
@pytest.mark.parametrize('file, tensors', [('resnet20-12fca82f.th', 97), ('resnet56-4bfd9763.th', 277)])
def test_read_takes_real_weights_of_the_old_format(file, tensors):
    read = torch.read(REAL / file)
    assert len(read) == tensors and read['module.conv1.weight'].shape == (16, 3, 3, 3)
    assert all(np.isfinite(x).all() for x in read.values())


# --- where the weights are


def test_read_finds_the_one_wrapper(tmp_path):
    w = tensor('0', (12,))
    for top in (
        {'state_dict': {'w': w}, 'optimizer': {'state': {0: {'momentum': w}}}, 'best': tensor('0', (), 12)},
        {'model': {'w': w}, 'rng_state': tensor('1', (4,), kind='LongStorage')},
        {'checkpoint': {'model': {'w': w}, 'optimizer': {'x': w}}},
        {'unheard_of': {'w': w}, 'epoch': 3},
    ):
        storages = ONE | ({'1': np.arange(4)} if 'rng_state' in top else {})
        assert list(torch.read(write_zip(tmp_path / 'x.pth', top, storages))) == ['w'], top.keys()


def test_read_keeps_a_top_mapping_that_holds_weights_and_joins_names(tmp_path):
    w = tensor('0', (12,))
    top = {'w': w, 'model': {'a': {'b': w, 'c': None}, 3: w}}
    assert list(torch.read(write_zip(tmp_path / 'x.pth', top, ONE))) == ['w', 'model.a.b', 'model.3']


def test_read_asks_which_of_several_networks_is_meant(tmp_path):
    w = tensor('0', (12,))
    top = {'teacher': {'w': w}, 'student': {'a.b': {'v': w}}}
    path = write_zip(tmp_path / 'x.pth', top, ONE)
    refused(path, f'pick one with torch:{path}#teacher, torch:{path}#student')
    assert list(torch.read(path, 'teacher')) == ['w']
    assert list(torch.read(path, 'student')) == ['a.b.v']
    assert list(torch.read(path, 'student.a.b')) == ['v']
    assert list(torch.read(path, '')) == ['teacher.w', 'student.a.b.v']
    refused(path, "did you mean 'teacher'", 'techer')
    refused(path, 'no mapping with tensors', 'teacher.w')


def test_read_says_what_holds_no_weights(tmp_path):
    path = tmp_path / 'x.pth'
    refused(write_zip(path, {'epoch': 3}, ONE), "holds no tensors; its keys are 'epoch'")
    refused(write_zip(path, tensor('0', (12,)), ONE), 'one tensor without a name')
    refused(write_zip(path, [tensor('0', (12,))], ONE), 'of type list')
    refused(write_zip(path, {'a': {'b': tensor('0', (12,))}, 'a.b': tensor('0', (12,))}, ONE), 'two tensors')
    refused(write_zip(path, {'a\x1b[2J': tensor('0', (12,))}, ONE), 'no name for a tensor')


def test_read_shows_no_control_characters(tmp_path):
    path, x = tmp_path / 'x.pth', tensor('0', (12,))
    two = {'\x1b[2J': {'w': x}, 'b': {'v': x}}
    refused(write_zip(path, two, ONE), re.escape(rf'pick one with torch:{path}#\x1b[2J, torch:{path}#b'))
    refused(path, re.escape(r'Known: \x1b[2J, b.'), 'c')
    refused(write_zip(path, {'\x1b[2J': 3}, ONE), re.escape(r"its keys are '\x1b[2J'"))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('\x1b[2J', b'')
    refused(path, re.escape(r'it holds \x1b[2J'))


# --- files that are something else


@pytest.mark.parametrize(
    'data, match',
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>404</html>', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n', 'git lfs pull'),
        (struct.pack('<Q', 2) + b'{}', 'safetensors:PATH'),
        (b'\x89HDF\r\n\x1a\n' + bytes(99), 'keras:PATH'),
        (bytes(999), 'begins with zeros'),
        (b'\x1f\x8b' + bytes(99), 'gzip'),
        (b'epoch,loss\n1,2\n', 'text file'),
        (bytes(257) + b'ustar' + bytes(99), 'tar format of PyTorch 0.1'),
        (b'PK\3\4' + bytes(99), 'not a readable zip'),
        (pickled({'w': 1}), 'not one of torch.save'),
    ],
)
def test_read_says_what_a_wrong_file_looks_like(tmp_path, data, match):
    path = tmp_path / 'x.pth'
    path.write_bytes(data)
    refused(path, match)


def test_read_says_what_a_wrong_archive_is(tmp_path):
    path = tmp_path / 'x.pth'
    refused(write_members(path, {'w.npy': b''}), 'npz:PATH')
    refused(write_members(path, {'model.weights.h5': b''}), 'keras:PATH')
    refused(write_members(path, {'a/data.pkl': b'', 'a/constants.pkl': b''}), 'TorchScript.*state_dict')
    refused(write_members(path, {'pictures/1.png': b''}), 'without the data.pkl.*; it holds pictures/1.png')
    refused(tmp_path / 'none.pth', 'no such file')
    refused(tmp_path, 'a directory')


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_read_of_a_file_cut_short_anywhere_says_so(tmp_path, write):
    path = write(tmp_path / 'x.pth', {'w': tensor('0', (12,))}, ONE)
    data = path.read_bytes()
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        refused(path, 'x.pth: ')
    path.write_bytes(data[:-20])
    refused(path, 'cut short: 20 bytes are missing' if write is write_legacy else 'not a readable zip')


def test_read_of_a_flipped_bit_in_an_archive_says_so_if_it_is_not_in_a_number(tmp_path):
    path = write_zip(tmp_path / 'x.pth', {'w': tensor('0', (12,))}, ONE)
    data = bytearray(path.read_bytes())
    data[data.index(NUMBERS.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert torch.read(path)['w'][1] != NUMBERS[1]
    write_zip(path, {'w': tensor('0', (12,))}, ONE)
    path.write_bytes(path.read_bytes().replace(b'FloatStorage', b'LongStorage!'))
    refused(path, "'archive/data.pkl' does not agree with its checksum")


# --- tensors that lie


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    'lie',
    [
        tensor('0', (13,), 12),
        tensor('0', (12,), 12, offset=1),
        tensor('0', (2, 2), 12, strides=(11, 1)),
        tensor('0', (2,), 12, strides=(2**47,)),
        tensor('0', (2,), 12, strides=(-1,), offset=3),
        tensor('0', (-2,), 12),
        tensor('0', (2,), 12, offset=-1),
        tensor('0', (2**62,), 12, strides=(0,)),
        tensor('0', (0, 2**40, 2**40), 12),
        tensor('0', (2, 2), 12, strides=(1,)),
        tensor('0', (1,) * 65, 12),
        tensor('0', (12,), 13),
        tensor('1', (12,)),
        tensor('0', (12,), kind='DoubleStorage'),
        tensor('0', (True,), 12),
        tensor('../../data.pkl', (1,)),
    ],
)
def test_read_refuses_tensors_beyond_their_storage(tmp_path, write, lie):
    refused(write(tmp_path / 'x.pth', {'w': lie}, ONE))


def test_read_refuses_small_files_of_large_tensors(tmp_path):
    path = tmp_path / 'x.pth'
    refused(write_zip(path, {'w': tensor('0', (2**30,), 12, strides=(0,))}, ONE), '4,294,967,696 bytes of tensors')
    many = {f'w{i}': tensor('0', (2**14,), 12, strides=(0,)) for i in range(200)}  # 64 KiB each, of 40 bytes
    refused(write_zip(path, many, ONE), 'made to do harm')
    few = {f'w{i}': tensor('0', (2**14,), 12, strides=(0,)) for i in range(8)}
    assert len(torch.read(write_zip(path, few, ONE))) == 8
    again = tensor('0', (12,)).code + b'q\0}(' + b''.join(code(str(i)) + b'h\0' for i in range(50_000)) + b'u'
    refused(write_zip(path, Raw(again), ONE), 'made to do harm')


@pytest.mark.parametrize(
    'function, match',
    [
        ('_rebuild_qtensor', 'quantised'),
        ('_rebuild_sparse_tensor', 'sparse'),
        ('_rebuild_meta_tensor_no_storage', 'meta device'),
        ('_rebuild_nested_tensor', 'nested'),
    ],
)
def test_read_refuses_other_tensors_by_name(tmp_path, function, match):
    refused(write_zip(tmp_path / 'x.pth', {'w': call(name('torch._utils', function))}, ONE), f'{function}.*{match}')
