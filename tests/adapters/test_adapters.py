"""What holds for every adapter, on one model of each family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapting import FAMILIES, PICTURES, build, fresh, init, outlined, variables_of
from tiny import jit

from jtl import adapters
from jtl.errors import UserError
from jtl.models import layers

MERGED = {
    'lora': {'lora': {'rank': 3, 'alpha': 2.0}},
    'dora': {'lora': {'rank': 3, 'alpha': 2.0, 'dora': True}},
    'ia3': {'ia3': {}},
    'together': {'lora': {'rank': 3, 'layers': '.*(attn/(query|value)|mlp/fc.|conv.|fc.)', 'dora': True}, 'ia3': {}},
}
EVERYTHING = {'lora': {'rank': 2, 'dropout': 0.2}, 'ia3': {}, 'prompts': {'tokens': 3}, 'bottleneck': {'width': 2}}


@pytest.mark.parametrize(
    'family, case',
    [('vit', 'together'), ('resnet', 'together'), ('bert', 'lora'), *(('mlp', case) for case in MERGED)],
)
def test_adapters_start_as_the_plain_model_and_merge_into_it(family, case):
    plain, adapted, batch = build(family), build(family, **MERGED[case]), FAMILIES[family][1]
    variables = variables_of(adapted, batch)
    params, statistics = variables.pop('params'), variables
    base = {key: params[key] for key in ('backbone', 'head')}
    at, at_plain = (
        jit(lambda p, m=model: m.apply({**statistics, 'params': p}, batch, train=False)['logits'])
        for model in (adapted, plain)
    )
    expected, learned = at_plain(base), at(params)
    size = np.abs(expected).max()
    np.testing.assert_allclose(at({**base, **fresh(adapted, batch)}), expected, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(at_plain(jit(adapted.merge)(params)), learned, rtol=0, atol=1e-5 * np.abs(learned).max())
    assert np.abs(learned - expected).max() > 0.1 * size


def test_adapters_leave_the_plain_parameters_as_they_are():
    (_, batch), model, plain = FAMILIES['mlp'], build('mlp', **MERGED['together']), build('mlp')
    adapted, expected = jit(lambda: (init(model, batch)['params'], init(plain, batch)['params']))()
    assert set(adapted) == {'backbone', 'head', 'lora', 'ia3'}
    jax.tree.map(np.testing.assert_array_equal, {key: adapted[key] for key in expected}, expected)
    merged = jax.eval_shape(model.merge, adapted)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, expected)


def test_adapted_models_of_equal_arguments_are_equal():
    model = build('vit', **EVERYTHING)
    assert model == build('vit', **dict(reversed(EVERYTHING.items()))) and hash(model) == hash(
        build('vit', **EVERYTHING)
    )
    assert model != build('vit', **{**EVERYTHING, 'ia3': {'layers': '.*attn/key'}})
    assert model.names == ('bottleneck', 'ia3', 'lora', 'prompts')  # the outermost first
    assert build('vit', lora=None) == build('vit')
    assert model.backbone == build('vit').backbone and model.head == build('vit').head


@pytest.mark.parametrize('family', ['vit', 'resnet'])
def test_adapters_keep_the_dtype_of_the_model(family):
    options = {'lora': {'rank': 2, 'dora': True}, 'ia3': {}, 'bottleneck': {'width': 2}}
    options |= {'prompts': {'tokens': 3, 'deep': True}} if family == 'vit' else {}
    model = build(family, **options, dtype='bfloat16')
    variables = outlined(model, PICTURES)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

    def run(variables):
        with layers.watch() as seen:
            return model.apply(variables, PICTURES, train=False)['logits'], dict(seen.outputs)

    logits, seen = jax.eval_shape(run, variables)
    assert logits.dtype == jnp.float32
    assert {x.dtype for name, x in seen.items() if 'block' in name} == {jnp.dtype('bfloat16')}


def test_adapters_in_bfloat16_are_those_of_float32():
    """To 3 bits less than the 8 of a bfloat16, through two layers."""
    options = {'lora': {'rank': 2, 'dora': True}, 'ia3': {}, 'bottleneck': {'width': 2}}
    half, full = (build('mlp', **options, dtype=dtype) for dtype in ('bfloat16', 'float32'))
    batch = FAMILIES['mlp'][1]
    variables = variables_of(full, batch)
    logits, expected = (
        jit(lambda v, m=model: m.apply(v, batch, train=False)['logits'])(variables) for model in (half, full)
    )
    assert (logits != expected).any()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2**-5 * np.abs(expected).max())


def test_layers_of_an_adapted_model_are_those_of_the_plain_one():
    model = build('vit', prompts={'tokens': 3}, lora={'rank': 2}, remat=True, depth=2)
    variables = jax.eval_shape(lambda: init(model, PICTURES))
    assert layers.shapes(model, variables, PICTURES, pool='none') == {
        'block0': (5, 8),
        'block1': (5, 8),
        'features': (8,),
    }
    assert layers.is_deterministic(model, variables, PICTURES)
    for options in ({'lora': {'rank': 2, 'dropout': 0.1}}, {'prompts': {'dropout': 0.1}}):
        model = build('vit', **options)
        variables = jax.eval_shape(lambda m=model: init(m, PICTURES))
        assert not layers.is_deterministic(model, variables, PICTURES)


def test_layers_hold_what_the_plain_tokens_are():
    """Prompts, which stand behind the patches, are no part of a block's output, though they changed it."""
    model = build('vit', prompts={'tokens': 3}, depth=2)

    def run(variables):
        found = layers.extract(model, variables, PICTURES, ('block0', 'block1'), 'none')
        capture = {'capture_intermediates': True, 'mutable': ['intermediates']}
        return found, model.apply(variables, PICTURES, train=False, **capture)[1]['intermediates']['backbone']

    found, seen = jit(run)(variables_of(model, PICTURES))
    for name, tokens in (('block0', 8), ('block1', 5)):
        (output,) = seen[name]['__call__']
        assert output.shape == (3, tokens, 8)
        np.testing.assert_allclose(found[name], output[:, :5], rtol=0, atol=1e-5)


