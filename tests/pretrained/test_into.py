"""Pretrained weights into a fresh model."""

import numpy as np
import pytest

from jtl import tree
from jtl.errors import UserError
from jtl.pretrained.into import columns, into
from jtl.pretrained.load import Pretrained, load

CLASSES = ('cat', 'dog')
BATCH = {'image': np.zeros((1, 8, 8, 3), np.float32)}


def filled(value, head=2, **more):
    """Parameters and state of a model, all equal to `value`."""
    shapes = {'backbone/conv/kernel': (3, 4), 'backbone/bn/scale': (4,), 'head/kernel': (4, head), 'head/bias': (head,)}
    params = tree.unflatten({path: np.full(shape, value) for path, shape in {**shapes, **more}.items()})
    return params, {'model': {'batch_stats': {'backbone': {'bn': {'mean': np.full(4, value)}}}}}


def weights(params, state, classes=CLASSES, **more):
    return Pretrained('runs/source', {'name': 'mlp'}, params, state, classes, {}, 'hash', **more)


def put(mine, theirs, classes=CLASSES, model={'name': 'mlp'}, batch=BATCH):  # noqa: B006 (never changed)
    return into(*mine, theirs, classes, model, batch)


def values(node):
    return {path: set(np.ravel(leaf).tolist()) for path, leaf in tree.flatten(node).items()}


def test_into_takes_everything_when_the_classes_are_the_same():
    params, state, origin = put(filled(0.0), weights(*filled(1.0)))
    assert set(map(tuple, values((params, state)).values())) == {(1.0,)}
    assert set(origin.values()) == {'runs/source'} and len(origin) == 5  # 4 parameters and a statistic


def test_into_says_which_tensor_a_leaf_was():
    named = weights(*filled(1.0), origin={'backbone/conv/kernel': 'conv.weight (transposed)'})
    _, _, origin = put(filled(0.0), named)
    assert origin['backbone/conv/kernel'] == 'runs/source conv.weight (transposed)'


@pytest.mark.parametrize('classes', [('dog', 'cat'), ('cat', 'cow')])
def test_into_keeps_the_fresh_head_when_the_classes_are_not_the_same_in_the_same_order(classes):
    params, state, origin = put(filled(0.0), weights(*filled(1.0)), classes)
    assert values(params) == {
        'backbone/bn/scale': {1.0},
        'backbone/conv/kernel': {1.0},
        'head/bias': {0.0},
        'head/kernel': {0.0},
    }
    assert values(state) == {'model/batch_stats/backbone/bn/mean': {1.0}}
    assert {path for path, source in origin.items() if source == 'fresh'} == {'head/bias', 'head/kernel'}


def test_into_does_not_mind_another_number_of_classes_or_no_head_at_all():
    params, _, _ = put(filled(0.0, head=5), weights(*filled(1.0)), ('a', 'b', 'c', 'd', 'e'))
    assert params['head']['kernel'].shape == (4, 5) and values(params)['backbone/conv/kernel'] == {1.0}
    bare, state = filled(1.0)
    del bare['head']
    params, _, _ = put(filled(0.0), weights(bare, state, ()))
    assert values(params)['head/kernel'] == {0.0} and values(params)['backbone/conv/kernel'] == {1.0}


def test_into_keeps_the_head_or_not_as_it_is_told():
    params, _, _ = put(filled(0.0), weights(*filled(1.0), head='fresh'))
    assert values(params)['head/kernel'] == {0.0}
    params, _, _ = put(filled(0.0), weights(*filled(1.0), (), head='keep'), ('a', 'b'))
    assert values(params)['head/kernel'] == {1.0}
    with pytest.raises(UserError, match=r'head/kernel is \(4, 2\) there, \(4, 3\) here'):
        put(filled(0.0, head=3), weights(*filled(1.0), (), head='keep'), ('a', 'b', 'c'))


def test_into_takes_the_columns_of_the_classes_whose_names_agree():
    # there 0: 'tabby, Egyptian cat', 1: 'golden_retriever', 2: 'Cow'; here cow, egyptian-cat, horse
    params, state = filled(1.0, head=3)
    params['head'] = {'kernel': np.arange(12.0).reshape(4, 3), 'bias': np.array([10.0, 11.0, 12.0])}
    theirs = weights(params, state, ('tabby, Egyptian cat', 'golden_retriever', 'Cow'), head='names')
    params, _, origin = put(filled(-1.0, head=3), theirs, ('cow', 'egyptian-cat', 'horse'))
    np.testing.assert_array_equal(params['head']['bias'], [12, 10, -1])
    np.testing.assert_array_equal(params['head']['kernel'][1], [5, 3, -1])
    assert origin['head/bias'].endswith('2 of 3 classes by name')


