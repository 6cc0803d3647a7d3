"""Gluon's trained ResNet-50 v2, of which the first three stages are there: features of cats and dogs."""

import io
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jtl import tree
from jtl.models import build, preprocess
from jtl.pretrained.recognise import recognise

SHARED = Path(__file__).resolve().parents[2].parent / 'shared'
WEIGHTS = SHARED / 'weights' / 'resnet50v2_imagenet_stage123' / 'weights.npz'
PICTURES = SHARED / 'data' / 'catsdogs' / 'catsdogs.zip'
EACH = 30  # pictures of a class and a split
pytestmark = pytest.mark.skipif(not (WEIGHTS.exists() and PICTURES.exists()), reason='needs ../shared')


def pictures(split):
    """The centre 224 of each picture at 256, normalised, and its class: [B, 224, 224, 3], [B]."""
    mean, std = (np.float32(preprocess('resnetv2_50')[key]) for key in ('mean', 'std'))
    images, labels = [], []
    with zipfile.ZipFile(PICTURES) as archive:
        for label, name in enumerate(('cats', 'dogs')):
            paths = sorted(path for path in archive.namelist() if path.startswith(f'{split}/{name}/'))
            for path in [path for path in paths if path.endswith('.jpg')][:EACH]:
                image = Image.open(io.BytesIO(archive.read(path))).convert('RGB')
                width, height = (round(x * 256 / min(image.size)) for x in image.size)
                left, top = (width - 224) // 2, (height - 224) // 2
                image = image.resize((width, height), Image.BILINEAR).crop((left, top, left + 224, top + 224))
                images.append((np.asarray(image, np.float32) / 255 - mean) / std)
                labels.append(label)
    return np.stack(images), np.array(labels)


def nearest_class_mean(features, splits):
    """The accuracy of giving each picture the class whose mean feature, on the training split, is nearest."""
    (train, train_labels), (test, test_labels) = ((features(images), labels) for images, labels in splits)
    means = np.stack([train[train_labels == label].mean(0) for label in (0, 1)])  # [2, D]
    distance = ((test[:, None] - means) ** 2).sum(-1)  # [B, 2]
    return (distance.argmin(1) == test_labels).mean()


@pytest.fixture(scope='module')
def known():
    with np.load(WEIGHTS) as archive:
        return recognise(dict(archive), {}, str(WEIGHTS))


def test_real_resnetv2_is_recognised_and_every_tensor_accounted_for(known):
    assert known.model == {'name': 'resnetv2_50'} and known.dialect.name == 'gluon'
    assert not known.translation.unknown and not known.translation.left
    assert len(known.translation.leaves) == 249 - 2  # the ones and zeros of the input's BatchNorm


def test_real_resnetv2_cut_to_three_stages_tells_cats_from_dogs(known):
    """On all 300 + 300 and 150 + 150 pictures it is 0.897, at random weights 0.570; here it is a sample of them."""
    model = build('resnetv2_50', 2, depth=3)
    init = lambda: model.init(jax.random.key(0), {'image': np.zeros((1, 64, 64, 3), np.float32)}, train=False)
    fresh = tree.flatten(jax.jit(init)())
    theirs = {path.removeprefix('model/'): leaf for path, leaf in known.translation.leaves.items()}
    theirs = {path if path.startswith('batch_stats/') else f'params/{path}': leaf for path, leaf in theirs.items()}
    needed = {path for path in fresh if '/head/' not in f'/{path}'}
    assert needed <= set(theirs)  # nothing of the first three stages is missing
    assert all(fresh[path].shape == theirs[path].shape for path in needed)
    run = jax.jit(lambda variables, images: model.apply(variables, {'image': images}, train=False)['features'])

    def features(leaves):
        variables = tree.unflatten({path: np.asarray(leaf) for path, leaf in leaves.items()})
        return lambda images: np.concatenate([run(variables, images[i : i + 20]) for i in range(0, len(images), 20)])

    splits = pictures('train'), pictures('test')
    trained = nearest_class_mean(features({**fresh, **{path: theirs[path] for path in needed}}), splits)
    random = nearest_class_mean(features(fresh), splits)
    print(f'nearest class mean: {trained:.3f}, at random weights {random:.3f}')
    assert trained >= 0.75 and trained >= random + 0.2, (trained, random)
