"""Rules by name against rules that are spelt out."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jtl import optim, presets
from jtl.config import parse
from jtl.errors import UserError
from jtl.models.order import Order
from jtl.plan import make_plan

ORDER = Order('backbone/(patch)(/.*)?', tuple(f'backbone/block{i}/.*' for i in range(4)), 'backbone/(norm)(/.*)?', 'N')
PARAMS = {
    'backbone': {**{k: {'kernel': 0.0, 'bias': 0.0} for k in ('patch', 'norm', *(f'block{i}' for i in range(4)))}},
    'head': {'kernel': 0.0, 'bias': 0.0},
    'lora': {'a': 0.0},
}


def moves(rules):
    """The multiplier of each parameter that moves."""
    paths = ['/'.join(str(k.key) for k in path) for path, _ in jax.tree.leaves_with_path(PARAMS)]
    found = optim.multipliers(rules, paths, 'config.rules')
    return {path: found[path] for path in paths if found[path] is not None}


def named(name, order=ORDER):
    return presets.named_rules(name, lambda: order)


def children(rules):
    return {path.split('/')[1] if path.startswith('backbone/') else path.split('/')[0] for path in moves(rules)}


def test_rules_by_name_move_what_they_say():
    assert len(moves(named('all'))) == 15 and set(moves(named('all')).values()) == {1.0}
    assert children(named('head')) == {'head'}
    assert children(named('adapters')) == {'head', 'lora'}
    assert children(named('last:2')) == {'head', 'lora', 'norm', 'block2', 'block3'}
    assert set(moves(named('biases'))) == {
        'lora/a', 'head/kernel', 'head/bias',
        *(f'backbone/{k}/bias' for k in ('patch', 'norm', 'block0', 'block1', 'block2', 'block3')),
    }  # fmt: skip


def test_discriminative_and_layer_decay_multiply():
    found = moves(named('discriminative:0.25'))
    assert found['head/bias'] == found['lora/a'] == 1.0 and found['backbone/norm/bias'] == 0.25
    found = moves(named('layer_decay:0.5'))  # from the top: head and norm, block3, …, block0, patch
    expected = {'head': 1.0, 'lora': 1.0, 'norm': 1.0, 'block3': 0.5, 'block2': 0.25, 'block1': 0.125, 'block0': 0.0625}
    expected['patch'] = 0.03125
    for path, value in found.items():
        assert value == expected[path.split('/')[path.startswith('backbone/')]], path


def test_gradual_thaws_from_the_top_to_the_bottom():
    phases = presets.named_phases('gradual:3', lambda: ORDER, steps=100)
    assert [until for until, _ in phases] == [33, 67, None]
    first, second, third = (children(rules) for _, rules in phases)
    assert first == {'head', 'lora', 'norm'}
    assert second == {*first, 'block3', 'block2'}  # 5 layers in 2 steps: the middle is rounded
    assert third == {*second, 'block1', 'block0', 'patch'}


def test_lpft_is_the_head_and_then_everything():
    assert presets.named_phases('lpft:0.3', lambda: ORDER, 10) == ((3, presets.HEAD), (None, presets.ALL))
    assert presets.named_phases('lpft:0.1', lambda: ORDER, 3)[0][0] == 1  # at least a step


def test_phases_may_end_at_a_share_of_the_run_and_name_rules():
    phases = presets.named_phases(((0.25, 'head'), (8, 'last:1'), (None, 'all')), lambda: ORDER, 12)
    assert phases == ((3, presets.HEAD), (8, named('last:1')), (None, presets.ALL))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rules': 'haed'}, r"config\.rules: 'haed' is unknown; did you mean 'head'\?"),
        ({'rules': 'head:1'}, "'head' takes nothing after it"),
        ({'rules': 'layer_decay'}, 'expected layer_decay:F, a factor above 0'),
        ({'rules': 'last:0'}, 'expected last:N, a number of blocks from 1'),
        ({'rules': 'last:9'}, r'config\.rules: last:9, but the backbone has 1 blocks'),
        ({'rules': 'norms'}, 'the backbone has no normalisation layers'),
        ({'phases': 'gradual:5'}, 'can be thawed in 2 to 2 phases'),
        ({'phases': 'lpft:2'}, 'a share of the run is below 1'),
        ({'phases': 'head'}, r"config\.phases: 'head' is unknown"),
        ({'phases': ((1.5, 'head'), (None, 'all'))}, r'config\.phases: expected'),
        ({'phases': ((0.5, 'heads'), (None, 'all'))}, "'heads' is unknown"),
    ],
)
def test_bad_names_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_plan(parse({**tiny.CONFIG, **changes}))


def test_a_plan_spells_out_what_names_stand_for():
    plan = make_plan(parse({**tiny.CONFIG, 'rules': 'head'}))
    assert plan.config.rules == presets.HEAD
    assert make_plan(parse(tiny.CONFIG)).config.rules == presets.ALL
    plan = make_plan(parse({**tiny.CONFIG, 'steps': 10, 'phases': 'lpft:0.3'}))
    assert plan.config.phases == ((3, presets.HEAD), (None, presets.ALL))
    assert plan.phases == make_plan(parse({**tiny.CONFIG, 'steps': 10, 'phases': plan.config.phases})).phases


def test_equal_names_and_rules_share_their_compiled_steps():
    by_name = make_plan(parse({**tiny.CONFIG, 'rules': 'discriminative:0.1'}))
    spelt = make_plan(parse({**tiny.CONFIG, 'rules': (('(?!backbone/).*', 1.0), ('backbone/.*', 0.1))}))
    assert (by_name.method, by_name.phases) == (spelt.method, spelt.phases)
    assert dataclasses.replace(by_name.config) == spelt.config and np.isfinite(by_name.rates.lr)
