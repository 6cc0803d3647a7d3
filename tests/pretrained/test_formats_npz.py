"""NumPy archives: what is read, and what is refused by name."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jtl.errors import UserError
from jtl.pretrained.formats import npz

DTYPES = '?bBhHiIlLqQefdFD'


def member(header, data=b'', version=1):
    """The bytes of an .npy file with any header."""
    header = header.encode() + b'\n'
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', len(header)) + header + data


def plain(shape='(2,)', descr="'<f4'", fortran='False'):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def zipped(path, **members):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].shape == x.shape and found[name].dtype == x.dtype.newbyteorder('=')
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_reads_every_kind_of_number(tmp_path, save):
    rng = np.random.default_rng(0)
    arrays = {f'layer/{code}': (100 * rng.normal(size=(2, 3))).astype(code) for code in DTYPES}
    arrays |= {f'big/{code}': x.astype(x.dtype.newbyteorder('>')) for code, x in zip(DTYPES, list(arrays.values()))}
    arrays |= {'scalar': np.float32(3), 'empty': np.zeros((0, 4)), 'F': np.asfortranarray(rng.normal(size=(3, 4, 5)))}
    arrays |= {'strided': rng.normal(size=(6, 8))[::2, ::-3]}
    save(tmp_path / 'x.npz', **arrays)
    same(npz.read(tmp_path / 'x.npz'), {name: np.asarray(x) for name, x in arrays.items()})


def test_npz_reads_bfloat16_as_jax_writes_it(tmp_path):
    x = np.array([1, -2.5, 0.1], ml_dtypes.bfloat16)
    np.savez(tmp_path / 'x.npz', x=x)
    assert np.load(tmp_path / 'x.npz')['x'].dtype == 'V2'  # NumPy does not know what it is
    found = npz.read(tmp_path / 'x.npz')['x']
    assert found.dtype == ml_dtypes.bfloat16 and found.tolist() == x.tolist()


def test_npz_maps_stored_arrays_into_memory(tmp_path):
    np.savez(tmp_path / 'x.npz', x=np.ones(5))
    x = npz.read(tmp_path / 'x.npz')['x']
    assert not x.flags.owndata and not x.flags.writeable


@pytest.mark.parametrize('version', [1, 2, 3])
def test_npz_reads_every_version_of_the_header(tmp_path, version):
    path = zipped(tmp_path / 'x.npz', **{'x.npy': member(plain(), np.float32([1, 2]).tobytes(), version)})
    assert npz.read(path)['x'].tolist() == [1, 2]


def test_npz_reads_headers_that_others_write(tmp_path):
    data = np.float32([[1, 2, 3]]).tobytes()
    members = {
        'python2.npy': member(plain('(1L, 3L)'), data),
        'order.npy': member("{'shape':(1,3),'fortran_order':False,'descr':'<f4'}", data),
        'quotes.npy': member('{"descr": "<f4", "fortran_order": False, "shape": (1, 3)}', data),
    }
    found = npz.read(zipped(tmp_path / 'x.npz', **members))
    assert {name: x.tolist() for name, x in found.items()} == dict.fromkeys(found, [[1, 2, 3]]) and len(found) == 3


def test_npz_takes_the_parameters_of_a_training_state(tmp_path):
    arrays = {'params/head/kernel': np.ones(2), 'opt/0/mu/head/kernel': np.zeros(2), 'step': np.int64(3)}
    np.savez(tmp_path / 'x.npz', **arrays)
    assert set(npz.read(tmp_path / 'x.npz')) == {'head/kernel', 'step'}
    np.savez(tmp_path / 'y.npz', **{'opt/kernel': np.ones(2), 'head/params/x': np.ones(1)})
    assert set(npz.read(tmp_path / 'y.npz')) == {'opt/kernel', 'head/params/x'}  # no training state
    np.savez(tmp_path / 'z.npz', **{'params/x': np.ones(2), 'x': np.zeros(2)})
    with pytest.raises(UserError, match=r"z\.npz has both 'x' and 'params/x'"):
        npz.read(tmp_path / 'z.npz')


class Evil:
    def __reduce__(self):
        return exec, ('raise SystemExit("code has run")',)


def test_npz_never_opens_a_pickle(tmp_path):
    np.savez(tmp_path / 'x.npz', fine=np.ones(2), evil=np.array([Evil()], object))
    with pytest.raises(UserError, match=r"'evil\.npy' holds Python objects \(a pickle\).*np\.savez"):
        npz.read(tmp_path / 'x.npz')


@pytest.mark.parametrize(
    'header, data, message',
    [
        (plain('(3, 4)'), bytes(47), r'declares float32 \(3, 4\), 48 bytes, and holds 47: it is truncated'),
        (plain('(3, 4)'), bytes(49), r'48 bytes, and holds 49'),
        (plain(f'({2**40}, {2**40})'), bytes(8), r'declares float32 .*bytes, and holds 8'),
        (plain(f'({2**62}, {2**62}, 0)'), b'', 'declares the shape'),
        (plain('(' + '1, ' * 65 + ')'), bytes(4), 'declares the shape'),
        (plain('(-1,)'), bytes(8), 'a header that is not understood'),
        (plain('(3 4,)'), bytes(48), 'a header that is not understood'),
        (plain(f'({"9" * 5000},)'), bytes(8), 'a header that is not understood'),
        (plain('(' * 4000), bytes(8), 'a header that is not understood'),
        (plain("__import__('os').system('true')"), bytes(8), 'a header that is not understood'),
        (plain(fortran='0'), bytes(8), 'a header that is not understood'),
        ("{'descr': '<f4', 'shape': (2,)}", bytes(8), 'a header that is not understood'),
        (plain(descr="[('a', '<f4'), ('b', '<i4')]"), bytes(16), r'a table with named columns \(a structured array\)'),
        (plain(descr="'<M8[s]'"), bytes(16), r"holds '<M8\[s\]'; numbers are read"),
        (plain(descr="'<U3'"), bytes(24), "holds '<U3'; numbers are read"),
        (plain() + ' ' * 20_000, bytes(8), 'a header of 20,0.. bytes, expected at most 10,000'),
    ],
)
def test_npz_refuses_headers_that_lie(tmp_path, header, data, message):
    path = zipped(tmp_path / 'x.npz', **{'a/b.npy': member(header, data)})
    with pytest.raises(UserError, match=rf"x\.npz: 'a/b\.npy' .*{message}"):
        npz.read(path)


@pytest.mark.parametrize(
    'data', [b'', b'\x93NUM', b'\x93NUMPY\x01\x00', b'\x93NUMPY\x01\x00\xff\x00{', b'\x93NUMPY\x09\x00\x01\x00 ']
)
def test_npz_refuses_members_that_are_cut_short(tmp_path, data):
    with pytest.raises(UserError, match=r"'x\.npy' (is not an \.npy array|has a header of 255 bytes)"):
        npz.read(zipped(tmp_path / 'x.npz', **{'x.npy': data}))


def test_npz_refuses_other_files(tmp_path):
    np.save(tmp_path / 'x.npy', np.ones(3))
    (tmp_path / 'lfs.npz').write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n')
    zipped(tmp_path / 'none.npz')
    zipped(tmp_path / 'other.npz', **{'weights.txt': 'hello'})
    zipped(tmp_path / 'model.npz', **{'model.weights.h5': 'hello'})
    for name, message in {
        'x.npy': r'x\.npy is a single array without a name \(\.npy\); put the arrays into a \.npz',
        'lfs.npz': r'lfs\.npz: .*Git LFS pointer',
        'none.npz': r'none\.npz',
        'other.npz': r"other\.npz: 'weights\.txt' is not an array",
        'model.npz': 'looks like a Keras model: keras:PATH',
    }.items():
        with pytest.raises(UserError, match=message):
            npz.read(tmp_path / name)


def test_npz_refuses_a_truncated_file(tmp_path):
    np.savez(out := io.BytesIO(), x=np.ones((20, 20)))
    for end in range(0, len(out.getvalue()), 97):
        (tmp_path / 'x.npz').write_bytes(out.getvalue()[:end])
        with pytest.raises(UserError, match=r'x\.npz'):
            npz.read(tmp_path / 'x.npz')
