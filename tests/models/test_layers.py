"""What blocks give on the way, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import init, jit

from jtl.errors import UserError
from jtl.models import build
from jtl.models.layers import extract, is_deterministic, shapes

PICTURES = {'image': np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)}
TOKENS = {'tokens': np.array([[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]], np.int32)}  # of the second, three are padding
RESNET = {'name': 'resnet', 'stages': (2, 1), 'width': 4}
VIT = {'name': 'vit', 'width': 8, 'depth': 2, 'heads': 2, 'patch': 8}
BERT = {'name': 'bert', 'width': 8, 'depth': 2, 'heads': 2, 'vocab': 12, 'positions': 8}


def made(batch, **kwargs):
    model = build(num_classes=3, **kwargs)
    return model, init(model, batch)


def outlined(batch, **kwargs):
    model = build(num_classes=3, **kwargs)
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))


def test_layers_are_named_by_their_path_in_the_order_of_their_execution():
    assert shapes(*outlined(PICTURES, **RESNET), PICTURES) == {
        'stem': (4,),
        'stage1/block0': (4,),
        'stage1/block1': (4,),
        'stage2/block0': (8,),
        'features': (8,),
    }
    assert list(shapes(*outlined(PICTURES, **VIT), PICTURES)) == ['block0', 'block1', 'features']
    deep = {'name': 'mobilenetv2', 'depth': 12}  # block10 comes after block9
    assert list(shapes(*outlined(PICTURES, **deep), PICTURES))[:13] == ['stem', *(f'block{i}' for i in range(12))]


def test_layers_unpooled_have_the_shapes_of_their_maps():
    assert shapes(*outlined(PICTURES, **RESNET), PICTURES, pool='none')['stage1/block0'] == (16, 16, 4)
    assert shapes(*outlined(PICTURES, **VIT), PICTURES, pool='none')['block0'] == (5, 8)


@pytest.mark.parametrize('config', [RESNET, VIT, {**RESNET, 'remat': True}, {**VIT, 'remat': True}])
def test_layers_are_what_flax_captures(config):
    model, variables = made(PICTURES, **config)
    names = tuple(shapes(model, variables, PICTURES))
    found = jit(lambda v: extract(model, v, PICTURES, names, 'none'))(variables)
    plain = build(num_classes=3, **{**config, 'remat': False})
    outputs, seen = plain.apply(variables, PICTURES, train=False, capture_intermediates=True, mutable=['intermediates'])
    for name in names[:-1]:
        node = seen['intermediates']['backbone']
        for key in name.split('/'):
            node = node[key]
        np.testing.assert_allclose(found[name], node['__call__'][0], atol=1e-5)
    np.testing.assert_allclose(found['features'], outputs['features'], atol=1e-5)


def test_mean_leaves_out_padding_and_class_tokens():
    model, variables = made(TOKENS, **BERT)
    raw = extract(model, variables, TOKENS, ('block0',), 'none')['block0']  # [2, 5, 8]
    mean = extract(model, variables, TOKENS, ('block0',))['block0']
    np.testing.assert_allclose(mean, [raw[0].mean(0), raw[1, :2].mean(0)], atol=1e-6)
    model, variables = made(PICTURES, **VIT)
    raw = extract(model, variables, PICTURES, ('block1',), 'none')['block1']  # [3, 1 + 4, 8]
    np.testing.assert_allclose(
        extract(model, variables, PICTURES, ('block1',))['block1'], raw[:, 1:].mean(1), atol=1e-6
    )
    token = extract(model, variables, PICTURES, ('block1',), 'token')['block1']
    np.testing.assert_array_equal(token, raw[:, 0])


def test_layers_refuses_what_is_not_there():
    model, variables = made(PICTURES, **RESNET)
    with pytest.raises(UserError, match=r"'stage3/block0'.*did you mean 'stage2/block0'"):
        extract(model, variables, PICTURES, ('stage3/block0',))
    with pytest.raises(UserError, match='no tokens'):
        extract(model, variables, PICTURES, ('stem',), 'token')
    with pytest.raises(UserError, match="pool 'men'.*did you mean 'mean'"):
        extract(model, variables, PICTURES, ('stem',), 'men')


@pytest.mark.parametrize(
    'config, expected',
    [(RESNET, True), (VIT, True), ({**VIT, 'dropout': 0.1}, False), ({**VIT, 'drop_path': 0.1}, False)],
)
def test_is_deterministic_sees_what_training_drops(config, expected):
    assert is_deterministic(*outlined(PICTURES, **config), PICTURES) is expected


def test_an_embedding_takes_the_place_of_what_the_backbone_reads():
    model, variables = made(PICTURES, **RESNET)
    whole = model.apply(variables, PICTURES, train=False)
    short = model.apply(variables, {'embedding': jnp.asarray(whole['features'])}, train=False)
    np.testing.assert_array_equal(short['logits'], whole['logits'])
    cost = lambda batch: jax.jit(lambda v, b: model.apply(v, b, train=True)).lower(variables, batch).cost_analysis()
    assert cost({'embedding': whole['features']})['flops'] < 1000