def test_columns_are_those_of_whole_names_first_and_of_no_name_that_could_mean_two():
    classes = ('crane', 'cardigan, corgi', 'cardigan', 'crane', 'Bull_dog, pug', 'boxer, pug')
    assert columns(classes) == {
        'cardigan, corgi': 1, 'corgi': 1, 'cardigan': 2, 'bull dog, pug': 4, 'bull dog': 4, 'boxer, pug': 5, 'boxer': 5
    }  # fmt: skip


def test_into_takes_no_columns_of_another_length():
    params, state = filled(1.0)
    params['head']['kernel'] = np.ones((7, 2))
    with pytest.raises(UserError, match=r'head/kernel is \(7, 2\) there, \(4, 2\) here'):
        put(filled(0.0), weights(params, state, head='names'))


def test_into_refuses_names_that_say_nothing():
    with pytest.raises(UserError, match='none of the classes here is one of runs/source: a, b there: cat, dog'):
        put(filled(0.0), weights(*filled(1.0), head='names'), ('a', 'b'))
    with pytest.raises(UserError, match='nothing says what the classes of runs/source are called'):
        put(filled(0.0), weights(*filled(1.0), (), head='names'), ('a', 'b'))


def test_into_leaves_state_that_the_weights_know_nothing_of():
    params, state = filled(0.0)
    _, state, _ = put((params, {**state, 'queue': {'x': np.zeros(2)}}), weights(*filled(1.0)))
    assert values(state) == {'model/batch_stats/backbone/bn/mean': {1.0}, 'queue/x': {0.0}}


@pytest.mark.parametrize(
    'mine, theirs, message',
    [
        ({'backbone/new/kernel': (2,)}, {}, r'1 missing:\n  backbone/new/: kernel$'),
        ({}, {'backbone/old/kernel': (2,)}, r'1 left over:\n  backbone/old/: kernel$'),
        (
            {'backbone/conv/kernel': (5, 4)},
            {},
            r'1 of another shape:\n  backbone/conv/kernel is \(3, 4\) there, \(5, 4\) here$',
        ),
        (
            {f'backbone/stage1/block0/bn{i}/{x}': (2,) for i in (1, 2) for x in ('bias', 'scale')},
            {'backbone/old/kernel': (2,)},
            r'4 missing:\n  backbone/stage1/block0/: bn1/bias, bn1/scale, bn2/bias, bn2/scale\n'
            r'1 left over:\n  backbone/old/: kernel$',
        ),
    ],
)
def test_into_names_all_that_does_not_fit(mine, theirs, message):
    said = r"config\.init: runs/source looks like \{'name': 'mlp'\}; it does not fit config\.model:\n"
    with pytest.raises(UserError, match=said + message):
        put(filled(0.0, **mine), weights(*filled(1.0, **theirs)), ('other', 'classes'))


def test_into_names_statistics_that_are_missing_or_of_another_shape():
    params, state = filled(1.0)
    with pytest.raises(UserError, match=r'1 missing:\n  model/batch_stats/backbone/bn/: mean'):
        put(filled(0.0), weights(params, {}))
    state['model']['batch_stats']['backbone']['bn']['mean'] = np.zeros(7)
    with pytest.raises(UserError, match=r'batch_stats/backbone/bn/mean is \(7,\) there, \(4,\) here'):
        put(filled(0.0), weights(params, state))


def test_into_leaves_fresh_what_may_be_missing():
    mine = filled(0.0, **{'backbone/new/kernel': (2,)})
    params, _, origin = put(mine, weights(*filled(1.0), missing=('backbone/new/.*',)))
    assert values(params)['backbone/new/kernel'] == {0.0} and origin['backbone/new/kernel'] == 'fresh'


def test_load_refuses_options_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"unknown config\.load\.head 'kep': did you mean 'keep'"):
        load('x', head='kep')
    with pytest.raises(UserError, match=r"config\.load\.missing: '\(' is not a regular expression"):
        load('x', missing=('(',))
