"""A run that begins as a larger network of the same function."""

import json

import numpy as np
import pytest
import tiny

from jtl import train
from jtl.errors import UserError
from jtl.pretrained.into import into
from jtl.pretrained.load import Pretrained

SMALL = {'name': 'mlp', 'hidden': (8,)}
CONFIG = {**tiny.CONFIG, 'model': SMALL, 'select': None, 'eval_every': 1}
BATCH = {'image': np.zeros((1, 2, 2, 1), np.float32)}


def rows(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [row for row in lines if row['split'] == 'val']


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('grow') / 'source'
    train.train({**CONFIG, 'steps': 6}, folder, quiet=True)
    return folder


def test_grow_in_a_run_begins_where_the_weights_ended(source, tmp_path):
    larger = {**CONFIG, 'model': {'hidden': (16, 12)}, 'init': str(source), 'load': {'grow': True}, 'steps': 2}
    still = {**larger, 'optim': {'name': 'sgd', 'lr': 1e-12}}  # what is evaluated is what was loaded
    train.train(still, tmp_path / 'still', quiet=True)
    train.train(larger, tmp_path / 'trained', quiet=True)
    was, still, trained = (rows(folder) for folder in (source, tmp_path / 'still', tmp_path / 'trained'))
    assert still[0]['loss'] == pytest.approx(was[-1]['loss'], abs=1e-5)
    assert abs(was[-1]['loss'] - was[0]['loss']) > 1e-2  # it is not what any network has
    assert abs(trained[-1]['loss'] - still[0]['loss']) > 1e-4
    table = (tmp_path / 'still/params.txt').read_text()
    assert f'{source}, grown from (64, 8)' in table and f'{source}, a new layer' in table


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model': {'hidden': (4,)}}, r'config\.model\.hidden\[0\]: 4 is below the 8 of the weights; growth only adds'),
        ({'model': {'name': 'conv4'}}, 'the weights are of mlp, which grows into a larger mlp, not into conv4'),
        ({'model': {'hidden': (16,)}, 'load': {}}, 'does not fit config.model'),
    ],
)
def test_grow_refuses_another_or_less(source, tmp_path, changes, message):
    config = {**CONFIG, 'init': str(source), 'load': {'grow': True}, **changes}
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run/params.txt').exists()


def test_grow_leaves_a_new_head_for_other_classes():
    layer = lambda shape, value: {'kernel': np.full(shape, value, np.float32), 'bias': np.full(shape[-1:], value)}
    theirs = {'backbone': {'fc1': layer((4, 2), 1.0)}, 'head': layer((2, 3), 1.0)}
    mine = {'backbone': {'fc1': layer((4, 5), 0.0)}, 'head': layer((5, 2), 7.0)}
    weights = Pretrained('x', {**SMALL, 'hidden': (2,)}, theirs, {}, ('a', 'b', 'c'), {}, '', grow=True)
    params, _, origin = into(mine, {}, weights, ('a', 'd'), {**SMALL, 'hidden': (5,)}, BATCH)
    assert (params['head']['kernel'] == 7).all() and origin['head/kernel'] == 'fresh'
    assert (params['backbone']['fc1']['kernel'] == 1).all()
    assert origin['backbone/fc1/kernel'] == 'x, grown from (4, 2)'


def test_grow_needs_whole_weights():
    weights = Pretrained('x', SMALL, {'backbone': {'fc1': {'kernel': np.ones((4, 8))}}}, {}, (), {}, '', grow=True)
    with pytest.raises(UserError, match=r'x lacks 1 .*\n  backbone/fc1/: bias$'):
        into(weights.params, {}, weights, ('a',), {**SMALL, 'hidden': (9,)}, BATCH)
