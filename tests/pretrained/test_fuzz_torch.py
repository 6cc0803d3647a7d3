"""Two thousand damaged files of each format: arrays or a UserError, never another exception, a hang, or much memory."""

import io
import json
import struct
import zipfile

import numpy as np
from fuzzing import mutate, survive
from torchfiles import call, legacy, name, pickled, tensor

from jtl.pretrained.formats import safetensors, torch

FILES = 2000
STORAGES = {'0': np.arange(12, dtype=np.float32), '1': np.array([7]), '2': np.arange(4, dtype=np.float16)}
TOP = {
    'state_dict': {
        'conv1.weight': tensor('0', (3, 4)),
        'conv1.bias': tensor('0', (3,), 12, offset=3, strides=(2,)),
        'steps': tensor('1', (), kind='LongStorage'),
        'half': call(name('torch._utils', '_rebuild_parameter'), tensor('2', (2, 2), kind='HalfStorage'), True, {}),
    },
    'epoch': 90,
    'lr': 0.1,
    'shape': call(name('torch', 'Size'), (1, 2)),
    'history': [1, (2, None), 'three'],
}


def zipped(pickle: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as archive:
        archive.writestr('a/data.pkl', pickle)
        archive.writestr('a/byteorder', 'little')
        for key, x in STORAGES.items():
            archive.writestr(f'a/data/{key}', x.tobytes())
    return out.getvalue()


def test_read_survives_damaged_archives(tmp_path):
    """Of stored and of deflated members: the headers before and behind them are what changes most."""
    rng = np.random.default_rng(0)
    pair = [zipped(pickled(TOP), method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    whole = [(data, (data.index(b'PK\1\2'), len(data)) if i % 4 else None) for i in range(FILES // 2) for data in pair]
    files = (mutate(rng, data, hot) for data, hot in whole)
    counts = survive(torch.read, tmp_path / 'x.pth', files, 2**20)
    assert counts['refused'] > FILES // 2 and counts['read'] > 20, counts


def test_read_survives_damaged_pickles_in_archives(tmp_path):
    """With the right checksum, so that the pickle is read."""
    rng, pickle = np.random.default_rng(1), pickled(TOP)
    files = (zipped(mutate(rng, pickle)) for _ in range(FILES))
    counts = survive(torch.read, tmp_path / 'x.pth', files, 2**20)
    assert counts['refused'] > FILES // 2 and counts['read'] > 20, counts


def test_read_survives_damaged_files_of_the_old_format(tmp_path):
    rng, data = np.random.default_rng(2), legacy(TOP, STORAGES)
    files = (mutate(rng, data, (80, len(data) - 60)) for _ in range(FILES))
    counts = survive(torch.read, tmp_path / 'x.pth', files, 2**20)
    assert counts['refused'] > FILES // 2 and counts['read'] > 20, counts


def test_read_survives_random_pickles(tmp_path):
    """Instructions in any order, most of which exist."""
    rng = np.random.default_rng(3)
    known = [pickled(value)[2:-1] for value in (*TOP.values(), *TOP['state_dict'].values(), {}, (), [], None, 1, 'w')]
    known += [b'%c' % c for c in b'()0123tNsaeudb\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94RQ]}'] * 3
    known += [op + struct.pack('<B', i) for op in (b'q', b'h') for i in range(3)] * 2
    files = (
        zipped(b'\x80\x02' + b''.join(known[k] for k in rng.integers(len(known), size=rng.integers(1, 30))) + b'.')
        for _ in range(FILES)
    )
    survive(torch.read, tmp_path / 'x.pth', files, 2**20)


def test_read_survives_damaged_safetensors(tmp_path):
    rng = np.random.default_rng(4)
    header = {
        '__metadata__': {'format': 'pt'},
        'a': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
        'b': {'dtype': 'BF16', 'shape': [4], 'data_offsets': [24, 32]},
        'c': {'dtype': 'I64', 'shape': [], 'data_offsets': [32, 40]},
    }
    text = json.dumps(header).encode()
    data = struct.pack('<Q', len(text)) + text + bytes(range(40))
    files = (mutate(rng, data, (0, len(text) + 8)) for _ in range(FILES))
    counts = survive(safetensors.read, tmp_path / 'x.safetensors', files, 2**20)
    assert counts['refused'] > FILES // 2 and counts['read'] > 20, counts
