"""Zip archives: honest ones in place, and those that are made to do harm, which are written here field by field."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from torchfiles import tensor, write_zip

from jtl.errors import UserError
from jtl.pretrained.formats import archive, torch


def entry(member: str, data: bytes, offset: int, **lies: int) -> tuple[bytes, bytes]:
    """A member's local part and its row of the table of contents, with fields that can be made to lie."""
    fields = {'flags': 0, 'method': 0, 'crc': zlib.crc32(data), 'packed': len(data), 'size': len(data)} | lies
    flags, method, *numbers = fields.values()
    middle = struct.pack('<HHHHIII', flags, method, 0, 0, *numbers)
    local = b'PK\3\4' + struct.pack('<H', 20) + middle + struct.pack('<HH', len(member), 0) + member.encode() + data
    row = b'PK\1\2' + struct.pack('<HH', 20, 20) + middle + struct.pack('<HHHHHII', len(member), 0, 0, 0, 0, 0, offset)
    return local, row + member.encode()


def write_entries(path: Path, entries: list[tuple[bytes, bytes]]) -> Path:
    body, rows = b''.join(local for local, _ in entries), b''.join(row for _, row in entries)
    end = struct.pack('<HHHHIIH', 0, 0, len(entries), len(entries), len(rows), len(body), 0)
    path.write_bytes(body + rows + b'PK\5\6' + end)
    return path


def test_members_reads_the_archives_of_these_tests(tmp_path):
    path = write_entries(tmp_path / 'x.zip', [entry('a', b'abc', 0)])
    assert archive.members(path)['a'].read().tobytes() == b'abc'


@pytest.mark.parametrize('member', ['../x', '/etc/passwd', 'a/../../x', 'C:/x', '..\\x', 'a/..'])
def test_members_refuses_names_that_lead_out_of_the_archive(tmp_path, member):
    path = write_entries(tmp_path / 'x.zip', [entry(member, b'abc', 0)])
    with pytest.raises(UserError, match='points out of the archive'):
        archive.members(path)
    with pytest.raises(UserError, match='points out of the archive'):
        torch.read(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'lies, match',
    [
        ({'size': 2**31}, 'claim to unpack to 2,147,483,648'),
        ({'size': 4}, 'two sizes differ'),
        ({'packed': 2**20, 'size': 2**20}, 'behind the end of the file'),
        ({'flags': 1}, 'encrypted'),
        ({'method': 12}, 'method 12'),
        ({'crc': 5}, 'checksum'),
        ({'method': 8}, 'cannot be unpacked|not have the 3 bytes'),
    ],
)
def test_members_refuses_archives_that_lie(tmp_path, lies, match):
    path = write_entries(tmp_path / 'x.zip', [entry('a', b'abc', 0, **lies)])
    with pytest.raises(UserError, match=match):
        archive.members(path)['a'].read()


def test_members_refuses_members_that_overlap_or_come_twice_or_have_no_name(tmp_path):
    first, second = entry('a', b'abc' * 50, 0), entry('b', b'abc', 0)
    inside = entry('b', b'abc', 40)
    path = tmp_path / 'x.zip'
    with pytest.raises(UserError, match='not where|overlaps'):
        archive.members(write_entries(path, [first, (b'', inside[1])]))
    with pytest.raises(UserError, match='overlaps'):
        archive.members(write_entries(path, [first, (b'', second[1])]))
    with pytest.raises(UserError, match='without a name'):
        archive.members(write_entries(path, [first, entry('', b'', len(first[0]))]))
    with pytest.raises(UserError, match='twice'):
        archive.members(write_entries(path, [first, entry('a', b'', len(first[0]))]))


def test_members_unpacks_no_more_than_is_declared(tmp_path):
    packed = zlib.compress(bytes(10**8), wbits=-15)  # 100 kB
    path = tmp_path / 'x.zip'
    for declared, match in ((10**8, 'claim to unpack'), (10**6, 'not have the 1,000,000 bytes'), (0, 'does not have')):
        write_entries(path, [entry('a', packed, 0, method=8, size=declared, crc=0)])
        with pytest.raises(UserError, match=match):
            archive.members(path)['a'].read()


def test_fresh_copies_out_of_the_file(tmp_path):
    numbers = np.arange(10**5, dtype=np.float16).reshape(100, -1)
    turned = tensor('0', (1000, 100), strides=(1, 1000), kind='HalfStorage')
    path = write_zip(tmp_path / 'x.pth', {'w': turned}, {'0': numbers})
    read = torch.read(path)['w']
    copy = archive.fresh(read)
    assert copy.flags.c_contiguous and copy.flags.writeable and copy.dtype == np.float32
    np.testing.assert_array_equal(copy, numbers.reshape(100, 1000).T)
    np.testing.assert_array_equal(read, copy)  # what was let go of can be read again
