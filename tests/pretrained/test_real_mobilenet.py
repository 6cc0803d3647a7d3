"""Real MobileNets on real photographs of cats and dogs; skipped where the weights or the pictures are absent."""

import functools
import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jtl import tree
from jtl.models import build
from jtl.pretrained import load

SHARED = Path(__file__).resolve().parents[2].parent / 'shared'
V1 = SHARED / 'weights/mobilenet_v1_0.75_224_imagenet'
V2 = SHARED / 'weights/mobilenetv2_imagenet_notop'
PICTURES = SHARED / 'data/catsdogs/catsdogs.zip'


def photographs(split, count, preprocess, size=224):
    """`count` cats and as many dogs: images [2·count, size, size, 3] as the weights expect them, and labels 0 or 1."""
    images, labels = [], []
    with zipfile.ZipFile(PICTURES) as archive:
        for label, name in enumerate(('cats', 'dogs')):
            files = sorted(file for file in archive.namelist() if file.startswith(f'{split}/{name}/'))
            for file in [file for file in files if file.endswith('.jpg')][:count]:
                picture = Image.open(io.BytesIO(archive.read(file))).convert('RGB')
                scale = size / preprocess['crop'] / min(picture.size)
                width, height = (round(side * scale) for side in picture.size)
                left, top = (width - size) // 2, (height - size) // 2
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
                images.append(np.asarray(picture.crop((left, top, left + size, top + size)), np.float32) / 255)
                labels.append(label)
    return ((np.stack(images) - preprocess['mean']) / preprocess['std']).astype(np.float32), np.array(labels)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, {'image': images}, train=False)


def run(model, variables, images, output):
    return np.concatenate([apply(model, variables, images[i : i + 20])[output] for i in range(0, len(images), 20)])


@pytest.mark.skipif(not V1.exists() or not PICTURES.exists(), reason='needs the shared weights and pictures')
def test_mobilenetv1_names_cats_and_dogs():
    """By its own 1000 labels, 118 of which are breeds of dogs and 5 of cats: chance is 12 % and 0.5 %."""
    labels = json.loads((V1 / 'metadata.json').read_text())['labels']
    assert labels[151].startswith('Chihuahua') and labels[268].startswith('Mexican hairless')
    assert labels[281].startswith('tabby') and labels[285].startswith('Egyptian cat')
    weights = load.load(f'npz:{V1 / "weights.npz"}')
    assert weights.model['name'] == 'mobilenetv1_0.75' and weights.model['padding'] == 'after'
    images, label = photographs('test', 30, weights.preprocess)
    model = build(num_classes=1000, **weights.model)
    top = run(model, {'params': weights.params, **weights.state['model']}, images, 'logits').argmax(-1)
    cat, dog = (top >= 281) & (top <= 285), (top >= 151) & (top <= 268)
    assert dog[label == 1].mean() >= 0.8 and cat[label == 1].mean() <= 0.1
    assert cat[label == 0].mean() >= 0.5 and dog[label == 0].mean() <= 0.3


def nearest_class_mean(model, variables, train, test):
    """Accuracy of giving each picture the class whose mean features are nearest."""
    (images, labels), (others, expected) = train, test
    features = run(model, variables, images, 'features')
    means = np.stack([features[labels == label].mean(0) for label in (0, 1)])  # [K, D]
    distances = ((run(model, variables, others, 'features')[:, None] - means) ** 2).sum(-1)  # [B, K]
    return (distances.argmin(-1) == expected).mean()


@pytest.mark.skipif(not V2.exists() or not PICTURES.exists(), reason='needs the shared weights and pictures')
def test_mobilenetv2_features_tell_cats_from_dogs():
    """Chance is 50 %; three standard deviations of 60 pictures above it are 70 %. With all 600 training and 300 test
    pictures it is 91 %, and 60 % with random weights."""
    weights = load.load(f'npz:{V2 / "weights.npz"}')
    assert weights.model == {'name': 'mobilenetv2', 'expand_first': True}
    model = build(num_classes=2, **weights.model)
    train, test = (photographs(split, 30, weights.preprocess) for split in ('train', 'test'))
    fresh = jax.jit(model.init, static_argnames='train')(jax.random.key(0), {'image': train[0][:1]}, train=False)
    params = {**weights.params, 'head': fresh['params']['head']}
    loaded = {'params': params, **weights.state['model']}
    assert tree.flatten(loaded).keys() == tree.flatten(fresh).keys()
    accuracy = nearest_class_mean(model, loaded, train, test)
    at_random = nearest_class_mean(model, fresh, train, test)
    assert accuracy >= 0.7 and accuracy >= at_random + 0.2
