"""Choosing a head: who learns and who judges, that nobody judges what it has learnt from, and what the test says."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jtl.errors import UserError
from jtl.probe import choose
from jtl.probe.choose import Candidate, best, candidates
from jtl.probe.folds import divisions, folds

QUICK = ('mean', 'ridge', 'knn')


@pytest.fixture(scope='module')
def wine():
    """178 wines of 3 kinds, in the order of a seed, the features of very different scales."""
    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order].astype(np.float32), y[order]


def blobs(count, features=6, apart=1.5, seed=0):
    """Gaussians, `count[k]` examples of class k."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(count)), count))
    middle = rng.normal(0, apart, (len(count), features))
    return (middle[y] + rng.normal(size=(len(y), features))).astype(np.float32), y


# Who judges.


@pytest.mark.parametrize('order', ['random', 'sequential'])
def test_folds_judge_each_example_once_and_by_others(order):
    _, y = blobs((31, 7, 2, 12))
    parts = folds(y, 5, order)
    assert sorted(np.concatenate([judges for _, judges in parts])) == list(range(len(y)))
    assert len({len(learn) for learn, _ in parts}) == 1
    for learn, judges in parts:
        assert not set(learn) & set(judges)
        assert len(y) - len(learn) - len(judges) <= 1  # left out, so that all are of one size
        assert set(y[learn]) == set(range(4))
        for k, n in enumerate((31, 7, 2, 12)):
            assert math.floor(n / 5) <= (y[judges] == k).sum() <= math.ceil(n / 5)


def test_folds_keep_a_class_of_one_to_learn_from():
    y = np.array([0] * 9 + [1] + [2] * 6)
    for learn, judges in folds(y, 3):
        assert 9 in learn and 9 not in judges


def test_folds_keep_neighbours_together_where_they_look_alike():
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 20))
    for _, judges in folds(y, 5, 'sequential'):
        for k in range(3):
            place = np.searchsorted(np.flatnonzero(y == k), judges[y[judges] == k])
            assert (np.diff(place) == 1).all()
    spread = [np.diff(judges[y[judges] == 0]) for _, judges in folds(y, 5)]
    assert any((d > 10).any() for d in spread)


def test_divisions_trust_a_validation_split_of_some_size_only():
    y = np.arange(1000) % 4
    ((learn, judges),) = divisions(y, 200)
    assert learn.tolist() == list(range(800)) and judges.tolist() == list(range(800, 1000))
    assert len(divisions(y, 199)) == 5
    assert len(divisions(y, 199, 0)) == 1 and len(divisions(y, 200, 3)) == 3


# Who is judged.


def test_candidates_of_ridge_and_neighbours_are_judged_as_by_sklearn(wine):
    """Standardised by those that learn; the penalty is a share, λ = penalty · N."""
    x, y = wine[0] / wine[0].std(0) * np.linspace(1, 5, 13, dtype=np.float32), wine[1]
    parts = folds(y, 4)
    found = candidates({'a': x}, y, 'xyz', parts, ('ridge', 'knn'))
    for c in found:
        right = []
        for learn, judges in parts:
            if c.head == 'ridge':
                model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=c.setting['penalty'] * len(learn)))
            elif c.setting['metric'] == 'euclid':
                model = make_pipeline(StandardScaler(), KNeighborsClassifier(c.setting['k']))
            else:
                model = KNeighborsClassifier(c.setting['k'], metric='cosine')
            right += (
                model.fit(x[learn].astype(float), y[learn]).predict(x[judges].astype(float)) == y[judges]
            ).tolist()
        assert c.value == pytest.approx(np.mean(right), abs=1e-7), c
    assert len({c.value for c in found}) > 5  # they do differ


def test_candidates_learn_nothing_from_labels_drawn_by_lot():
    """Whoever sees a judge's label gets it right, k = 1 for certain; else half are right, standard deviation 0.04."""
    x, _ = blobs((75, 75))
    y = np.random.default_rng(1).integers(0, 2, 150)
    found = candidates({'a': x}, y, 'ab', folds(y, 3), ('ridge', 'linear', 'knn'))
    assert max(c.value for c in found) < 0.68


def test_candidates_that_cannot_be_say_why_and_the_others_go_on():
    x, y = blobs((12, 9, 1))
    found = candidates({'a': x}, y, ('p', 'q', 'r'), folds(y, 4), (*QUICK, 'qda'))
    reasons = {(c.head, c.setting.get('k')): c.reason for c in found if c.reason}
    assert reasons['knn', 50].startswith('50 neighbours, but 1')
    assert "'r' (1)" in reasons['qda', None]
    assert all(math.isnan(c.value) for c in found if c.reason)
    assert best(found).value > 0.7


