"""Arrays in .npz files."""

import pickle

import numpy as np
import pytest

from jtl.data.sources import npz
from jtl.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
F = RNG.normal(size=(4, 7))
Y = np.array([1, 0, 2, 1])


def save(tmp_path, **arrays):
    np.savez(tmp_path / 'a.npz', **arrays)
    return str(tmp_path / 'a.npz')


@pytest.mark.parametrize(
    'keys',
    [
        ('train_images', 'train_labels', 'val_images', 'val_labels', 'test_images', 'test_labels'),
        ('x_train', 'y_train', 'x_valid', 'y_valid', 'x_test', 'y_test'),
        ('train_x', 'train_y', 'dev_data', 'dev_label', 'Test_image', 'Test_Labels'),
    ],
)
def test_npz_reads_splits(keys, tmp_path):
    source = npz.read(save(tmp_path, **dict(zip(keys, (X, Y, X[:2], Y[:2], X[2:], Y[2:])))))
    assert source.classes == ('0', '1', '2') and source.channels == 3
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        'train': [1, 0, 2, 1],
        'val': [1, 0],
        'test': [2, 1],
    }
    assert source.splits['train'].labels.dtype == np.int32
    get = pickle.loads(pickle.dumps(source.splits['test'].get))
    np.testing.assert_array_equal(get(1)['image'], X[3])


def test_npz_reads_one_split_of_features(tmp_path):
    source = npz.read(save(tmp_path, x=F, y=Y, classes=['a', 'b', 'c'], note=np.zeros(1)))
    assert source.classes == ('a', 'b', 'c') and source.channels is None and list(source.splits) == ['train']
    features = source.splits['train'].get(2)['features']
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, F[2].astype(np.float32))


def test_npz_reads_gray_and_columns_of_labels(tmp_path):
    source = npz.read(save(tmp_path, x=X[..., 0], y=Y[:, None]))
    assert source.channels == 1 and source.splits['train'].get(0)['image'].shape == (5, 6, 1)
    np.testing.assert_array_equal(source.splits['train'].labels, Y)


def test_npz_scales_floats(tmp_path):
    x = np.full((4, 2, 2), 0.5)
    x[0, 0, 0] = 1
    # round(0.5 * 255) = round(127.5) = 128, to even
    image = npz.read(save(tmp_path, x=x, y=Y)).splits['train'].get(0)['image']
    np.testing.assert_array_equal(image[..., 0], [[255, 128], [128, 128]])


@pytest.mark.parametrize('dtype', [np.float32, np.int64, bool])
def test_npz_reads_multi_label(dtype, tmp_path):
    y = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], dtype)
    source = npz.read(save(tmp_path, x=X, y=y))
    assert source.classes == ('0', '1', '2') and source.splits['train'].labels.dtype == np.float32
    np.testing.assert_array_equal(source.splits['train'].labels, y)


NAN = F.copy()
NAN[2, 3] = np.nan


@pytest.mark.parametrize(
    'arrays, message',
    [
        ({'train_imgs': X, 'train_labels': Y}, 'no train_images or x_train; it has: train_imgs, train_labels'),
        ({'x': X}, 'no train_labels or y_train; it has: x'),
        ({'x_test': X, 'y_test': Y}, 'no train_images or x_train'),
        ({'x_train': X, 'y_train': Y, 'x_test': X}, 'no test_labels or y_test'),
        ({'x_train': X, 'train_images': X, 'y_train': Y}, 'two arrays for the same thing'),
        ({'x': X, 'y': Y[:3]}, r'train labels have shape \(3,\), but there are 4 inputs'),
        ({'x': X[:0], 'y': Y[:0]}, 'no examples'),
        ({'x': X, 'y': Y.astype(float)}, 'type float64: expected integers'),
        ({'x': X, 'y': np.array(['a', 'b', 'c', 'd'])}, 'expected integers'),
        ({'x': X, 'y': Y - 1}, 'row 1 is -1: labels count from 0'),
        ({'x': X, 'y': [0, 1, 3, 3]}, 'labels go up to 3, but class 2 has no training example'),
        ({'x': X, 'y': Y, 'classes': ['a', 'b']}, 'row 2 of train has label 2, but classes names 2'),
        ({'x_train': X, 'y_train': Y, 'x_val': X, 'y_val': Y + 1}, 'class 3 is in val but has no training example'),
        ({'x': X, 'y': np.full((4, 3), 2)}, 'must be 0 or 1'),
        ({'x': X, 'y': np.eye(4), 'classes': ['a']}, '4 columns, but there are 1 classes'),
        ({'x': X.astype(np.int32), 'y': Y}, 'type int32: expected uint8'),
        ({'x': X / 2.0, 'y': Y}, r'floats in \[0, 127.5\]: expected uint8, or floats in'),
        ({'x': np.full((4, 2, 2), np.nan), 'y': Y}, r'floats in \[nan, nan\]'),
        ({'x': X[..., :2], 'y': Y}, r'shape \(4, 5, 6, 2\): expected images'),
        ({'x': F[:, 0], 'y': Y}, r'shape \(4,\): expected images'),
        ({'x': NAN, 'y': Y}, 'row 2, column 3 is nan'),
        ({'x_train': X, 'y_train': Y, 'x_test': X[..., :1], 'y_test': Y}, 'different shapes'),
        ({'x_train': F, 'y_train': Y, 'x_test': F[:, :5], 'y_test': Y}, 'different shapes'),
        ({'x': X, 'y': np.array([{}, 1, 2, 3], object)}, 'arrays of Python objects'),
    ],
)
def test_npz_refuses(arrays, message, tmp_path):
    with pytest.raises(UserError, match=message):
        npz.read(save(tmp_path, **arrays))


def test_npz_refuses_other_files(tmp_path):
    (tmp_path / 'a.npz').write_bytes(b'hello')
    with pytest.raises(UserError, match='cannot read'):
        npz.read(str(tmp_path / 'a.npz'))
    np.save(tmp_path / 'b.npy', X)
    with pytest.raises(UserError, match='a single .npy array'):
        npz.read(str(tmp_path / 'b.npy'))
    with pytest.raises(UserError, match="did you mean 'a.npz'"):
        npz.read(str(tmp_path / 'aa.npz'))
