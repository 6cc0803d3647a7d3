"""Layers from the input to the output, of every family; nothing is computed."""

import re

import jax
import numpy as np
import pytest

from jtl import tree
from jtl.models import build
from jtl.models.order import order

IMAGE = {'image': np.zeros((1, 32, 32, 3), np.float32)}
FEATURES = {'features': np.zeros((1, 5), np.float32)}
TOKENS = {'tokens': np.ones((1, 5), np.int32)}


def ordered(name, batch, **kwargs):
    model = build(name, 3, **kwargs)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    return order(model, variables, batch), [p for p in tree.flatten(variables['params']) if p.startswith('backbone/')]


def matching(regex, paths):
    return [path for path in paths if regex and re.fullmatch(regex, path)]


TOKENLESS = {'fc_norm': True, 'pre_logits': 5, 'class_token': False, 'pool': 'mean'}


@pytest.mark.parametrize(
    ('name', 'kwargs', 'batch', 'blocks', 'below', 'above'),
    [
        ('vit', {'depth': 3}, IMAGE, 3, ['class_token', 'patch', 'position'], ['norm']),
        ('vit', TOKENLESS, IMAGE, 2, ['patch', 'position'], ['fc_norm', 'pre_logits']),
        ('bert_tiny', {'remat': True}, TOKENS, 2, ['norm', 'position', 'token_type', 'word'], ['pooler']),
        ('resnet', {}, IMAGE, 4, [], []),
        ('resnetv2_18', {}, IMAGE, 9, [], ['norm']),
        ('mobilenetv2', {}, IMAGE, 18, [], ['last']),
        ('conv4', {}, IMAGE, 4, [], []),
        ('mlp', {'hidden': (8, 4)}, FEATURES, 2, [], []),
    ],
)
def test_order_has_every_parameter_once(name, kwargs, batch, blocks, below, above):
    found, paths = ordered(name, batch, **kwargs)
    assert len(found.blocks) == blocks
    children = lambda regex: sorted({path.split('/')[1] for path in matching(regex, paths)})
    assert (children(found.below), children(found.above)) == (below, above)
    groups = [matching(regex, paths) for regex in (found.below, *found.blocks, found.above)]
    assert sorted(path for group in groups for path in group) == sorted(paths)


def test_order_is_that_of_execution():
    # by name, block10 would come before block2, and a norm that comes last before the patches that come first
    found, paths = ordered('vit', IMAGE, depth=11, width=8, heads=2)
    assert [matching(regex, paths)[0].split('/')[1] for regex in found.blocks] == [f'block{i}' for i in range(11)]


def test_order_finds_norms_and_nothing_else():
    found, paths = ordered('vit', IMAGE)
    norms = {path.rsplit('/', 2)[-2] for path in matching(found.norms, paths)}
    assert norms == {'norm', 'norm1', 'norm2'} and len(matching(found.norms, paths)) == 2 * (2 * 2 + 1)
    assert ordered('mlp', FEATURES)[0].norms is None
