"""Thousands of damaged Keras files."""

import keras_files
import numpy as np
import pytest
from fuzzing import mutate, survive

from jtl.pretrained.formats import keras


def damaged(rng, data):
    """Mostly where there is something: HDF5 files are largely empty."""
    at = int(rng.choice(np.flatnonzero(np.frombuffer(data, np.uint8))))
    return mutate(rng, data, (at, at + 8))


@pytest.mark.parametrize('name, count', [('keras2', 1200), ('keras3', 600), ('latest', 600), ('windows', 300)])
def test_h5_survives_damage(tmp_path, name, count):
    rng, whole = np.random.default_rng(0), keras_files.whole(name)
    found = survive(keras.read, tmp_path / 'x.h5', (damaged(rng, whole) for _ in range(count)), memory=2**21)
    assert 0.05 * count < found['read'] < 0.9 * count


@pytest.mark.parametrize('member', ['config.json', 'model.weights.h5', None])
def test_keras_archive_survives_damage(tmp_path, member):
    rng = np.random.default_rng(0)

    def file():
        if member is None:
            return damaged(rng, keras_files.archive('keras3_0'))
        part = 'keras3_0.config' if member == 'config.json' else 'keras3_0.weights'
        return keras_files.archive('keras3_0', **{member: damaged(rng, keras_files.whole(part))})

    found = survive(keras.read, tmp_path / 'x.keras', (file() for _ in range(250)), memory=2**21)
    assert found['refused'] > 25 and (found['read'] > 10 or member is None)
