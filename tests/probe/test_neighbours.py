"""Nearest neighbours against scikit-learn's, and against refitting without each example; ties, zeros, duplicates."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.neighbors import KNeighborsClassifier

import jtl.probe.neighbours
from jtl.errors import UserError
from jtl.probe.heads import standard
from jtl.probe.neighbours import neighbours

KS = (7, 1, 4, 20)  # in no order
SKLEARN = {'cosine': 'cosine', 'euclid': 'euclidean'}
WAYS = [(metric, vote) for metric in SKLEARN for vote in ('uniform', 'distance')]


def problem(N, D, K=3, seed=0):
    """Clouds of unequal size about unequal means, far from 0."""
    rng = np.random.default_rng(seed)
    y = rng.choice(K, N, p=np.arange(1, K + 1) / (K * (K + 1) / 2))
    x = rng.normal(size=(N, D)) * np.geomspace(1, 5, D) + 3
    x[:, :K] += 4 * np.eye(K)[y]
    return x, y, rng.uniform(0.2, 3, N)


def in_float64(x, y, classes, queries=None, ks=KS, **kwargs):
    """Scores of the queries, or the leave-one-out ones."""
    with jax.enable_x64():
        head = neighbours(x, y, classes, ks, **kwargs)
        return np.asarray(head.leave_one_out() if queries is None else head.scores(queries))


def reference(x, y, k, metric, vote):
    return KNeighborsClassifier(k, metric=SKLEARN[metric], weights=vote, algorithm='brute').fit(x, y)


@pytest.mark.parametrize('metric, vote', WAYS)
def test_neighbours_equal_scikit_learn(metric, vote):
    x, y, _ = problem(90, 6)
    queries, _, _ = problem(50, 6, seed=1)
    scores = in_float64(x, y, 3, queries, metric=metric, vote=vote)
    for i, k in enumerate(KS):
        expected = reference(x, y, k, metric, vote)
        np.testing.assert_allclose(scores[i], expected.predict_proba(queries), atol=1e-10)
        np.testing.assert_array_equal(scores[i].argmax(1), expected.predict(queries))


@pytest.mark.parametrize('metric, vote', WAYS)
@pytest.mark.parametrize('load, K', [(load_wine, 3), (load_breast_cancer, 2), (load_digits, 10)])
def test_neighbours_in_float32_score_as_scikit_learn_in_float64(load, K, metric, vote):
    x, y = load(return_X_y=True)
    x = standard(x)(x)[:600]
    y, learn = y[:600], np.arange(len(x)) % 3 > 0
    scores = neighbours(x[learn].astype(np.float32), y[learn], K, KS, metric=metric, vote=vote).scores(
        x[~learn].astype(np.float32)
    )
    for i, k in enumerate(KS):
        expected = reference(x[learn], y[learn], k, metric, vote)
        np.testing.assert_allclose(scores[i], expected.predict_proba(x[~learn]), atol=1e-4)


@pytest.mark.parametrize('metric, vote', WAYS)
def test_neighbours_left_out_are_those_of_a_fit_without_the_example(metric, vote):
    x, y, _ = problem(40, 5)
    x[7] = x[3]  # its twin is another example, and stays
    scores = in_float64(x, y, 3, metric=metric, vote=vote)
    for n in range(40):
        rest = np.arange(40) != n
        expected = in_float64(x[rest], y[rest], 3, x[n : n + 1], metric=metric, vote=vote)
        np.testing.assert_allclose(scores[:, n], expected[:, 0], atol=1e-9)


@pytest.mark.parametrize('metric', SKLEARN)
def test_neighbours_weights_are_repetitions(metric):
    x, y, _ = problem(30, 5)
    queries, _, _ = problem(20, 5, seed=1)
    times = np.random.default_rng(2).integers(1, 4, 30)
    order = np.argsort(((queries[:, None] - x) ** 2).sum(-1), 1)
    if metric == 'cosine':
        order = np.argsort(-(queries @ x.T) / np.linalg.norm(x, axis=1), 1)
    scores = in_float64(x, y, 3, queries, ks=[4], metric=metric, weights=times)
    for q in range(20):
        votes = np.bincount(np.concatenate([[y[n]] * times[n] for n in order[q, :4]]), minlength=3)
        np.testing.assert_allclose(scores[0, q], votes / votes.sum(), atol=1e-12)


@pytest.mark.parametrize('metric, vote', WAYS)
def test_neighbours_of_several_labels_share_each(metric, vote):
    x, y, _ = problem(60, 5)
    labels = np.stack([y == 0, y > 0, x[:, 4] > 3], 1).astype(np.float32)
    queries, _, _ = problem(20, 5, seed=1)
    scores = in_float64(x, labels, 3, queries, ks=[5], metric=metric, vote=vote)
    expected = reference(x, labels.astype(int), 5, metric, vote).predict_proba(queries)
    np.testing.assert_allclose(scores[0], np.stack([p[:, 1] for p in expected], 1), atol=1e-10)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('metric, vote', WAYS)
def test_neighbours_bear_duplicates_and_zeros(metric, vote, dtype):
    x, y, _ = problem(40, 5)
    x[10:14] = x[0]  # five the same, of whatever class
    x[20:22], x[:, 4] = 0, 0  # two vectors of zeros, a feature that never varies
    x[30] = 1e-25  # its square is 0 in float32
    queries = np.concatenate([x[[0, 20, 30]], x[:1] + 1e-3]).astype(dtype)
    x = x.astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        head = neighbours(x, y, 3, (3, 7, 40), metric=metric, vote=vote)
        scores, own = np.asarray(head.scores(queries)), np.asarray(head._replace(ks=(3, 7, 39)).leave_one_out())
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(own.sum(-1), 1, atol=1e-5)
    if vote == 'distance':  # the five twins have all the votes
        twins = np.bincount(y[[0, 10, 11, 12, 13]], minlength=3) / 5
        np.testing.assert_allclose(scores[1:, 0], [twins, twins], atol=1e-5)
    if dtype == np.float64 and metric == 'euclid':
        expected = reference(x, y, 40, metric, vote).predict_proba(queries)
        np.testing.assert_allclose(scores[2], expected, atol=1e-7)


def test_neighbours_at_zero_have_cosine_zero():
    x = np.array([[0, 0], [1, 0.1], [-1, 0.1], [-1, 0]], np.float32)
    head = neighbours(x, np.array([0, 1, 2, 2]), 3, [1, 2, 3], metric='cosine')
    # of (1, 0): the second by far, then the zeros at distance 1, then those that point away
    np.testing.assert_allclose(
        head.scores(np.array([[1, 0]], np.float32))[:, 0], [[0, 1, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6
    )


@pytest.mark.parametrize('vote', ['uniform', 'distance'])
def test_neighbours_equally_near_come_by_index(vote):
    x = np.array([[1, 0], [0, 2], [0, 1], [-1, 0], [0, -1]], np.float32)
    scores = neighbours(x, np.array([2, 0, 1, 0, 0]), 3, [1, 2, 3], metric='euclid', vote=vote).scores(0 * x[:1])
    np.testing.assert_allclose(scores[:, 0], [[0, 0, 1], [0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]], atol=1e-6)


def test_neighbours_far_from_zero_keep_their_order_in_float32():
    x, y, _ = problem(200, 6)
    x, queries = np.round(x * 64) / 64, np.round(problem(50, 6, seed=1)[0] * 64) / 64  # exact when moved by 1024
    near = neighbours(x.astype(np.float32), y, 3, KS, metric='euclid').scores(queries.astype(np.float32))
    far = neighbours((x + 1024).astype(np.float32), y, 3, KS, metric='euclid').scores(
        (queries + 1024).astype(np.float32)
    )
    np.testing.assert_array_equal(near, far)


def test_neighbours_in_chunks_are_those_at_once(monkeypatch):
    x, y, _ = problem(50, 6)
    queries, _, _ = problem(23, 6, seed=1)
    at_once = in_float64(x, y, 3, queries)
    monkeypatch.setattr(jtl.probe.neighbours, 'NUMBERS', 5 * (50 + 28 * 9))  # five queries at a time, and three
    jtl.probe.neighbours._scores.clear_cache()
    np.testing.assert_allclose(in_float64(x, y, 3, queries), at_once, atol=1e-12)
    jtl.probe.neighbours._scores.clear_cache()


def test_neighbours_name_what_is_wrong():
    x, y, w = problem(10, 4)
    with pytest.raises(UserError, match=r'k of \[3, 11\] should be at least 1 and no more than the 10 examples'):
        neighbours(x, y, 3, [3, 11])
    with pytest.raises(UserError, match=r'k of \[0\]'):
        neighbours(x, y, 3, [0])
    with pytest.raises(UserError, match='the 9 others'):
        neighbours(x, y, 3, [10]).leave_one_out()
    with pytest.raises(UserError, match="unknown metric 'euclidean': did you mean 'euclid'"):
        neighbours(x, y, 3, [1], metric='euclidean')
    with pytest.raises(UserError, match="unknown vote 'distances': did you mean 'distance'"):
        neighbours(x, y, 3, [1], vote='distances')
    with pytest.raises(UserError, match='weights should be 10 numbers'):
        neighbours(x, y, 3, [1], weights=-w)
