"""Which examples are held out, and which few are kept."""

import numpy as np
import pytest
import tiny

from jtl.config import parse
from jtl.data.source import Source, Split
from jtl.data.splits import divide, to_sample
from jtl.errors import UserError
from jtl.plan import make_plan

COUNTS = (40, 20, 3)  # examples of each class
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS)).astype(np.int32)


def source(labels=LABELS, **others):
    splits = {name: Split(np.asarray(y), lambda i: {}) for name, y in {'train': labels, **others}.items()}
    return Source(splits, ('a', 'b', 'c'), 3)


def split(src=None, **options):
    defaults = {'val': 0.1, 'test': 0.15, 'order': 'random', 'split_seed': 0, 'seed': 0}
    defaults |= {'labels_per_class': None, 'test_per_class': None}
    return divide(src or source(), **{**defaults, **options})


def count(part, labels=LABELS):
    return np.bincount(labels[part[1]], minlength=3).tolist()


def test_divide_holds_out_a_share_of_every_class():
    parts = split()
    assert {name: where for name, (where, _) in parts.items()} == dict.fromkeys(('train', 'val', 'test'), 'train')
    # test: round(0.15 · 40) = 6, round(0.15 · 20) = 3, of 3 at least one. Then val, of the 34, 17 and 2 that are left:
    # round(3.4) = 3, round(1.7) = 2 and at least one.
    assert (count(parts['test']), count(parts['val'])) == ([6, 3, 1], [3, 2, 1])
    assert count(parts['train']) == [31, 15, 1]


def test_divide_puts_every_example_in_one_place():
    parts = split()
    together = np.concatenate([index for _, index in parts.values()])
    assert sorted(together) == list(range(len(LABELS)))
    assert all((np.diff(index) > 0).all() for _, index in parts.values())  # ascending


def test_divide_never_empties_a_class_of_train():
    parts = split(source(np.array([0, 1, 1])), val=0.9, test=0.9)
    # one 0 stays. Of two 1s the test takes one, and the validation split finds none to spare, so there is none.
    assert parts['train'][1].tolist()[0] == 0 and len(parts['train'][1]) == 2 and len(parts['test'][1]) == 1
    assert 'val' not in parts


def test_divide_is_drawn_by_split_seed_and_not_by_the_seed_of_the_run():
    one, same, other = split(seed=1), split(seed=2), split(split_seed=1)
    for name in one:
        np.testing.assert_array_equal(one[name][1], same[name][1])
    assert not np.array_equal(one['test'][1], other['test'][1]) and count(one['test']) == count(other['test'])


def test_divide_in_order_holds_out_the_last_of_each_class():
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1], np.int32)  # class 0 is the even rows
    parts = split(source(labels), order='sequential', test=0.2, val=0.25)
    # test: round(0.2 · 5) = 1 of each, the last: 8 and 9; val: round(0.25 · 4) = 1 of each, the last that is left
    assert {name: index.tolist() for name, (_, index) in parts.items()} == {
        'train': [0, 1, 2, 3, 4, 5],
        'val': [6, 7],
        'test': [8, 9],
    }


def test_divide_keeps_the_splits_that_the_data_came_with():
    parts = split(source(test=[0, 1, 2, 0]))
    assert parts['test'][0] == 'test' and parts['test'][1].tolist() == [0, 1, 2, 3]
    assert parts['val'][0] == 'train' and count(parts['val']) == [4, 2, 1]
    parts = split(source(val=[0, 1, 2, 0]))
    assert parts['val'][0] == 'val' and set(parts) == {'train', 'val'}  # nobody takes a test split from its train
    assert count(parts['train']) == list(COUNTS)


def test_divide_holds_out_nothing_when_told_so():
    assert set(split(val=0.0, test=0.0)) == {'train'}
    assert set(split(test=0.0)) == {'train', 'val'}


def test_divide_holds_out_of_several_labels_as_of_one_class():
    labels = np.eye(3, dtype=np.float32)[LABELS]
    parts = split(source(labels), test=0.0)
    assert len(parts['val'][1]) == 6 and len(parts['train'][1]) == 57  # round(0.1 · 63) = 6


