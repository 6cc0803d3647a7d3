"""Rules -> labels -> updates. Parameters here are small hand-made trees; expected updates are derived in comments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtl import optim, tree
from jtl.errors import UserError

PARAMS = {
    'backbone': {'conv': {'kernel': jnp.full((2, 3), 2.0), 'bias': jnp.full(3, 0.5)}},
    'head': {'kernel': jnp.full((3, 2), -1.0), 'bias': jnp.zeros(2)},
}
PATHS = ['backbone/conv/bias', 'backbone/conv/kernel', 'head/bias', 'head/kernel']
HEAD_ONLY = (('head/.*', 1.0), ('.*', None))
EVERYTHING = (('.*', 1.0),)
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def one_phase(rules, **section):
    static, rates = optim.optimiser(100, **{'name': 'sgd', 'lr': 0.1, 'schedule': 'constant', **section})
    (phase,) = optim.make_phases(PARAMS, ((None, rules),), static.decay_rules)
    return phase, static, rates


def update(rules, grads=GRADS, steps=1, **section):
    phase, static, rates = one_phase(rules, **section)
    params, opt_state = PARAMS, optim.transform(phase, PARAMS, static, 0.0, 0.0).init(PARAMS)
    for step in range(steps):
        trained, _ = optim.split(grads, phase)
        params, opt_state, measured = optim.update(trained, opt_state, params, phase, static, rates, jnp.int32(step))
    return params, opt_state, measured


# Matching.


def test_match_takes_the_first_rule_that_matches_the_whole_path():
    rules = (('head', 5.0), ('head/.*', 1.0), ('.*kernel', 0.1), ('.*', None))
    with pytest.raises(UserError, match="'head' matches no parameter"):  # not a prefix match
        optim.multipliers(rules, PATHS, 'config.rules')
    assert optim.multipliers(rules[1:], PATHS, 'config.rules') == {
        'backbone/conv/bias': None,
        'backbone/conv/kernel': 0.1,
        'head/bias': 1.0,
        'head/kernel': 1.0,
    }


@pytest.mark.parametrize(
    'rules, message',
    [
        ((('haed/.*', 1.0), ('.*', None)), r"config.rules: 'haed/\.\*' matches no parameter. did you mean 'head/"),
        ((('head/.*', 1.0),), "no rule covers 'backbone/conv/bias'"),
        ((('(head', 1.0),), 'not a regular expression'),
        ((('.*', float('inf')),), 'multiplier inf'),
        ((('.*', 0.0),), 'multiplier 0.0 of .* should be above 0, or None to freeze'),
        ((('.*', None),), 'every parameter is frozen'),
    ],
)
def test_make_phases_refuses(rules, message):
    with pytest.raises(UserError, match=message):
        optim.make_phases(PARAMS, ((None, rules),), optim.DECAY_KERNELS)


@pytest.mark.parametrize('ends', [(5, 3, None), (0, None), (5, 5, None), (None, None), (5,)])
def test_make_phases_refuses_ends_out_of_order(ends):
    with pytest.raises(UserError, match='config.phases: they end at steps'):
        optim.make_phases(PARAMS, tuple((end, EVERYTHING) for end in ends), optim.DECAY_KERNELS)


def test_phase_at_changes_after_the_step_named():
    phases = optim.make_phases(PARAMS, ((3, HEAD_ONLY), (None, EVERYTHING)), optim.DECAY_KERNELS)
    assert [optim.phase_at(phases, done) for done in range(5)] == [0, 0, 0, 1, 1]  # the update after 3 is the new one's


def test_layer_decay_multiplies_once_a_layer_from_the_top():
    assert optim.layer_decay(['stem/.*', 'block0/.*', 'head/.*'], 0.5) == [
        ('stem/.*', 0.25),
        ('block0/.*', 0.5),
        ('head/.*', 1.0),
    ]


# Updates.


def test_update_scales_by_the_multiplier_and_leaves_frozen_parameters_alone():
    # SGD: p - 0.1 · multiplier · 1, so the backbone kernel goes 2 - 0.1 · 0.5 and the head's bias 0 - 0.1
    params, _, _ = update((('head/.*', 1.0), ('.*/kernel', 0.5), ('.*', None)))
    np.testing.assert_allclose(params['backbone']['conv']['kernel'], 1.95)
    np.testing.assert_allclose(params['head']['bias'], -0.1)
    np.testing.assert_array_equal(params['backbone']['conv']['bias'], 0.5)


def test_update_keeps_the_bits_of_frozen_parameters():
    odd = {**PARAMS, 'backbone': {'conv': {'kernel': jnp.array([-0.0, jnp.nan, 1e-45]), 'bias': jnp.full(3, -0.0)}}}
    static, rates = optim.optimiser(100, name='adamw', weight_decay=0.1, clip=1.0)
    (phase,) = optim.make_phases(odd, ((None, HEAD_ONLY),), static.decay_rules)
    opt_state = optim.transform(phase, odd, static, 0.0, 0.0).init(odd)
    grads, _ = optim.split(jax.tree.map(jnp.ones_like, odd), phase)
    step = jax.jit(lambda g, o, p: optim.update(g, o, p, phase, static, rates, jnp.int32(0))[0])
    params = step(grads, opt_state, odd)
    for key in ('kernel', 'bias'):
        old, new = (np.asarray(p['backbone']['conv'][key]).tobytes() for p in (odd, params))
        assert old == new


def test_frozen_parameters_have_no_slots():
    phase, static, _ = one_phase(HEAD_ONLY, name='adamw')
    slots = tree.flatten(optim.transform(phase, PARAMS, static, 0.0, 0.0).init(PARAMS))
    assert any('head/kernel' in path for path in slots)
    assert not any('backbone' in path for path in slots)


@pytest.mark.parametrize(
    'name, kwargs', [('adamw', {'b2': 0.99}), ('lion', {}), ('sgd', {'momentum': 0.9}), ('lamb', {})]
)
def test_update_equals_the_optax_optimiser(name, kwargs):
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
    params, _, _ = update(EVERYTHING, grads, steps=5, name=name, lr=0.01, weight_decay=0.0, **kwargs)
    tx = getattr(optax, name)(0.01, **kwargs, **({'weight_decay': 0.0} if name in ('adamw', 'lion', 'lamb') else {}))
    expected, state = PARAMS, tx.init(PARAMS)
    for _ in range(5):
        updates, state = tx.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


def test_weight_decay_is_coupled_for_sgd_and_follows_its_own_rules():
    # kernels: p - 0.1 (1 + 0.5 p): 2 -> 2 - 0.1 · 2 = 1.8 and -1 -> -1 - 0.1 · 0.5 = -1.05; biases are not decayed
    params, _, _ = update(EVERYTHING, weight_decay=0.5)
    np.testing.assert_allclose(params['backbone']['conv']['kernel'], 1.8)
    np.testing.assert_allclose(params['head']['kernel'], -1.05)
    np.testing.assert_allclose(params['backbone']['conv']['bias'], 0.4)
    # a rule that decays only the backbone, doubly: 2 - 0.1 (1 + 2 · 0.5 · 2) = 1.7; the head's kernel: -1 - 0.1
    params, _, _ = update(EVERYTHING, weight_decay=0.5, decay_rules=(('backbone/.*', 2.0), ('.*', None)))
    np.testing.assert_allclose(params['backbone']['conv']['kernel'], 1.7)
    np.testing.assert_allclose(params['head']['kernel'], -1.1)


def test_weight_decay_is_decoupled_for_adamw():
    # with zero gradients Adam does not move; decay does: 2 - 0.1 · 0.5 · 2 = 1.9
    params, _, _ = update(EVERYTHING, jax.tree.map(jnp.zeros_like, PARAMS), name='adamw', weight_decay=0.5)
    np.testing.assert_allclose(params['backbone']['conv']['kernel'], 1.9)
    np.testing.assert_array_equal(params['backbone']['conv']['bias'], 0.5)


def test_clip_sees_the_trained_gradients_alone():
    # the head has 6 + 2 ones: norm √8; the backbone's 9 would make it √17. Clipped to 1: 1/√8 each, times lr 0.1
    params, _, measured = update(HEAD_ONLY, clip=1.0)
    np.testing.assert_allclose(measured['grad_norm'], 8**0.5, rtol=1e-6)
    np.testing.assert_allclose(params['head']['bias'], -0.1 / 8**0.5, rtol=1e-6)


# Schedules.


@pytest.mark.parametrize(
    'schedule, expected',  # warm-up over 4 of 24 steps, so step 14 is half way and 24 the end
    [
        ('constant', {0: 0.25, 3: 1.0, 14: 1.0, 24: 1.0}),
        ('linear', {0: 0.25, 3: 1.0, 14: 0.55, 24: 0.1}),
        ('cosine', {0: 0.25, 3: 1.0, 9: 0.1 + 0.9 * (2 + 2**0.5) / 4, 14: 0.55, 24: 0.1}),
        ('step', {0: 0.25, 11: 1.0, 12: 0.1, 17: 0.1, 18: 0.01}),
    ],
)
def test_rate(schedule, expected):
    static, rates = optim.optimiser(24, lr=2.0, schedule=schedule, warmup=4, final=0.1)
    for step, fraction in expected.items():
        np.testing.assert_allclose(optim.rate(jnp.int32(step), static, rates), 2.0 * fraction, rtol=1e-5)


def test_other_rates_do_not_compile_again():
    phase, static, _ = one_phase(HEAD_ONLY, name='adamw')
    opt_state = optim.transform(phase, PARAMS, static, 0.0, 0.0).init(PARAMS)
    traces = []

    @jax.jit
    def step(rates):
        traces.append(1)
        return optim.update(optim.split(GRADS, phase)[0], opt_state, PARAMS, phase, static, rates, jnp.int32(5))[0]

    a, b = (step(optim.optimiser(100, lr=lr, weight_decay=wd)[1]) for lr, wd in ((0.1, 0.0), (0.2, 0.1)))
    assert len(traces) == 1
    assert not np.allclose(a['head']['kernel'], b['head']['kernel'])


@pytest.mark.parametrize(
    'section, message',
    [
        ({'name': 'adamww'}, "no optimiser 'adamww'; did you mean 'adamw'"),
        ({'name': 'sgd', 'momentumm': 0.9}, "unknown key config.optim.momentumm: did you mean 'momentum'"),
        ({'wieght_decay': 0.1}, "unknown key config.optim.wieght_decay: did you mean 'weight_decay'"),
        ({'schedule': 'cosin'}, "did you mean 'cosine'"),
        ({'lr': 0.0}, 'config.optim.lr'),
        ({'lr': float('inf')}, 'config.optim.lr'),
        ({'name': 'sgd', 'momentum': 'abc'}, r"optax.sgd does not take \{'momentum': 'abc'\}"),
        ({'warmup': 101}, 'config.optim.warmup'),
        ({'accumulate': 0}, 'config.optim.accumulate'),
        ({'ema': 1.0}, 'config.optim.ema'),
        ({'clip': -1.0}, 'config.optim.clip'),
    ],
)
def test_optimiser_refuses(section, message):
    with pytest.raises(UserError, match=message):
        optim.optimiser(100, **section)


# Phases.


def test_carry_gives_thawed_leaves_fresh_slots_and_others_keep_theirs():
    rules = ((2, HEAD_ONLY), (None, (('head/.*', 0.5), ('.*', 0.1))))  # the head's multiplier changes as well
    static, rates = optim.optimiser(100, name='adamw', lr=0.1)
    first, second = optim.make_phases(PARAMS, rules, static.decay_rules)
    old = optim.transform(first, PARAMS, static, 0.0, 0.0).init(PARAMS)
    params = PARAMS
    for step in range(2):
        params, old, _ = optim.update(optim.split(GRADS, first)[0], old, params, first, static, rates, jnp.int32(step))
    new = optim.carry(old, optim.transform(second, params, static, 0.0, 0.0).init(params))
    slots = {path.split('/', 2)[-1]: value for path, value in tree.flatten(new).items()}
    mu = {path.split('/mu/')[1]: value for path, value in slots.items() if '/mu/' in path}
    # Adam's first moment after two unit gradients: 0.1, then 0.9 · 0.1 + 0.1 = 0.19
    np.testing.assert_allclose(mu['head/kernel'], 0.19, rtol=1e-6)
    np.testing.assert_array_equal(mu['backbone/conv/kernel'], 0)
    counts = {path: int(value) for path, value in tree.flatten(new).items() if path.endswith('count')}
    assert sorted(set(counts.values())) == [0, 2]
    assert all((value == 0) == ('1: ' in path) for path, value in counts.items())


def test_carry_copies_so_that_buffers_can_be_donated():
    static, _ = optim.optimiser(100, name='adamw')
    first, second = optim.make_phases(
        PARAMS, ((2, EVERYTHING), (None, (('head/.*', 1.0), ('.*', 0.1)))), static.decay_rules
    )
    old = optim.transform(first, PARAMS, static, 0.0, 0.0).init(PARAMS)
    new = optim.carry(old, optim.transform(second, PARAMS, static, 0.0, 0.0).init(PARAMS))
    jax.jit(lambda x: x, donate_argnums=0)(new)
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(old))


def test_average_follows_the_formula_for_trained_leaves_only():
    phase, _, _ = one_phase(HEAD_ONLY)
    ema, _ = optim.split(jax.tree.map(jnp.zeros_like, PARAMS), phase)
    ema = optim.average(ema, PARAMS, phase, 0.9, jnp.int32(0))
    # decay min(0.9, 1/10) at update 0: 0.1 · 0 + 0.9 · (-1)
    np.testing.assert_allclose(ema['head']['kernel'], -0.9, rtol=1e-6)
    assert ema['backbone']['conv']['kernel'] is None
    ema = optim.average(ema, PARAMS, phase, 0.9, jnp.int32(1000))  # now 0.9: 0.9 · (-0.9) + 0.1 · (-1)
    np.testing.assert_allclose(ema['head']['kernel'], -0.91, rtol=1e-6)
