"""`digits` and `letters`."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jtl.data.sources import digits, letters


def images(split):
    return np.stack([split.get(i)['image'] for i in range(len(split.labels))])


@pytest.fixture(scope='module')
def both():
    return digits.read(''), letters.read('')


def test_digits_are_those_of_scikit_learn(both):
    source, _ = both
    assert source.classes == tuple('0123456789') and source.channels == 1
    assert {name: len(split.labels) for name, split in source.splits.items()} == {'train': 1000, 'test': 797}
    found = [(label, image.tobytes()) for s in source.splits.values() for label, image in zip(s.labels, images(s))]
    data = load_digits()
    expected = np.round(data.images * 255 / 16).astype(np.uint8)
    assert sorted(found) == sorted((label, image.tobytes()) for label, image in zip(data.target, expected))


def test_digits_are_stratified(both):
    # Classes have 174 to 183 examples, of which 1000/1797 are for training: 97 to 102.
    counts = np.bincount(both[0].splits['train'].labels)
    assert counts.min() >= 97 and counts.max() <= 102


def test_letters_have_all_classes(both):
    source = both[1]
    assert source.classes == letters.LETTERS and len(source.classes) == 52 and source.channels == 1
    np.testing.assert_array_equal(np.bincount(source.splits['train'].labels), [160] * 52)
    np.testing.assert_array_equal(np.bincount(source.splits['val'].labels), [20] * 52)
    assert source.splits['train'].get(0)['image'].shape == (8, 8, 1)


def test_letters_look_like_digits(both):
    """Ink of the same amount and contrast; the tolerances are those of the module's docstring."""
    d, l = (images(source.splits['train']) / 255.0 for source in both)
    assert abs(d.mean() - l.mean()) < 0.03
    assert abs(d.std() - l.std()) < 0.03
    assert abs(d.mean((1, 2, 3)).std() - l.mean((1, 2, 3)).std()) < 0.03


def test_letters_can_be_told_apart(both):
    """The nearest of the class means, on validation: far above chance (2 %), though c and C are hard."""
    train, val = both[1].splits['train'], both[1].splits['val']
    x, y = images(train).reshape(-1, 64).astype(float), train.labels
    means = np.stack([x[y == label].mean(0) for label in range(52)])
    distance = ((images(val).reshape(-1, 1, 64).astype(float) - means) ** 2).sum(-1)
    assert (distance.argmin(1) == val.labels).mean() > 0.4


def test_letters_are_the_same_each_time():
    class Fake:
        _generate_examples = letters.Letters._generate_examples

    fonts = letters._fonts()
    first, second = ([example['image'] for _, example in Fake()._generate_examples(fonts, 1, seed)] for seed in (0, 0))
    assert first == second
    assert first != [example['image'] for _, example in Fake()._generate_examples(fonts, 1, 1)]


def test_bundled_data_needs_no_tensorflow(both):
    get = pickle.dumps(both[1].splits['train'].get)
    code = (
        'import pickle, sys; from jtl.data.sources import digits, letters; '
        'digits.read("").splits["test"].get(0), letters.read("").splits["val"].get(0); '
        f'assert pickle.loads({get!r})(3)["image"].shape == (8, 8, 1); '
        'assert not {"tensorflow", "torch"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