def test_a_head_alone_and_cached_features_need_no_adapter_call():
    model = build('resnet', lora={'rank': 2})
    variables = jax.eval_shape(lambda: init(model, PICTURES))
    features = jnp.ones((3, 12))
    shape = jax.eval_shape(lambda v: model.apply(v, features, train=False, method='classify'), variables)
    assert shape.shape == (3, 4)
    short = jax.eval_shape(lambda v: model.apply(v, {'embedding': features}, train=True), variables)
    assert short['logits'].shape == (3, 4)
    with pytest.raises(UserError, match='config.model.lora: an adapter needs its backbone'):
        jax.eval_shape(lambda: init(model, {'embedding': features}))


@pytest.mark.parametrize(
    'family, options, message',
    [
        ('vit', {'lora': {'rnk': 4}}, r"unknown key config\.model\.lora\.rnk: did you mean 'rank'"),
        ('vit', {'lora': {'rank': 'x'}}, r"config\.model\.lora\.rank: 'x' should be int"),
        ('vit', {'lora': 8}, r'config\.model\.lora: 8 should be a mapping'),
        ('vit', {'lroa': {'rank': 8}}, r"unknown key config\.model\.lroa: did you mean 'lora'"),
        ('vit', {'lora': {'rank': 0}}, r'config\.model\.lora\.rank: 0 should be at least 1'),
        ('vit', {'lora': {'alpha': 0}}, r'config\.model\.lora\.alpha: 0 should be above 0'),
        ('vit', {'lora': {'dropout': 1.0}}, r'config\.model\.lora\.dropout: 1.0 should be in \[0, 1\)'),
        ('vit', {'lora': {'layers': '('}}, r"config\.model\.lora\.layers: '\(' is not a regular expression"),
        ('vit', {'prompts': {'tokens': 0}}, r'config\.model\.prompts\.tokens: 0 should be at least 1'),
        ('vit', {'bottleneck': {'width': 0}}, r'config\.model\.bottleneck\.width: 0 should be at least 1'),
    ],
)
def test_build_refuses_options_that_cannot_be(family, options, message):
    with pytest.raises(UserError, match=message):
        build(family, **options)


@pytest.mark.parametrize(
    'family, options, message',
    [
        (
            'vit',
            {'lora': {'layers': '.*attn/querry', 'rank': 2}},
            r"lora\.layers: '.*querry' .*mean 'block.*/attn/query'",
        ),
        ('vit', {'lora': {'layers': ('.*query', 'backbone/.*'), 'rank': 2}}, r"lora\.layers: 'backbone/.*' matches no"),
        ('vit', {'lora': {'layers': '.*/attn', 'rank': 2}}, r"lora\.layers: '.*/attn' matches no layer"),
        ('vit', {'lora': {'rank': 9}}, r"lora\.rank: 9 .* 'block0/attn/query', 8 to 8: expected 1 to 8"),
        ('resnet', {'ia3': {'layers': (), 'feedforward': ()}}, r'ia3: .* nothing would be scaled'),
        ('resnet', {'ia3': {'feedforward': 'fc2'}}, r"ia3\.feedforward: 'fc2' matches no layer"),
        ('resnet', {'prompts': {}}, r'prompts: ResNet has no patches .* expected a ViT'),
        ('bert', {'prompts': {}}, r'prompts: Bert has no patches'),
        ('vit', {'bottleneck': {'width': 9}}, r"bottleneck\.width: 9 .* 'block0/attn': expected 1 to 8"),
        ('vit', {'bottleneck': {'layers': 'block7'}}, r"bottleneck\.layers: 'block7' .* 'block.*'"),
        ('mlp', {'lora': {'rank': 2}, 'hidden': ()}, r'lora\.layers: no layer of this model can carry it'),
    ],
)
def test_init_refuses_what_does_not_fit_the_model(family, options, message):
    """While it is traced, before anything is computed."""
    model = build(family, **options)
    with pytest.raises(UserError, match=rf'^config\.model\.{message}'):
        jax.eval_shape(lambda: init(model, FAMILIES[family][1]))


@pytest.mark.parametrize('options', [{'prompts': {}}, {'bottleneck': {'width': 2}}], ids=str)
def test_merge_refuses_what_no_weights_compute(options):
    model = build('vit', lora={'rank': 2}, **options)
    with pytest.raises(UserError, match=rf'config\.model\.{next(iter(options))}: .*cannot be merged.*lora or ia3'):
        jax.eval_shape(lambda: model.merge(init(model, PICTURES)['params']))


def test_find_sites_sees_every_layer_of_the_backbone_once():
    sites = adapters.find_sites(build('vit', remat=True, depth=2), PICTURES)
    assert sites['backbone/block1/mlp/fc1'] == adapters.Site('Dense', (3, 5, 8), (3, 5, 12), (8, 12), 1)
    assert sites['backbone/patch'] == adapters.Site('Conv', (3, 8, 8, 3), (3, 2, 2, 8), (4, 4, 3, 8), 1)
    assert sites['backbone/block0'][:3] == ('Block', (3, 5, 8), (3, 5, 8)) and 'head' not in sites
