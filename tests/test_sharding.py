"""Rules -> where arrays live. Eight devices are described here, not there; e2e/test_devices.py computes on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh

from jtl import optim, plan, run, tree
from jtl.config import as_json, override, parse
from jtl.errors import UserError
from jtl.models import build
from jtl.sharding import AXIS, ONE_DEVICE, SMALL, Sharding, check_batch, sharding
from jtl.step import TrainState

MESH = AbstractMesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def layout(params, *rules, mesh=MESH):
    """The layout of `(regex, where)` rules, or of one for all."""
    rules = sharding(rules=rules[0] if isinstance(rules[0], str) else rules).rules
    return Sharding(mesh, rules).layout(params)


def cut(layout, state):
    """`{path: the axis that is divided}` of the leaves of a state that are."""
    spec = {path: tuple(place.spec) for path, place in tree.flatten(layout.of(state)).items()}
    return {path: axes.index(AXIS) for path, axes in spec.items() if AXIS in axes}


# Rules.


@pytest.mark.parametrize(
    'params, expected',
    [
        (shape(256, 512), 1),  # the longest axis
        (shape(512, 256), 0),
        (shape(256, 256), 1),  # of equals the last
        (shape(3, 3, 64, 64), 3),
        (shape(8, 4099), 0),  # 4099 is odd, so the longest that divides by 8
        (shape(4099, 15), None),  # none does
        (shape(SMALL), 0),
        (shape(SMALL // 8 - 1, 8), None),  # smaller than is worth it
        (shape(), None),
    ],
)
def test_fsdp_cuts_the_longest_axis_that_divides(params, expected):
    assert cut(layout({'x': params}, 'fsdp'), {'x': params}) == ({} if expected is None else {'x': expected})


def test_fsdp_of_an_axis_cuts_that_one_however_small():
    params = {'x': shape(8, 32), 'y': shape(64, 512)}
    assert cut(layout(params, ('x', 'fsdp(0)'), ('y', 'fsdp(0)')), params) == {'x': 0, 'y': 0}


def test_the_first_rule_that_matches_decides():
    params = {'head': {'kernel': shape(256, 128)}, 'backbone': {'kernel': shape(256, 128), 'bias': shape(128)}}
    found = layout(params, ('head/.*', 'replicate'), ('.*/kernel', 'fsdp(1)'), ('.*', 'fsdp(0)'))
    assert cut(found, params) == {'backbone/kernel': 1, 'backbone/bias': 0}
    assert cut(layout(params, 'replicate'), params) == {}


@pytest.mark.parametrize('where', ['fdsp', 'fsdp()', 'fsdp(-1)', 'fsdp(0', 'replicate(0)', '', None])
def test_rules_refuse_an_unknown_where(where):
    with pytest.raises(UserError) as e:
        sharding(rules=(('head/.*', 'fsdp'), ('.*', where)))
    assert str(e.value) == f'config.sharding.rules: {str(where)!r} should be replicate, fsdp, or fsdp(AXIS).'


def test_rules_refuse_an_unknown_text():
    with pytest.raises(UserError, match=r"'fdsp' should be replicate, fsdp, or fsdp\(AXIS\)"):
        sharding(rules='fdsp')


@pytest.mark.parametrize('rules', [('.*', 'fsdp'), (('.*',),), (('.*', 'fsdp', 1),)])
def test_rules_refuse_what_is_not_pairs(rules):
    with pytest.raises(UserError, match=r"config\.sharding\.rules: expected a text or \(\('regex', where\), …\), got "):
        sharding(rules=rules)


PARAMS = {'backbone': {'fc1': {'kernel': shape(64, 512), 'bias': shape(512)}}, 'head': {'kernel': shape(512, 10)}}


@pytest.mark.parametrize('mesh', [MESH, None], ids=['8 devices', '1 device'])
@pytest.mark.parametrize(
    'rules, message',
    [
        ((('backbon/.*', 'fsdp'), ('.*', 'fsdp')), r"'backbon/\.\*' matches no parameter\. did you mean 'backbone/"),
        (
            (('head/.*', 'fsdp'),),
            r"no rule covers 'backbone/fc1/.*\. End with \('\.\*', 'replicate'\) for what is left",
        ),
        ((), r"no rule covers 'backbone/fc1/"),
        ((('(', 'fsdp'),), r"'\(' is not a regular expression"),
        (
            (('.*/bias', 'fsdp(1)'), ('.*', 'fsdp')),
            r'backbone/fc1/bias has 1 axes, so there is no axis 1 for fsdp\(1\)',
        ),
    ],
)
def test_layout_refuses_rules_that_do_not_fit_the_model(rules, message, mesh):
    """On one device too, where they change nothing, so that a run is not refused only when it moves to more."""
    with pytest.raises(UserError, match=r'config\.sharding\.rules: ' + message):
        Sharding(mesh, sharding(rules=rules).rules).layout(PARAMS)


def test_layout_refuses_an_axis_that_does_not_divide():
    rules = ('head/.*', 'fsdp(1)'), ('.*', 'fsdp')
    with pytest.raises(UserError) as e:
        layout(PARAMS, *rules)
    expected = 'axis 1 of head/kernel (512, 10) does not divide over 8 devices.'
    assert str(e.value) == f'config.sharding.rules: {expected}'
    assert layout(PARAMS, *rules, mesh=None) == ONE_DEVICE


# Devices and batches.


@pytest.mark.parametrize('devices', [jax.device_count() + 1, 0, -1])
def test_sharding_refuses_devices_that_are_not_there(devices):
    with pytest.raises(UserError) as e:
        sharding(devices=devices)
    count = jax.device_count()
    assert str(e.value) == f'config.sharding.devices: {devices} asked for; JAX finds {count}, so 1 to {count}.'


def test_one_device_needs_no_mesh():
    found = sharding(devices=1, rules='fsdp')
    assert found.mesh is None and found.devices == 1 and found.share == (0, 1, 1)
    assert found.layout(PARAMS) == ONE_DEVICE


@pytest.mark.parametrize(
    'batch_size, accumulate, message',
    [
        (30, 1, '30 does not divide over 8 devices; the nearest that does is 32, or take fewer devices: '),
        (34, 1, '34 does not divide over 8 devices; the nearest that does is 32, or take fewer devices: '),
        (3, 1, '3 does not divide over 8 devices; the nearest that does is 8, or take fewer devices: '),
        (24, 2, '24 in 2 parts does not divide over 8 devices; the nearest that does is 16, or take fewer devices: '),
        (42, 3, '42 in 3 parts does not divide over 8 devices; the nearest that does is 48, or take fewer devices: '),
    ],
)
def test_check_batch_names_the_nearest_size_and_the_devices_that_would_do(batch_size, accumulate, message):
    most = {(30, 1): 6, (34, 1): 2, (3, 1): 3, (24, 2): 6, (42, 3): 7}[batch_size, accumulate]
    with pytest.raises(UserError) as e:
        check_batch(batch_size, accumulate, Sharding(MESH, ()))
    assert str(e.value) == f'config.batch_size: {message}--config.sharding.devices={most}.'
    check_batch(batch_size, accumulate, Sharding(AbstractMesh((most,), (AXIS,)), ()))  # what it advises is fine
    check_batch(batch_size, accumulate, Sharding(None, ()))


@pytest.mark.parametrize('batch_size, accumulate', [(8, 1), (32, 1), (32, 4), (48, 3)])
def test_check_batch_takes_what_divides(batch_size, accumulate):
    check_batch(batch_size, accumulate, Sharding(MESH, ()))


# Where a training state lives.


def state_of(params, name, **options):
    """The abstract training state of an optimiser, with an average and with BatchNorm's statistics."""
    static, _ = optim.optimiser(10, name=name, ema=0.9, **options)
    rules = (('backbone/block0/.*', None), ('head/.*', 2.0), ('.*', 1.0))  # frozen, and two groups
    (phase,) = optim.make_phases(params, ((None, rules),), static.decay_rules)
    slots = jax.eval_shape(lambda p: optim.transform(phase, p, static, 0.0, 0.0).init(p), params)
    state = {'model': {'batch_stats': {'norm': {'mean': shape(64)}}}, 'class_weight': shape(10)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return TrainState(shape(dtype=jnp.int32), key, params, state, slots, optim.split(params, phase)[0])


@pytest.fixture(scope='module')
def vit():
    model = build('vit', 10, width=64, depth=2)
    batch = {'image': jnp.zeros((1, 8, 8, 1))}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))['params']


