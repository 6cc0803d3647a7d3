"""Weights of a former run into a fresh model."""

import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.pretrained.load import Pretrained, into, load

CLASSES = ('cat', 'dog')


def filled(value, head=2, **more):
    """Parameters and state of a model, all equal to `value`."""
    shapes = {'backbone/conv/kernel': (3, 4), 'backbone/bn/scale': (4,), 'head/kernel': (4, head), 'head/bias': (head,)}
    params = tree.unflatten({path: np.full(shape, value) for path, shape in {**shapes, **more}.items()})
    return params, {'model': {'batch_stats': {'backbone': {'bn': {'mean': np.full(4, value)}}}}}


def weights(params, state, classes=CLASSES):
    return Pretrained('runs/source', {'name': 'x'}, params, state, classes, {}, 'hash')


def values(node):
    return {path: set(np.ravel(leaf).tolist()) for path, leaf in tree.flatten(node).items()}


def test_into_takes_everything_when_the_classes_are_the_same():
    params, state, origin = into(*filled(0.0), weights(*filled(1.0)), CLASSES)
    assert set(map(tuple, values((params, state)).values())) == {(1.0,)}
    assert set(origin.values()) == {'runs/source'} and len(origin) == 4


@pytest.mark.parametrize('classes', [('dog', 'cat'), ('cat', 'cow')])
def test_into_keeps_the_fresh_head_when_they_are_not_even_of_the_same_number(classes):
    params, state, origin = into(*filled(0.0), weights(*filled(1.0)), classes)
    assert values(params) == {
        'backbone/bn/scale': {1.0},
        'backbone/conv/kernel': {1.0},
        'head/bias': {0.0},
        'head/kernel': {0.0},
    }
    assert values(state) == {'model/batch_stats/backbone/bn/mean': {1.0}}
    assert {path for path, source in origin.items() if source == 'fresh'} == {'head/bias', 'head/kernel'}


def test_into_does_not_mind_another_number_of_classes():
    params, _, _ = into(*filled(0.0, head=5), weights(*filled(1.0)), ('a', 'b', 'c', 'd', 'e'))
    assert params['head']['kernel'].shape == (4, 5) and values(params)['backbone/conv/kernel'] == {1.0}


def test_into_leaves_state_that_the_weights_know_nothing_of():
    params, state = filled(0.0)
    _, state, _ = into(params, {**state, 'queue': {'x': np.zeros(2)}}, weights(*filled(1.0)), CLASSES)
    assert values(state) == {'model/batch_stats/backbone/bn/mean': {1.0}, 'queue/x': {0.0}}


@pytest.mark.parametrize(
    'mine, theirs, message',
    [
        ({'backbone/new/kernel': (2,)}, {}, r'1 missing \(backbone/new/kernel\)'),
        ({}, {'backbone/old/kernel': (2,)}, r'1 left over \(backbone/old/kernel\)'),
        ({'backbone/conv/kernel': (5, 4)}, {}, r'backbone/conv/kernel is \(3, 4\) there, \(5, 4\) here'),
        ({f'backbone/new{i}/kernel': (2,) for i in range(5)}, {}, r'5 missing \(.*new0.*new1.*new2/kernel, …\)'),
    ],
)
def test_into_names_what_does_not_fit(mine, theirs, message):
    # theirs: 12 + 4 + 8 + 2 numbers, without the head 16
    with pytest.raises(UserError, match=rf'the weights of runs/source .* do not fit config\.model: {message}'):
        into(*filled(0.0, **mine), weights(*filled(1.0, **theirs)), ('other', 'classes'))


def test_into_names_a_statistic_of_another_shape():
    params, state = filled(1.0)
    state['model']['batch_stats']['backbone']['bn']['mean'] = np.zeros(7)
    with pytest.raises(UserError, match=r'batch_stats/backbone/bn/mean is \(7,\) there, \(4,\) here'):
        into(*filled(0.0), weights(params, state), CLASSES)


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.init: '.*/none' does not exist; expected the folder of a former run"):
        load(str(tmp_path / 'none'))
    with pytest.raises(UserError, match='it has no config.json'):
        load(str(tmp_path))


def test_into_names_statistics_that_are_missing():
    params, _ = filled(1.0)
    with pytest.raises(UserError, match=r'1 missing \(model/batch_stats/backbone/bn/mean\)'):
        into(*filled(0.0), weights(params, {}), CLASSES)
