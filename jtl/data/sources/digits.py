"""`digits`: handwritten digits, 8×8 gray, 10 classes, 1,797 pictures. Bundled: needs no download.

The test set of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), as scikit-learn ships it: 32×32
bitmaps whose 4×4 blocks were counted. The ink is bright (0–16, scaled here to 0–255). The source has no split of its
own, so it is divided here, the same way in every class and every time.
"""

import numpy as np
import tensorflow_datasets as tfds

from jtl.data.source import Source
from jtl.data.sources import tfds as tfds_source

TRAIN_FRACTION = 1000 / 1797


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's digits as a TFDS data set: about 1,000 for training, 797 for testing."""

    VERSION = tfds.core.Version('1.0.0')
    code_path = None  # there are no checksums to find beside it; TFDS looks with a package that it does not require

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='8×8 handwritten digits (UCI optdigits test set).',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # a second to import, and only needed once

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
        train = _stratified(data.target, TRAIN_FRACTION)
        return {
            'train': self._generate_examples(images[train], data.target[train]),
            'test': self._generate_examples(images[~train], data.target[~train]),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels)):
            yield i, {'image': tfds_source.encode_png(image), 'label': int(label)}


def _stratified(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """A mask [N] that is true for `fraction` of each class, drawn at random. labels: [N]."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        mask[members[: round(fraction * len(members))]] = True
    return mask


def read(path: str) -> Source:
    """Prepare the data on first use (about two seconds), then read it like any TFDS data set."""
    tfds_source.prepare_bundled(Digits)
    return tfds_source.read('digits')