@pytest.mark.parametrize('name, slots', [('adamw', 2), ('lion', 1)])
def test_slots_and_averages_lie_where_their_parameter_does(vit, name, slots):
    state = state_of(vit, name)
    rules = ('.*/attn/.*kernel', 'fsdp(0)'), ('.*/mlp/.*kernel', 'fsdp(1)'), ('head/.*', 'replicate'), ('.*', 'fsdp')
    found = cut(layout(vit, *rules), state)
    kernels = {f'backbone/block{i}/attn/{x}/kernel': 0 for i in (0, 1) for x in ('query', 'key', 'value', 'out')}
    kernels |= {f'backbone/block{i}/mlp/{x}/kernel': 1 for i in (0, 1) for x in ('fc1', 'fc2')}
    assert {path: axis for path, axis in found.items() if path.startswith('params/')} == {
        f'params/{path}': axis for path, axis in kernels.items()
    }
    trained = {path: axis for path, axis in kernels.items() if 'block0' not in path}
    assert {path: axis for path, axis in found.items() if path.startswith('ema/')} == {
        f'ema/{path}': axis for path, axis in trained.items()
    }
    for path, axis in trained.items():
        of = [found[slot] for slot in found if slot.startswith('opt_state/') and slot.endswith(f'/{path}')]
        assert of == slots * [axis], path
    assert len(found) == len(kernels) + (1 + slots) * len(trained)  # and nothing else: counts, statistics, the key


