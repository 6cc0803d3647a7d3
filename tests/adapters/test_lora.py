"""LoRA and DoRA against dense matrices in float64, their gradients against finite differences, their cost."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapting import FAMILIES, build, fresh, init, outlined, trained
from flax import linen as nn

from jtl import models, optim, tree
from jtl import step as compiled
from jtl.adapters import Adapted
from jtl.adapters.lora import lora
from jtl.errors import UserError
from jtl.plan import make_method
from jtl.step import TrainState

IMAGES = np.random.default_rng(0).normal(size=(3, 7, 6, 2))
SCALE = 1.5 / 2  # alpha / rank


class Small(nn.Module):
    """A convolution of 3×2, strides 2 and 1, uneven padding, and a Dense layer, in float64."""

    @nn.compact
    def __call__(self, x, train):
        kwargs = {'dtype': 'float64', 'param_dtype': 'float64'}
        x = nn.Conv(5, (3, 2), strides=(2, 1), padding=((1, 1), (0, 1)), name='conv', **kwargs)(x)
        return nn.Dense(4, name='fc1', **kwargs)(jnp.tanh(x).reshape(len(x), -1))


class Whole(nn.Module):
    backbone: nn.Module

    def __call__(self, batch, train):
        return self.backbone(batch['image'], train)


def made(**options):
    """A float64 model, its parameters with everything away from its start, and `params -> outputs`."""
    model = Adapted(Whole(Small()), (lora(rank=2, alpha=1.5, **options),))
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init(model, {'image': IMAGES}))['params']
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) / 3, shapes)
    return model, params, lambda p: model.apply({'params': p}, {'image': IMAGES}, train=False)


def dense(params, lengths=None):
    """`(plain parameters with W + s A B for W, {layer: ‖W + s A B‖})`; `lengths` are those that DoRA divides by.

    Written out in numpy: with a magnitude, m (W + s A B) / lengths, m = ‖W‖ + magnitude.
    """
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}
    found, norms = {p: x for p, x in flat.items() if p.startswith('backbone/')}, {}
    for path in [p.removesuffix('/kernel') for p in found if p.endswith('/kernel')]:
        a, b, w = flat[f'lora/{path}/a'], flat[f'lora/{path}/b'], found[f'{path}/kernel']
        whole = w + SCALE * np.einsum('...ir,ro->...io', a, b)
        norm = lambda x: np.sqrt((x**2).reshape(-1, x.shape[-1]).sum(0))
        norms[path] = norm(whole)
        if f'lora/{path}/magnitude' in flat:
            whole = whole * (norm(w) + flat[f'lora/{path}/magnitude']) / (lengths or norms)[path]
        found[f'{path}/kernel'] = whole
    return tree.unflatten(found), norms


@pytest.mark.parametrize('dora', [False, True])
def test_lora_equals_dense_matrices_and_its_gradient_finite_differences(dora):
    """Of a Dense layer and a strided convolution; DoRA's gradient with its lengths held, as in the paper."""
    with jax.enable_x64():
        model, params, apply = made(dora=dora)
        plain = lambda p: model.model.apply({'params': p}, {'image': IMAGES}, train=False)
        whole, lengths = dense(params)
        expected = np.asarray(plain(whole))
        assert expected.dtype == np.float64
        run = jax.jit(apply)
        np.testing.assert_allclose(run(params), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(apply(params), expected, rtol=0, atol=1e-12)  # not jitted
        np.testing.assert_allclose(plain(model.merge(params)), expected, rtol=0, atol=1e-12)
        assert np.abs(expected - plain({'backbone': params['backbone']})).max() > 0.1

        rng = np.random.default_rng(2)
        weights = rng.normal(size=expected.shape)
        grads = jax.jit(jax.grad(lambda own: (weights * apply({**params, 'lora': own})).sum()))(params['lora'])
        for path, grad in tree.flatten(grads).items():
            towards = rng.normal(size=grad.shape)

            def value(step, path=path, towards=towards):
                flat = tree.flatten(params['lora'])
                flat[path] = flat[path] + step * towards
                return float((weights * plain(dense({**params, 'lora': tree.unflatten(flat)}, lengths)[0])).sum())

            slope = (value(1e-5) - value(-1e-5)) / 2e-5
            np.testing.assert_allclose((grad * towards).sum(), slope, rtol=1e-7, atol=1e-8, err_msg=path)


def test_lora_starts_uniform_with_a_change_of_zero():
    """A within ±1/√fan-in, of variance fan-in / 3; B and magnitudes 0."""
    model = models.build('mlp', 2, hidden=(400,), lora={'rank': 100, 'dora': True})
    own = tree.flatten(fresh(model, {'features': np.zeros((1, 900), np.float32)})['lora'])
    a = own['backbone/fc1/a']
    assert a.shape == (900, 100) and np.abs(a).max() <= 1 / 30 and np.abs(a).max() > 0.999 / 30
    np.testing.assert_allclose(np.std(a), 1 / 30 / 3**0.5, rtol=0.01)
    assert not np.any(own['backbone/fc1/b']) and not np.any(own['backbone/fc1/magnitude'])


def test_rslora_divides_by_the_root_of_the_rank():
    scales = []
    for rslora in (False, True):
        model = build('mlp', lora={'rank': 4, 'alpha': 6.0, 'rslora': rslora, 'layers': 'fc2'})
        ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), outlined(model, FAMILIES['mlp'][1])['params'])
        merged = model.merge(ones)['backbone']['fc2']['kernel']
        scales.append((float(merged[0, 0]) - 1) / 4)  # (A B)_ij is the sum of 4 ones
    assert scales == [6 / 4, 6 / 2]


