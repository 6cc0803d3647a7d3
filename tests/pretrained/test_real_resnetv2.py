"""Gluon's trained ResNet-50 v2, of which the first three stages are there: features of cats and dogs."""

import pytest
from real import PICTURES, SHARED, real

from jtl import tree
from jtl.pretrained import source
from jtl.pretrained.recognise import recognise

WEIGHTS = SHARED / 'weights' / 'resnet50v2_imagenet_stage123' / 'weights.npz'
pytestmark = pytest.mark.skipif(not (WEIGHTS.exists() and PICTURES.exists()), reason='needs ../shared')


def test_real_resnetv2_is_recognised_and_every_tensor_accounted_for():
    known = recognise(source.read(f'npz:{WEIGHTS}').tensors, {}, str(WEIGHTS))
    assert known.model == {'name': 'resnetv2_50'} and known.dialect.name == 'gluon'
    assert not known.translation.unknown and not known.translation.left
    assert len(known.translation.leaves) == 249 - 2  # the ones and zeros of the input's BatchNorm


def test_real_resnetv2_cut_to_three_stages_tells_cats_from_dogs():
    """On all 300 + 300 and 150 + 150 pictures it is 0.897, at random weights 0.570; here it is a sample of them."""
    net = real(f'npz:{WEIGHTS}', depth=3)
    assert net.weights.model == {'name': 'resnetv2_50'}
    kept = tree.flatten(net.variables['params'])
    assert not any('/stage4/' in path and '/stage4/block0/bn1/' not in path for path in kept)
    accuracy, at_random = net.nearest_class_mean()
    assert accuracy >= 0.75 and accuracy >= at_random + 0.2, (accuracy, at_random)
