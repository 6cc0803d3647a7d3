"""ViT's name tables beside the numbers: which model it is, what it expects of a picture, what is refused."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.models import build
from jtl.pretrained.names import vit, vit_google
from jtl.pretrained.recognise import recognise
from jtl.pretrained.table import export, translate

DIALECTS = {dialect.name: dialect for dialect in (*vit.DIALECTS, *vit_google.DIALECTS)}


def shapes_of(model, size=32, classes=3):
    built = build(num_classes=classes, **model)
    init = lambda: built.init(jax.random.key(0), {'image': jnp.zeros((1, size, size, 3))}, train=False)
    return {path: leaf.shape for path, leaf in tree.flatten(jax.eval_shape(init)['params']).items()}


@pytest.mark.parametrize(
    'model, settings',
    [
        ({'name': 'vit_ti16'}, {}),
        ({'name': 'vit_l32'}, {'pool': 'token', 'activation': 'gelu', 'eps': 1e-6}),
        ({'name': 'vit_s8', 'eps': 1e-12}, {'eps': 1e-12}),
        ({'name': 'vit_b16', 'pre_logits': 768, 'activation': 'gelu_tanh'}, {'activation': 'gelu_tanh'}),
        ({'name': 'vit_ti16', 'distilled': True, 'pool': 'both'}, {'pool': 'both'}),
        ({'name': 'vit_ti16', 'class_token': False, 'pool': 'mean'}, {'pool': 'mean'}),
        ({'name': 'vit_ti16', 'fc_norm': True, 'pool': 'mean', 'qkv_bias': False}, {'pool': 'mean'}),
        ({'name': 'vit', 'patch': 4, 'width': 36, 'depth': 3, 'heads': 6, 'mlp_ratio': 1.25}, {'heads': 6}),
        ({'name': 'vit', 'patch': 16, 'width': 192, 'depth': 3, 'heads': 3}, {}),
        ({'name': 'vit', 'patch': 14, 'width': 1280, 'depth': 1, 'heads': 16}, {}),
    ],
)
def test_vit_is_known_by_its_shapes(model, settings):
    assert vit.model(shapes_of(model, size=56 if model.get('patch') == 14 else 32), settings) == model


@pytest.mark.parametrize(
    'left_out', ['head/.*', 'patch/.*', 'position', 'class_token', 'block0/.*', '.*bias', 'norm/.*']
)
def test_vit_is_known_by_most_of_its_shapes(left_out):
    some = {p: s for p, s in shapes_of({'name': 'vit_ti16'}).items() if not re.search(f'/{left_out}$|^{left_out}$', p)}
    model = vit.model(some, {'pool': 'token'})
    assert model == {'name': 'vit_ti16'} | ({'qkv_bias': False} if left_out == '.*bias' else {})


def test_vit_without_a_known_number_of_heads():
    shapes = shapes_of({'name': 'vit', 'patch': 4, 'width': 36, 'heads': 6})
    with pytest.raises(UserError, match='how many heads a width of 36'):
        vit.model(shapes, {})
    with pytest.raises(UserError, match='width 36 cannot be shared by 5 heads'):
        vit.model(shapes, {'heads': 5})


@pytest.mark.parametrize(
    'change, message',
    [
        ({'backbone/patch/kernel': (4, 8, 3, 64)}, 'expected square patches'),
        ({'backbone/block0/attn/query/kernel': (64, 32)}, r'queries \(64, 64\)'),
        ({path: None for path in shapes_of({'name': 'vit'}) if 'block' in path}, 'no blocks'),
    ],
)
def test_vit_that_is_not_built_is_named(change, message):
    shapes = {path: shape for path, shape in {**shapes_of({'name': 'vit'}), **change}.items() if shape}
    with pytest.raises(UserError, match=message):
        vit.model(shapes, {})


def leaves_of(model, size=32):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes_of(model, size).items()}


TINY = {'name': 'vit', 'patch': 8, 'width': 64, 'depth': 1, 'heads': 1}


@pytest.mark.parametrize(
    'dialect, added, message',
    [
        ('timm', 'blocks.0.ls1.gamma', 'blocks.0.ls1.gamma: .* a layer scale is not supported'),
        ('timm', 'reg_token', 'register tokens'),
        ('timm', 'attn_pool.latent', 'attention pooling'),
        ('timm', 'norm_pre.weight', 'a norm before the blocks'),
        ('timm', 'blocks.0.attn.q_norm.weight', 'normalised queries'),
        ('huggingface', 'vit.encoder.layer.0.layer_scale1.lambda1', 'a layer scale'),
    ],
)
def test_vit_variants_that_are_not_built_are_named(dialect, added, message):
    tensors = export(leaves_of(TINY), DIALECTS[dialect])
    recognise(tensors, {}, 'x')
    with pytest.raises(UserError, match=message):
        recognise({**tensors, added: np.zeros(64, np.float32)}, {}, 'x')


@pytest.mark.parametrize('added', ['MAPHead_0/probe', 'Transformer/encoderblock/LayerNorm_0/scale', 'gone'])
def test_vit_google_variants_that_are_not_built_are_named(added):
    """`gone`: the position embedding."""
    tensors = {'embedding/kernel': np.zeros((8, 8, 3, 64)), 'pos_embedding': np.zeros((1, 16, 64))}
    tensors = {'embedding/kernel': tensors['embedding/kernel']} if added == 'gone' else {**tensors, added: np.zeros(64)}
    with pytest.raises(UserError, match='not supported'):
        vit_google.settings_google(tensors, {})


@pytest.mark.parametrize(
    'dialect, config, message',
    [
        ('huggingface', {'hidden_act': 'quick_gelu'}, "hidden_act='quick_gelu'"),
        ('huggingface', {'num_attention_heads': 'two'}, "num_attention_heads='two'"),
        ('huggingface', {'layer_norm_eps': 'small'}, "layer_norm_eps='small' should be a number"),
        ('huggingface', {'layer_norm_eps': -1.0}, r'layer_norm_eps=-1\.0 should be a number from 1e-20 to 1'),
        ('huggingface', {'layer_norm_eps': '1e-12'}, "layer_norm_eps='1e-12'"),
        ('timm', {'global_pool': 'map'}, "global_pool='map'"),
        ('timm', {'model_args': {'no_embed_class': True}}, 'no_embed_class'),
        ('timm', {'model_args': {'act_layer': ['gelu']}}, 'act_layer='),
        ('timm', {'model_args': {'num_heads': 0}}, 'num_heads=0'),
        ('timm', {'model_args': {'num_heads': 5}}, '5 heads'),
    ],
)
def test_vit_configurations_that_are_not_built_are_named(dialect, config, message):
    tensors = export(leaves_of(TINY), DIALECTS[dialect])
    with pytest.raises(UserError, match=message):
        recognise(tensors, config, 'x')


def test_vit_pooler_of_another_activation_is_refused():
    tensors = export(leaves_of({**TINY, 'pre_logits': 5}), DIALECTS['huggingface'])
    with pytest.raises(UserError, match="pooler_act='relu'"):
        recognise(tensors, {'pooler_act': 'relu'}, 'x')


@pytest.mark.parametrize('dialect', ['timm', 'huggingface-deit', 'transformers5-deit'])
def test_vit_two_heads_round_trip_has_the_same_bits(dialect):
    """Ours becomes two heads of twice the kernel's halves and of equal biases, and is the same again after it."""
    leaves = leaves_of({**TINY, 'distilled': True, 'pool': 'both'})
    written = export(leaves, DIALECTS[dialect])
    back = translate(written, DIALECTS[dialect])
    assert not back.unknown and back.leaves.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(back.leaves[path], leaf)
    head = 'head_dist' if dialect == 'timm' else 'distillation_classifier'
    np.testing.assert_array_equal(written[f'{head}.weight'], 2 * leaves['head/kernel'][64:].T)
    np.testing.assert_array_equal(written[f'{head}.bias'], leaves['head/bias'])


