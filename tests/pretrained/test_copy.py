"""Layers copied by rule into a network of other depth or width."""

import functools

import jax
import numpy as np
import pytest
import tiny

from jtl import models, train, tree
from jtl.errors import UserError
from jtl.pretrained.into import copied, into
from jtl.pretrained.load import Pretrained, check

CLASSES = ('a', 'b', 'c')
BATCH = {'image': np.zeros((1, 8, 8, 3), np.float32)}
VIT = {'name': 'vit', 'width': 8, 'heads': 2, 'depth': 4}
MOBILENET = {'name': 'mobilenetv1', 'stem': 8, 'channels': (8, 16, 16, 16, 16), 'repeats': (1, 1, 1, 1, 1)}
FRESH = ('.*', None)


def network(model, seed, batch=BATCH):
    """`(params, state)` of random numbers, all different."""
    rng = np.random.default_rng(seed)
    init = functools.partial(models.build(num_classes=len(CLASSES), **model).init, train=False)
    shapes = dict(jax.eval_shape(init, jax.random.key(0), batch))
    made = tree.map_paths(lambda _, leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params = made.pop('params')
    return params, {'model': made} if made else {}


def put(mine, theirs, rules, model=VIT, batch=BATCH, **more):
    weights = Pretrained('runs/source', model, *theirs, ('x', 'y', 'z'), {}, 'hash', copy=rules, **more)
    params, state, origin = into(*mine, weights, CLASSES, model, batch)
    return tree.flatten({**params, 'model': state.get('model', {})}), origin


def test_copy_takes_every_second_block_of_a_deeper_vit():
    mine, theirs = network({**VIT, 'depth': 2}, 1), network(VIT, 2)
    rules = (
        (r'backbone/block0/(.*)', r'backbone/block1/\1'),
        (r'backbone/block1/(.*)', r'backbone/block3/\1'),
        (r'backbone/.*', r'\g<0>'),
        FRESH,
    )
    got, origin = put(mine, theirs, rules)
    ours, source = tree.flatten(mine[0]), tree.flatten(theirs[0])
    np.testing.assert_array_equal(got['backbone/block1/mlp/fc1/kernel'], source['backbone/block3/mlp/fc1/kernel'])
    np.testing.assert_array_equal(got['backbone/block0/attn/out/bias'], source['backbone/block1/attn/out/bias'])
    np.testing.assert_array_equal(got['backbone/patch/kernel'], source['backbone/patch/kernel'])
    np.testing.assert_array_equal(got['head/kernel'], ours['head/kernel'])
    assert origin['backbone/block1/mlp/fc1/kernel'] == 'runs/source, backbone/block3/mlp/fc1/kernel'
    assert origin['backbone/patch/kernel'] == 'runs/source' and origin['head/bias'] == 'fresh'


def test_copy_takes_the_first_blocks_with_their_statistics_where_later_ones_are_of_another_width():
    wide = {**MOBILENET, 'channels': (8, 12, 24, 24, 24)}
    mine, theirs = network(wide, 1), network(MOBILENET, 2)
    rules = (
        (r'((?:model/batch_stats/)?backbone/(?:stem|block0)/.*)', r'\1'),
        FRESH,
    )
    got, origin = put(mine, theirs, rules, wide)
    source = tree.flatten({**theirs[0], **theirs[1]})
    ours = tree.flatten({**mine[0], **mine[1]})
    taken = {path for path, where in origin.items() if where != 'fresh'}
    assert taken == {path for path in got if 'backbone/stem/' in path or 'backbone/block0/' in path}
    assert sum(path.startswith('model/batch_stats/') for path in taken) == 2 * 3  # the stem, depthwise, pointwise
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, (source if path in taken else ours)[path])


def test_copy_takes_a_head_if_a_rule_says_so_and_leaves_what_a_method_keeps():
    mine, theirs = network(VIT, 1), network(VIT, 2)
    mine = mine[0], {'queue': np.ones(2)}
    got, _ = put(mine, theirs, ((r'head/.*', r'\g<0>'), FRESH))
    np.testing.assert_array_equal(got['head/kernel'], theirs[0]['head']['kernel'])


def test_copy_resizes_positions_as_loading_does():
    mine, theirs = network(VIT, 1, {'image': np.zeros((1, 16, 16, 3))}), network(VIT, 2)
    got, origin = put(mine, theirs, (('backbone/.*', r'\g<0>'), FRESH), batch={'image': np.zeros((1, 16, 16, 3))})
    assert got['backbone/position'].shape == (1, 17, 8)
    assert origin['backbone/position'] == 'runs/source, 5 → 17 tokens'