def test_candidates_of_several_labels():
    x, y = blobs((60, 60), apart=2.0)
    several = np.stack([y, 1 - y, x[:, 0] > 0], 1).astype(np.float32)
    found = candidates({'a': x}, several, 'abc', folds(several, 4), (*QUICK, 'lda', 'logistic'))
    assert {c.reason for c in found if c.head in ('mean', 'lda')} == {'examples with several labels'}
    assert all(best(found, [head]).value > 0.9 for head in ('ridge', 'logistic', 'knn'))
    found = candidates({'a': x}, several, 'abc', folds(several, 4), ['ridge'], metric='map')
    assert best(found).value > 0.9
    with pytest.raises(UserError, match='map is not defined for examples with one label of 2 classes'):
        candidates({'a': x}, y, 'ab', folds(y, 4), ['ridge'], metric='map')


def test_candidates_leave_out_a_layer_that_another_equals(wine):
    x, y = wine
    found = candidates({'features': x, 'block3': x * 1, 'block2': x + 1}, y, 'xyz', folds(y, 3), ['mean'])
    assert [c.reason for c in found if c.layer == 'block3'] == ['the same as features'] * 2
    assert not any(c.reason for c in found if c.layer != 'block3')


@pytest.mark.parametrize('names', [('told', 'noise'), ('noise', 'told')])
def test_candidates_by_gradient_descent_go_with_their_layer(names):
    x, y = blobs((50, 70), apart=2.0)
    given = {'told': x, 'noise': np.random.default_rng(3).normal(size=(120, 9)).astype(np.float32)}
    found = candidates({name: given[name] for name in names}, y, 'ab', folds(y, 2), ('linear', 'ridge'))
    for head in ('linear', 'ridge'):
        assert best(found, [head]).layer == 'told'
        assert best(found, [head], 'told').value > 0.9 > 0.7 > best(found, [head], 'noise').value


def test_candidates_with_class_weights_heed_the_rare_class():
    x, y = blobs((190, 14), apart=0.6, features=4)
    parts = folds(y, 5)
    plain, weighted = (
        candidates({'a': x}, y, 'ab', parts, ('ridge', 'logistic', 'lda'), metric='recall_macro', weights=weights)
        for weights in (None, 'balanced')
    )
    for head in ('ridge', 'logistic', 'lda'):
        assert best(weighted, [head]).value > best(plain, [head]).value + 0.1


def test_candidates_refuse_unknown_names(wine):
    for options, said in (({'heads': ['rigde']}, "'rigde'.*'ridge'"), ({'metric': 'acuracy'}, "'acuracy'.*'accuracy'")):
        with pytest.raises(UserError, match=said):
            candidates({'a': wine[0]}, wine[1], 'xyz', folds(wine[1], 2), **options)


def test_best_takes_the_first_of_equals_and_none_without_a_value():
    found = [
        Candidate('b', 'mean', {}, math.nan, 0.0, 'why not'),
        Candidate('a', 'mean', {'k': 1}, 0.8, 0.0),
        Candidate('a', 'mean', {'k': 2}, 0.8, 0.0),
        Candidate('a', 'ridge', {}, 0.7, 0.0),
    ]
    assert best(found) is found[1]
    assert best(found, ['ridge']) is found[3]
    with pytest.raises(UserError, match='mean: why not'):
        best(found, layer='b')


# The chosen one.


def test_refit_learns_from_all(wine):
    x, y = wine
    probe = choose.refit(Candidate('a', 'logistic', {'penalty': 0.01}, 0, 0), x, y, 'xyz')
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-8, max_iter=5000)).fit(
        x, y
    )
    ours = probe.scores(x)
    theirs = model.decision_function(x)
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs, atol=5e-3)  # float32 and its tolerance
    folded = np.asarray(probe.head.linear().scores(x)[0])  # standardisation in the kernel
    np.testing.assert_allclose(folded, ours, atol=2e-3)  # features up to 1,680, standard deviations down to 0.12


def test_held_out_scores_are_what_was_judged(wine):
    x, y = wine
    parts = folds(y, 4)
    c = best(candidates({'a': x}, y, 'xyz', parts, ['knn']))
    rows, scores = choose.held_out(c, x, y, 'xyz', parts)
    assert sorted(rows) == list(range(len(y)))
    assert np.mean(scores.argmax(1) == y[rows]) == pytest.approx(c.value, abs=1e-7)