def test_lora_drops_the_input_of_a_alone():
    """In training the mean over many draws is the output without dropout, and each draw is another."""
    model = models.build('mlp', 2, hidden=(3,), lora={'rank': 2, 'dropout': 0.5})
    features = np.ones((4000, 5), np.float32)  # the same example
    rng = np.random.default_rng(0)
    shapes = outlined(model, {'features': features})['params']
    params = jax.tree.map(lambda x: rng.uniform(0.2, 1, x.shape).astype(np.float32), shapes)  # so relu does nothing
    at = lambda train, **kwargs: model.apply(
        {'params': params}, {'features': features}, train=train, method='features', **kwargs
    )
    kept, dropped = at(False), at(True, rngs={'dropout': jax.random.key(0)})
    plain = model.model.apply({'params': params}, {'features': features}, train=False, method='features')
    assert (dropped >= plain - 1e-5).all() and np.std(dropped, axis=0).min() > 0.1
    error = np.std(dropped, axis=0) / len(features) ** 0.5
    assert (np.abs(dropped.mean(0) - kept[0]) < 5 * error).all()


def test_trained_numbers_are_those_of_the_formulas():
    """R (I + O) for each of the queries and values; DoRA has O more; a convolution k² I R + R O."""
    assert trained('vit', lora={'rank': 3}) == 2 * 3 * (8 + 8)
    assert trained('bert', lora={'rank': 3, 'dora': True}) == 2 * (3 * (8 + 8) + 8)
    assert trained('vit', lora={'rank': 3, 'layers': '.*mlp/fc1'}) == 3 * (8 + 12)
    assert trained('mlp', lora={'rank': 3}) == 3 * (10 + 7) + 3 * (7 + 9)
    convolutions = [(3, 6), (6, 6), (6, 6), (6, 12), (12, 12)]  # the stem, and two of each block, all 3×3
    assert trained('resnet', lora={'rank': 2}) == sum(9 * i * 2 + 2 * o for i, o in convolutions)


def test_grouped_convolutions_are_left_out_or_refused():
    batch = {'image': np.zeros((1, 32, 32, 3), np.float32)}
    of = lambda **lora: models.build('mobilenetv1', 2, lora={'rank': 2, **lora})
    paths = tree.flatten(outlined(of(), batch)['params']['lora'])
    assert any('pointwise' in path for path in paths) and not any('depthwise' in path for path in paths)
    with pytest.raises(
        UserError, match=r"config\.model\.lora\.layers: 'block0/depthwise/conv' is a convolution of 32 g"
    ):
        outlined(of(layers='.*/conv'), batch)


def test_a_step_of_lora_costs_less_than_three_quarters_and_its_state_two_hundredths():
    """ViT-S/16, 224 pixels, AdamW: FLOPs of a step as it is lowered, and bytes of the optimiser's state.

    Both grow by the same with each block, so two depths tell those of all 12.
    """
    static, rates = optim.optimiser(100, name='adamw', lr=1e-3)
    batch = {'image': jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32), 'label': jnp.zeros(8, jnp.int32)}

    def cost(depth, rules, **more):
        method = make_method(json.dumps({'name': 'vit_s16', 'depth': depth, **more}), '{}', 10)
        params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
        (phase,) = optim.make_phases(params, ((None, rules),), static.decay_rules)
        opt_state = jax.eval_shape(lambda p: optim.transform(phase, p, static, 0.0, 0.0).init(p), params)
        ts = TrainState(jnp.int32(0), jax.random.key(1), params, state, opt_state, ())
        lowered = compiled.compile_step(method, phase, static).lower(ts, batch, rates)
        return np.array([lowered.cost_analysis()['flops'], tree.nbytes(opt_state)])

    def whole(*args, **more):
        one, two = cost(1, *args, **more), cost(2, *args, **more)
        return one + 11 * (two - one)

    full = whole((('.*', 1.0),))
    flops, slots = whole((('(lora|head)/.*', 1.0), ('.*', None)), lora={'rank': 8}) / full
    assert 0.5 < flops <= 0.75 and slots <= 0.02, (flops, slots)
