"""Real MobileNets on real photographs of cats and dogs; skipped where the weights or the pictures are absent."""

import pytest
from real import PICTURES, SHARED, real

V1 = SHARED / 'weights/mobilenet_v1_0.75_224_imagenet'
V2 = SHARED / 'weights/mobilenetv2_imagenet_notop'


@pytest.mark.skipif(not V1.exists() or not PICTURES.exists(), reason='needs the shared weights and pictures')
def test_mobilenetv1_names_cats_and_dogs():
    """By its own 1000 labels, 118 of which are breeds of dogs and 5 of cats: chance is 12 % and 0.5 %."""
    net = real(f'npz:{V1 / "weights.npz"}', classes=None, labels=str(V1 / 'metadata.json'))
    labels = net.weights.classes
    assert labels[151].startswith('Chihuahua') and labels[268].startswith('Mexican hairless')
    assert labels[281].startswith('tabby') and labels[285].startswith('Egyptian cat')
    assert net.weights.model['name'] == 'mobilenetv1_0.75' and net.weights.model['padding'] == 'after'
    images, label = net.photographs('test')
    top = net.run(images, 'logits').argmax(-1)
    cat, dog = (top >= 281) & (top <= 285), (top >= 151) & (top <= 268)
    assert dog[label == 1].mean() >= 0.8 and cat[label == 1].mean() <= 0.1
    assert cat[label == 0].mean() >= 0.5 and dog[label == 0].mean() <= 0.3


@pytest.mark.skipif(not V2.exists() or not PICTURES.exists(), reason='needs the shared weights and pictures')
def test_mobilenetv2_features_tell_cats_from_dogs():
    """Chance is 50 %, with a standard deviation of 8 % for 40 pictures. With all 600 training and 300 test pictures it
    is 91 %, and 60 % with random weights."""
    net = real(f'npz:{V2 / "weights.npz"}')
    assert net.weights.model == {'name': 'mobilenetv2', 'expand_first': True}
    accuracy, at_random = net.nearest_class_mean()
    assert accuracy >= 0.7 and accuracy >= at_random + 0.2, (accuracy, at_random)