@pytest.mark.parametrize('K', [2, 5])
def test_temperature_finds_what_logits_were_divided_by(K):
    """Labels drawn from the logits' own softmax: 4000 tell the factor to a few percent; the grid's step is 6 %."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, K))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random((4000, 1))).sum(1)
    assert choose.temperature(logits / 20, y) == pytest.approx(20, rel=0.1)


def test_measured_is_as_sklearn_says_with_intervals_around_it():
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.2).astype(int)
    scores = np.stack([np.zeros(300), rng.normal(size=300) + 2 * y - 1], 1)
    found = choose.measured(scores, y, 'ab', samples=300)
    assert found['f1_macro']['value'] == pytest.approx(f1_score(y, scores.argmax(1), average='macro'))
    assert found['auroc']['value'] == pytest.approx(roc_auc_score(y, scores[:, 1]))
    right = np.mean(scores.argmax(1) == y)
    middle, half = (
        (right + 0.006402) / 1.012805,
        1.959964 * math.sqrt(right * (1 - right) / 300 + 0.00001067) / 1.012805,
    )
    assert found['accuracy'] == pytest.approx({'value': right, 'low': middle - half, 'high': middle + half}, abs=1e-5)
    for name in ('f1_macro', 'auroc', 'recall_macro'):
        assert found[name]['low'] < found[name]['value'] < found[name]['high'] < found[name]['low'] + 0.25


def test_measured_of_several_labels_has_no_share_by_wilson():
    rng = np.random.default_rng(0)
    y = (rng.random((80, 3)) < 0.4).astype(np.float32)
    found = choose.measured(y + rng.normal(0, 1, y.shape) - 0.5, y, 'abc', samples=200)
    assert set(found) == {'accuracy', 'f1_macro', 'recall_macro', 'auroc', 'map'}
    assert found['accuracy']['low'] < found['accuracy']['value'] < found['accuracy']['high']


def test_ends_are_the_last_layers_of_each_width():
    widths = {
        'stem': 64,
        'stage1/block0': 256,
        'stage1/block1': 256,
        'stage2/block0': 512,
        'again': 64,
        'features': 512,
    }
    assert choose.ends(widths) == ['stage1/block1', 'again', 'features']
    x = {name: np.full((2, width), i) for i, (name, width) in enumerate(widths.items())}
    assert choose.join(x, choose.ends(widths))[0].tolist() == [2] * 256 + [4] * 64 + [5] * 512


def test_bad_features_are_one_layers_misfortune():
    x, y = blobs((20, 15))
    broken, constant = x.copy(), np.ones_like(x)
    broken[7, 2] = np.nan
    found = candidates({'fine': x, 'broken': broken, 'constant': constant}, y, 'ab', folds(y, 3), ('mean', 'ridge'))
    assert all('not finite in 1 of' in c.reason for c in found if c.layer == 'broken')
    assert all('all 23 examples have the same' in c.reason for c in found if c.layer == 'constant')
    assert best(found).layer == 'fine'
    with pytest.raises(UserError, match='no head could be fitted(.|\n)*not finite'):
        best(found, layer='broken')


def test_too_few_examples_are_said():
    x, _ = blobs((3, 3))
    with pytest.raises(UserError, match=r'each class has one example \(6 in all\)'):
        folds(np.arange(6), 5)
    y = np.array([0, 0, 1, 1, 2, 3])
    with pytest.raises(UserError, match='for 9 classes'):
        best(candidates({'a': x}, y, 'abcdefghi', folds(y, 2), ['ridge']))


def test_a_head_that_is_always_right_does_not_become_too_sure():
    scores, y = np.array([[3.0, 0, 0], [0, 2, 1], [0, 0, 5], [4, 0, 0]]), np.array([0, 1, 2, 0])
    assert choose.temperature(scores, y) < 2 < choose.TEMPERATURES[-1]  # the largest has the least loss on these four
    several, flags = np.array([[1.0, -1], [3, -3], [-2, 2]]), np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert choose.temperature(several, flags) < 2


def test_the_example_counted_as_wrong_is_the_middle_one_by_its_margin():
    more, y = choose._with_one_wrong(np.array([[3.0, 0, 0], [0, 2, 1], [0, 0, 5], [4, 0, 0]]), np.array([0, 1, 2, 0]))
    np.testing.assert_array_equal(more[4], [4, 0, 0])  # margins 3, 1, 5, 4; of an even number the upper
    assert y[4] in (1, 2) and list(y[:4]) == [0, 1, 2, 0]
    flags = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    more, flags = choose._with_one_wrong(np.array([[1.0, -1], [3, -3], [-2, 2]]), flags)
    np.testing.assert_array_equal(more[3], [-2, 2])
    np.testing.assert_array_equal(flags[3], [1, 0])