@pytest.mark.parametrize('pool', ['token', 'mean'])
def test_vit_one_head_beside_a_distillation_token_stays_one(pool):
    leaves = leaves_of({**TINY, 'distilled': True, 'pool': pool})
    written = export(leaves, DIALECTS['huggingface-deit'])
    np.testing.assert_array_equal(written['classifier.weight'], leaves['head/kernel'].T)
    assert 'cls_classifier.weight' not in written


def test_vit_half_precision_heads_are_averaged_in_float32():
    """In float16 the half of the smallest number is 0."""
    tensors = export(leaves_of({**TINY, 'distilled': True, 'pool': 'both'}), DIALECTS['timm'])
    tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    tensors['head.weight'][:] = 2.0**-24
    kernel = translate(tensors, DIALECTS['timm']).leaves['head/kernel']
    np.testing.assert_array_equal(kernel[:64], np.float32(2.0**-25))


def test_vit_google_names_are_not_written():
    with pytest.raises(UserError, match='google have no place'):
        export(leaves_of(TINY), DIALECTS['google'])


def test_vit_that_a_library_has_no_names_for_is_not_written():
    with pytest.raises(UserError, match='torchvision have no place for backbone/distillation_token'):
        export(leaves_of({**TINY, 'distilled': True}), DIALECTS['torchvision'])
    with pytest.raises(UserError, match='huggingface have no place for backbone/fc_norm'):
        export(leaves_of({**TINY, 'fc_norm': True, 'pool': 'mean'}), DIALECTS['huggingface'])