def test_few_labels_are_the_same_number_of_each_class_and_no_more_to_validate_with():
    parts = split(labels_per_class=1, val=0.3)
    assert count(parts['train']) == [1, 1, 1] and count(parts['val']) == [1, 1, 1]
    parts = split(source(np.repeat([0, 1, 2], 40)), labels_per_class=10)
    labels = np.repeat([0, 1, 2], 40)
    # test takes 6 of 40, val round(3.4) = 3 of the 34 left, which are fewer than 10
    assert count(parts['train'], labels) == [10] * 3 and count(parts['val'], labels) == [3] * 3
    assert count(parts['test'], labels) == [6] * 3  # the test split is whole, whatever the number of labels


def test_few_labels_are_drawn_by_the_seed_of_the_run_from_the_same_examples():
    labels = np.repeat([0, 1, 2], 40)
    all_train = set(split(source(labels))['train'][1])
    one, same, other = (split(source(labels), labels_per_class=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one['train'][1], same['train'][1])
    assert not np.array_equal(one['train'][1], other['train'][1])
    np.testing.assert_array_equal(one['test'][1], other['test'][1])
    assert set(one['train'][1]) | set(other['train'][1]) <= all_train


def test_few_test_examples_are_the_same_for_every_seed_and_change_nothing_else():
    labels = np.repeat([0, 1, 2], [40, 20, 5])
    whole, few, other = (split(source(labels), test=0.4, **more) for more in (
        {}, {'test_per_class': 3, 'seed': 1}, {'test_per_class': 3, 'seed': 2},
    ))  # fmt: skip
    assert np.bincount(labels[few['test'][1]]).tolist() == [3, 3, 2]
    assert set(few['test'][1]) < set(whole['test'][1]) and np.array_equal(few['test'][1], other['test'][1])
    assert np.array_equal(few['train'][1], whole['train'][1]) and np.array_equal(few['val'][1], whole['val'][1])
    with pytest.raises(UserError, match='test_per_class: 0 should be at least 1'):
        split(source(labels), test_per_class=0)


def test_few_labels_of_a_larger_number_contain_those_of_a_smaller():
    labels = np.repeat([0, 1, 2], 40)
    few, more = (split(source(labels), labels_per_class=n)['train'][1] for n in (2, 5))
    assert set(few) < set(more)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            {'labels_per_class': 2},
            r"labels_per_class: 2 asked for, but class 'c' has 1 training examples; the most is 1",
        ),
        ({'labels_per_class': 0}, r'labels_per_class: 0 should be at least 1, or None for all'),
        ({'val': 1.0}, r'config\.data\.val: 1\.0 should be a share'),
        ({'test': -0.1}, r'config\.data\.test: -0\.1 should be a share'),
        ({'val': float('nan')}, r'config\.data\.val: nan should be a share'),
        ({'order': 'backwards'}, r'config\.data\.order: \'backwards\' should be "random" or "sequential"'),
    ],
)
def test_divide_refuses(options, message):
    with pytest.raises(UserError, match=message):
        split(**options)


def test_few_labels_need_one_label_an_example():
    with pytest.raises(UserError, match='several labels each'):
        split(source(np.eye(3, dtype=np.float32)[LABELS]), labels_per_class=1)


def test_few_labels_and_their_order_are_the_same_whatever_learns_from_them():
    def planned(**changes):
        return make_plan(parse({**tiny.CONFIG, **changes})).data

    few = planned()
    augmented = {**tiny.CONFIG['data'], 'augment': (('rand_augment', 2, 9), 'flip')}
    for other in (
        planned(method={'name': 'supervised', 'cutmix': 1.0, 'focal': 2.0}),
        planned(model={'name': 'conv4', 'width': 2, 'head': {'name': 'cosine'}}),
        planned(data=augmented, rules=tiny.HEAD, optim={'name': 'adam', 'lr': 1.0}),
    ):
        assert other.fingerprint == few.fingerprint and other.sizes == few.sizes
        for name, (where, index) in few.parts.items():
            assert other.parts[name][0] == where
            np.testing.assert_array_equal(other.parts[name][1], index)
        for step in range(8):
            np.testing.assert_array_equal(other.order(step), few.order(step))
    assert not np.array_equal(planned(seed=1).parts['train'][1], few.parts['train'][1])


@pytest.mark.parametrize('sampling, expected', [('uniform', 0), ('balanced', 2)])
def test_to_sample_groups_training_examples_by_class(sampling, expected):
    labels = np.array([2, 0, 2, 2, 0, 1], np.int32)
    groups = to_sample(sampling, source(labels), {'train': ('train', np.array([0, 1, 3, 4]))})  # class 1 has none here
    assert len(groups) == expected
    assert [group.tolist() for group in groups] == [[1, 4], [0, 3]][:expected]