def test_a_factored_slot_is_replicated():
    """AdaFactor keeps a row and a column instead of a matrix: of other shapes than the parameter at their path."""
    params = {'backbone': {'kernel': shape(512, 256)}, 'head': {'kernel': shape(256, 8)}}
    state = state_of({**params, 'backbone': {**params['backbone'], 'block0': {'bias': shape(8)}}}, 'adafactor')
    slots = {path: leaf.shape for path, leaf in tree.flatten(state.opt_state).items() if path.endswith('/kernel')}
    assert {(512,), (256,), (256, 8)} <= set(slots.values())  # v_row and v_col of the one; v of the other, too narrow
    found = cut(layout(state.params, ('.*/kernel', 'fsdp(0)'), ('.*', 'replicate')), state)
    assert {path for path in found if path.startswith('opt_state/')} == {
        f'opt_state/{path}' for path, size in slots.items() if size == (256, 8)
    }


def test_state_that_copies_a_parameter_lies_where_it_does():
    params = {'backbone': {'kernel': shape(64, 512)}}
    state = {'teacher': params, 'fisher': params, 'other': {'kernel': shape(64, 512)}}
    assert cut(layout(params, 'fsdp'), state) == {'teacher/backbone/kernel': 1, 'fisher/backbone/kernel': 1}


def test_a_parameter_whose_path_ends_in_another_has_a_rule_of_its_own():
    params = {'head': {'kernel': shape(64, 16)}, 'disc': {'head': {'kernel': shape(64, 16)}}}
    rules = ('head/.*', 'fsdp(0)'), ('disc/.*', 'replicate')
    assert cut(layout(params, *rules), {'mu': params}) == {'mu/head/kernel': 0}


def test_on_one_device_a_layout_changes_nothing():
    x = {'x': np.arange(3.0)}
    assert ONE_DEVICE.batch(x) is x and ONE_DEVICE.rows(x) is x and ONE_DEVICE.whole(x) is x
    assert ONE_DEVICE.constrain(x) is x and ONE_DEVICE.gather(x) is x
    np.testing.assert_array_equal(ONE_DEVICE.place(x)['x'], x['x'])


# The config.


@pytest.mark.parametrize(
    'given, expected',
    [
        ('fsdp', {'rules': 'fsdp'}),
        ({}, {}),
        ({'rules': 'fsdp', 'devices': 4}, {'rules': 'fsdp', 'devices': 4}),
        (
            {'rules': [['head/.*', 'replicate'], ['.*', 'fsdp(0)']]},
            {'rules': (('head/.*', 'replicate'), ('.*', 'fsdp(0)'))},
        ),
    ],
)
def test_config_takes_a_text_or_the_whole_section(given, expected):
    config = parse({**tiny.CONFIG, 'sharding': given})
    assert config.sharding == expected
    if 'devices' not in expected:
        plan.check_sections(config)


@pytest.mark.parametrize(
    'given, message',
    [
        ('fdsp', r"config\.sharding\.rules: 'fdsp' should be replicate"),
        ({'rule': 'fsdp'}, r"unknown key config\.sharding\.rule: did you mean 'rules'\?"),
        ({'devices': 'all'}, r"config\.sharding\.devices: 'all' should be int"),
        ({'devices': 1000}, r'config\.sharding\.devices: 1000 asked for; JAX finds'),
        (3, r'config\.sharding: 3 should be '),
    ],
)
def test_config_is_refused_before_anything_is_opened(given, message):
    config = {**tiny.CONFIG, 'sharding': given, 'data': {'name': 'npz:no such file'}}
    with pytest.raises(UserError, match=message):
        plan.make_plan(parse(config))


@pytest.mark.parametrize('before', [{}, 'fsdp'])
@pytest.mark.parametrize('after', ['fsdp', 'replicate', {'rules': (('.*', 'fsdp(0)'),), 'devices': 3}])
def test_a_run_may_go_on_with_another_sharding(tmp_path, before, after):
    def record(**changes):
        config = as_json(parse({**override(tiny.CONFIG, changes)}))
        return {'config': config, 'data': 'the same', 'weights': None}

    run.write_json(tmp_path / 'config.json', record(sharding=before))
    run.check(tmp_path, record(sharding=after))
    for key, value in (('seed', 1), ('batch_size', 16), ('optim.accumulate', 2), ('model.hidden', (16,))):
        with pytest.raises(UserError, match=rf'holds a run with another config; it differs in config\.{key}: '):
            run.check(tmp_path, record(sharding=after, **{key: value}))