@pytest.mark.parametrize(
    'dialect, distilled, expected',
    [
        ('timm', False, {'mean': 0.5, 'interpolation': 'bicubic', 'crop': 0.9}),
        ('timm', True, {'mean': 0.485, 'interpolation': 'bicubic', 'crop': 0.9}),
        ('torchvision', False, {'mean': 0.485, 'interpolation': 'bilinear', 'crop': 0.875}),
        ('huggingface', False, {'mean': 0.5, 'interpolation': 'bilinear', 'crop': 1.0, 'resize': 'squash'}),
        ('huggingface-deit', True, {'mean': 0.485, 'interpolation': 'bicubic', 'crop': 0.875, 'resize': 'squash'}),
    ],
)
def test_vit_pictures_are_those_of_the_library(dialect, distilled, expected):
    """The size comes from the patches that have a position: 5·5 of 8 pixels."""
    tensors = export(leaves_of({**TINY, 'distilled': distilled}, size=40), DIALECTS[dialect])
    preprocess = DIALECTS[dialect].preprocess(tensors, {})
    assert preprocess['size'] == 40 and preprocess['mean'][0] == expected.pop('mean')
    assert expected.items() <= preprocess.items()


def test_vit_pictures_of_large_ones_are_whole():
    for dialect, interpolation in (('timm', 'bicubic'), ('torchvision', 'bicubic')):
        tensors = export(leaves_of(TINY, size=384), DIALECTS[dialect])
        preprocess = DIALECTS[dialect].preprocess(tensors, {})
        assert (preprocess['size'], preprocess['crop'], preprocess['interpolation']) == (384, 1.0, interpolation)


def test_vit_pictures_of_deit_by_its_name():
    assert vit.preprocess_timm({}, {'architecture': 'deit_small_patch16_224'})['mean'][0] == 0.485
    assert vit.preprocess_timm({}, {'architecture': 'vit_small_patch16_224'})['mean'][0] == 0.5


def test_vit_positions_are_resized_as_the_library_does():
    """torchvision's `interpolate_embeddings` and Hugging Face's `interpolate_pos_encoding` do not antialias."""
    antialiased = {name for name, dialect in DIALECTS.items() if dialect.antialias}
    assert antialiased == {'timm', 'google', 'big_vision'}


def test_vit_pictures_of_google():
    tensors = {'embedding/kernel': np.zeros((8, 8, 3, 64)), 'pos_embedding': np.zeros((1, 26, 64))}
    preprocess = vit_google.preprocess_google(tensors, {})
    assert preprocess['size'] == 40 and preprocess['mean'] == preprocess['std'] == (0.5, 0.5, 0.5)
    assert (preprocess['interpolation'], preprocess['crop'], preprocess['resize']) == ('bilinear', 1.0, 'squash')


@pytest.mark.parametrize('dialect', DIALECTS)
def test_vit_arrays_of_any_rank_are_unknown_or_a_leaf(dialect):
    """Names that fit with arrays that do not: no exception but UserError."""
    if dialect in ('google', 'big_vision'):
        block = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_' + ('1' if dialect == 'google' else '0')
        names = ['cls', 'pos_embedding', 'embedding/kernel', 'Transformer/encoder_norm/scale']
        names += [f'{block}/{part}/{leaf}' for part in ('query', 'out') for leaf in ('kernel', 'bias')]
    else:
        names = list(export(leaves_of({**TINY, 'distilled': dialect[-4:] in ('timm', 'deit')}), DIALECTS[dialect]))
    for shape in [(), (1,), (3,), (2, 3), (0, 3), (1, 2, 3), (1, 2, 3, 0), (1,) * 6]:
        tensors = {name: np.zeros(shape, np.float32) for name in names}
        translate(tensors, DIALECTS[dialect])
        with contextlib.suppress(UserError):
            recognise(tensors, {}, 'x')