@pytest.mark.parametrize(
    'rules, message',
    [
        ((('backbone/blok0/.*', None), FRESH), r"config\.load\.copy: 'backbone/blok0/\.\*' matches no parameter"),
        ((('backbone/.*', None),), r"no rule covers 'head/bias'. End with \('\.\*', None\)"),
        (
            ((r'backbone/block(\d)/(.*)', r'backbone/block\1/mlp/\2'), FRESH),
            r"takes backbone/block0/attn/key/bias from 'backbone/block0/mlp/attn/key/bias', .* did you mean",
        ),
        (
            (('head/kernel', 'backbone/patch/bias'), FRESH),
            r'leaves that fresh:\n  head/kernel is \(8, 3\) here, \(8,\) there: runs/source, backbone/patch/bias$',
        ),
        (
            ((r'backbone/block0/mlp/fc1/(.*)', r'backbone/block1/mlp/fc2/\1'), FRESH),
            r'bias is \(32,\) here, \(8,\) there: runs/source, .*mlp/fc2/bias\n.*kernel is \(8, 32\) here',
        ),
    ],
)
def test_copy_refuses_rules_that_do_not_fit(rules, message):
    with pytest.raises(UserError, match=message):
        put(network(VIT, 1), network(VIT, 2), rules)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'copy': (('(', None),)}, r"config\.load\.copy: '\(' to None cannot be"),
        ({'copy': (('head/(.*)', r'\2'),)}, r'config\.load\.copy: .* cannot be: invalid group reference 2'),
        ({'copy': ('head/.*', None)}, r'config\.load\.copy: expected \(\('),
        ({'copy': (('head/.*', 1.0),)}, r'config\.load\.copy: expected \(\('),
        ({'copy': (FRESH,), 'grow': True}, r'config\.load\.grow: the rules of config\.load\.copy say'),
        ({'copy': (FRESH,), 'head': 'keep'}, r'config\.load\.head: the rules'),
        ({'copy': (FRESH,), 'missing': ('a',)}, r'config\.load\.missing: the rules'),
        ({'grow': True, 'grow_noise': 1.5}, r'config\.load\.grow_noise: 1\.5 should be in \[0, 1\]'),
    ],
)
def test_copy_is_checked_before_anything_is_opened(options, message):
    with pytest.raises(UserError, match=message):
        check(**options)


def test_copied_says_which_leaf_goes_where():
    rules = (('.*bias', None), (r'block0/(.*)', r'block4/\1'))
    assert copied(['block0/bias', 'block0/kernel'], ['block4/kernel'], rules) == {'block0/kernel': 'block4/kernel'}


def adapted(key):
    params, state = network(VIT, 1)
    return {**params, key: {'backbone': {'block0': {'a': np.full((8, 2), 5.0)}}}}, state


def test_into_leaves_adapters_fresh_that_plain_weights_know_nothing_of():
    mine, theirs = adapted('lora'), network(VIT, 2)
    weights = Pretrained('runs/source', VIT, *theirs, CLASSES, {}, 'hash')
    params, _, origin = into(*mine, weights, CLASSES, VIT, BATCH)
    assert origin['lora/backbone/block0/a'] == 'fresh' and params['lora']['backbone']['block0']['a'][0, 0] == 5
    np.testing.assert_array_equal(params['backbone']['patch']['kernel'], theirs[0]['backbone']['patch']['kernel'])
    np.testing.assert_array_equal(params['head']['kernel'], theirs[0]['head']['kernel'])


def test_into_still_wants_a_whole_backbone_and_adapters_that_fit():
    short, state = network({**VIT, 'depth': 3}, 2)
    with pytest.raises(UserError, match=r'missing:\n  backbone/block3/'):
        into(*adapted('lora'), Pretrained('x', VIT, short, state, CLASSES, {}, ''), CLASSES, VIT, BATCH)
    with pytest.raises(UserError, match=r'1 left over:\n  lora/backbone/block0/: a'):
        into(*network(VIT, 1), Pretrained('x', VIT, *adapted('lora'), CLASSES, {}, ''), CLASSES, VIT, BATCH)
    other = adapted('lora')
    other[0]['lora']['backbone']['block1'] = {'a': np.zeros((8, 2))}
    with pytest.raises(UserError, match=r'1 missing:\n  lora/backbone/block1/: a'):
        into(*other, Pretrained('x', VIT, *adapted('lora'), CLASSES, {}, ''), CLASSES, VIT, BATCH)


def test_copy_in_a_run(tmp_path):
    model = {'name': 'mlp', 'hidden': (8, 8)}
    train.train({**tiny.CONFIG, 'model': model}, tmp_path / 'source', quiet=True)
    rules = (('backbone/fc1/.*', r'\g<0>'), (r'head/(\w+)', r'head/\1'))
    config = {**tiny.CONFIG, 'model': {'hidden': (8,)}, 'init': str(tmp_path / 'source'), 'load': {'copy': rules}}
    train.train(config, tmp_path / 'run', quiet=True)
    table = (tmp_path / 'run/params.txt').read_text()
    assert table.count(str(tmp_path / 'source')) == 4 and 'fc2' not in table
    with pytest.raises(UserError, match='no rule covers'):
        train.train({**config, 'load': {'copy': rules[:1]}}, tmp_path / 'wrong', quiet=True)
