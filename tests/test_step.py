"""The one step, on real (tiny) models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtl import optim, tree
from jtl import step as compiled
from jtl.method import Method
from jtl.plan import make_method
from jtl.sharding import ONE_DEVICE
from jtl.step import TrainState

HEAD_ONLY = (('head/.*', 1.0), ('.*', None))
EVERYTHING = (('.*', 1.0),)
RESNET = {'name': 'resnet', 'stages': [1, 1], 'width': 8}
VIT = {'name': 'vit', 'patch': 4, 'depth': 2, 'width': 32, 'heads': 2}


def images(batch=8, seed=0, side=8):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.normal(size=(batch, side, side, 3)).astype(np.float32),
        'label': rng.integers(0, 10, batch).astype(np.int32),
    }


def setup(model, rules, **section):
    """`(method, phase, optimiser's halves, a function that makes a fresh TrainState)`."""
    method = make_method(json.dumps(model), '{"name": "supervised"}', 10)
    static, rates = optim.optimiser(100, **{'name': 'adamw', 'lr': 1e-2, 'weight_decay': 0.1, 'clip': 1.0, **section})
    params, state = compiled.compile_init(method)(jax.random.key(0), images())
    (phase,) = optim.make_phases(params, ((None, rules),), static.decay_rules)

    def fresh():
        p = jax.tree.map(jnp.copy, params)
        ema = optim.split(jax.tree.map(jnp.copy, params), phase)[0] if static.ema else ()
        opt_state = optim.transform(phase, p, static, 0.0, 0.0).init(p)
        return TrainState(jnp.int32(0), jax.random.key(1), p, jax.tree.map(jnp.copy, state), opt_state, ema)

    return method, phase, static, rates, fresh


def bits(node):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.flatten(node).items()}


@pytest.mark.parametrize('model', [RESNET, VIT], ids=['resnet', 'vit'])
def test_head_only_step_costs_no_more_than_the_forward_pass(model):
    # with clipping, weight decay and the gradient norm on; one compiled step without a scan, as cost_analysis counts
    method, phase, static, rates, fresh = setup(model, HEAD_ONLY)
    ts, batch = fresh(), images(32, side=16 if model is RESNET else 8)
    step = compiled.compile_step(method, phase, static).lower(ts, batch, rates).compile().cost_analysis()['flops']
    forward = jax.jit(method.predict).lower(ts.params, ts.state, batch).compile().cost_analysis()['flops']
    everything = setup(model, EVERYTHING)[1]
    whole = compiled.compile_step(method, everything, static)
    ts = ts._replace(opt_state=optim.transform(everything, ts.params, static, 0.0, 0.0).init(ts.params))
    whole = whole.lower(ts, batch, rates).compile().cost_analysis()['flops']
    assert step <= 1.1 * forward
    assert whole >= 2.5 * forward  # so the measure does see a backward pass


@pytest.mark.parametrize('model', [RESNET, VIT], ids=['resnet', 'vit'])
def test_frozen_leaves_and_statistics_keep_their_bits_over_20_steps(model):
    method, phase, static, rates, fresh = setup(model, HEAD_ONLY)
    ts, step = fresh(), compiled.compile_step(method, phase, static)
    before = bits(ts.params), bits(ts.state)
    for seed in range(20):
        ts, _ = step(ts, images(seed=seed), rates)
    after = bits(ts.params), bits(ts.state)
    changed = {path for path in after[0] if after[0][path] != before[0][path]}
    assert changed == {'head/kernel', 'head/bias'}
    assert before[1] == after[1]
    assert (len(before[1]) > 0) == (model is RESNET)


def test_remat_halves_the_memory_of_a_step():
    used = []
    for remat in (False, True):
        model = {**VIT, 'depth': 8, 'remat': remat}
        method, phase, static, rates, fresh = setup(model, EVERYTHING, name='sgd', weight_decay=0.0)
        lowered = compiled.compile_step(method, phase, static).lower(fresh(), images(128), rates)
        used.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert used[0] > 2 * used[1]


def test_thawed_batch_norm_moves_its_statistics():
    method, phase, static, rates, fresh = setup(RESNET, (('(head|backbone/stem)/.*', 1.0), ('.*', None)))
    ts = fresh()
    before = bits(ts.state)
    ts, _ = compiled.compile_step(method, phase, static)(ts, images(), rates)
    changed = {path for path, value in bits(ts.state).items() if value != before[path]}
    assert changed == {'model/batch_stats/backbone/stem/bn/mean', 'model/batch_stats/backbone/stem/bn/var'}


def linear_method():
    """Least squares in the dtype of its parameters, with a state that counts the calls."""

    def init(rng, batch):
        return {'head': {'kernel': jax.random.normal(rng, (5, 3), jnp.float64)}}, {'calls': jnp.zeros(())}

    def loss(params, state, batch, rng, step):
        error = batch['features'] @ params['head']['kernel'] - batch['label']
        return (error**2).mean(), ({'calls': state['calls'] + 1}, {'metrics': {'largest': jnp.abs(error).max()}})

    return Method(init=init, loss=loss, predict=lambda p, s, b: {'logits': b['features'] @ p['head']['kernel']})


def test_accumulation_over_4_is_one_big_batch_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        method = linear_method()
        params, state = method.init(jax.random.key(0), None)
        (phase,) = optim.make_phases(params, ((None, EVERYTHING),), optim.DECAY_KERNELS)
        ends = []
        for parts in (1, 4):
            static, rates = optim.optimiser(50, name='adamw', lr=0.1, weight_decay=0.01, clip=0.5, accumulate=parts)
            p = jax.tree.map(jnp.copy, params)
            opt_state = optim.transform(phase, p, static, 0.0, 0.0).init(p)
            ts = TrainState(jnp.int32(0), jax.random.key(1), p, jax.tree.map(jnp.copy, state), opt_state, ())
            step = compiled.compile_step(method, phase, static)
            batches = np.random.default_rng(1)
            for _ in range(10):
                batch = {'features': batches.normal(size=(16, 5)), 'label': batches.normal(size=(16, 3))}
                ts, measured = step(ts, batch, rates)
            ends.append((ts.params['head']['kernel'], measured['loss'], float(ts.state['calls'])))
        del rng
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-10)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-10)
    assert (ends[0][2], ends[1][2]) == (10, 40)  # state went through every part


def test_rng_differs_by_step_and_by_part():
    def loss(params, state, batch, rng, step):
        return params['x'].sum(), (state, {'metrics': {'draw': jax.random.uniform(rng)}})

    grads = compiled.accumulate(Method(None, loss, None).grads(loss), 2, ONE_DEVICE)
    params, batch = {'x': jnp.ones(3)}, {'label': jnp.zeros(4)}
    _, _, measured = grads(params, {}, batch, jax.random.key(0), 0)
    draws = [jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)) for i in range(2)]
    np.testing.assert_allclose(measured['draw'], np.mean(draws), rtol=1e-6)
    assert draws[0] != draws[1]
