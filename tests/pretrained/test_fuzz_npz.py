"""Thousands of damaged .npz files."""

import io
import zipfile

import numpy as np
import pytest
from fuzzing import mutate, survive

from jtl.pretrained.formats import npz

ARRAYS = {
    'Transformer/encoderblock_0/scale': np.arange(300, dtype=np.float32).reshape(30, 10),
    'head/kernel': np.asfortranarray(np.ones((4, 2), '>f2')),
    'step': np.int64(7),
}
COUNT = 1100


def inside(rng, write):
    """An archive that is sound, of members one of which is not."""
    with zipfile.ZipFile(out := io.BytesIO(), 'w', write) as archive:
        bad = rng.choice(list(ARRAYS))
        for name, x in ARRAYS.items():
            np.save(file := io.BytesIO(), x)
            data = file.getvalue()
            archive.writestr(f'{name}.npy', mutate(rng, data, (0, 128)) if name == bad else data)
    return out.getvalue()


@pytest.mark.parametrize('save, write', [(np.savez, zipfile.ZIP_STORED), (np.savez_compressed, zipfile.ZIP_DEFLATED)])
def test_npz_survives_damage(tmp_path, save, write):
    save(whole := io.BytesIO(), **ARRAYS)
    rng, path = np.random.default_rng(0), tmp_path / 'x.npz'
    outer = survive(npz.read, path, (mutate(rng, whole.getvalue()) for _ in range(COUNT)), memory=2**21)
    inner = survive(npz.read, path, (inside(rng, write) for _ in range(COUNT)), memory=2**21)
    assert 0 < outer['read'] < COUNT / 3  # a checksum guards what is inside
    assert 0 < inner['read'] < 0.9 * COUNT
