"""Choices held apart, ranks with paired differences, the sentences, and the line through real runs."""

import json

import numpy as np
import pytest

from jtl.errors import UserError
from jtl.probe import calibration, ranking


def rows(slope=1.3, intercept=0.4, sets=5, noise=0.0, shift=0.0, seed=0):
    """Runs whose logits lie on a line, but for a shift of each data set and noise of each run."""
    rng = np.random.default_rng(seed)
    found = []
    for g in range(sets):
        moved = shift * rng.normal()
        for s, x in enumerate(rng.uniform(-0.5, 2.5, 4)):
            y = intercept + slope * x + moved + noise * rng.normal()
            p = [float(1 / (1 + np.exp(-v))) for v in (x, y)]
            found.append(
                {'data': f'd{g}', 'source': f's{s}', 'ridge': p[0], 'accuracy': p[1], 'examples': 500, 'classes': 5}
            )
    return found


def source(best='block3', value=0.9, last=0.8, knn=0.7, logme=1.0, leep=None, predicted=None, cost=None):
    x = lambda v: {'value': v, 'low': v - 0.02, 'high': v + 0.02}
    gain = {'difference': value - last, 'low': 0.01, 'high': 0.2, 'verdict': 'helped'}
    layers = [{'name': 'block3', 'ridge': x(value), 'gain': gain}, {'name': 'features', 'ridge': x(last)}]
    scores = {'logme': x(logme), 'h_score': None, 'h_score_regularised': None, 'leep': leep, 'nce': None}
    predicted = predicted or {'value': None, 'why': 'there are no real runs'}
    found = {'layers': layers, 'best': best, 'ridge': x(value), 'knn': x(knn), 'scores': scores}
    return {**found, 'predicted': predicted, 'cost': cost}


# Choices.


def test_nested_of_one_candidate_is_that_candidate():
    hits = np.random.default_rng(0).random((1, 101)) < 0.7
    assert (ranking.nested(hits, ranking.folds(101, 0)) == hits[0]).all()


def test_nested_takes_what_is_best_on_the_other_folds():
    # Folds of 4. Right in folds 0, 1, 2: a 2 4 1; b 3 1 4. Without fold 0 they have 5 each, and the first is taken;
    # without 1 b leads by 7 to 3, without 2 a by 6 to 4.
    a, b = [1, 1, 0, 0] + [1] * 4 + [0, 0, 0, 1], [1, 1, 1, 0] + [1, 0, 0, 0] + [1] * 4
    expected = a[:4] + b[4:8] + a[8:]
    fold = np.repeat([0, 1, 2], 4)
    assert ranking.nested(np.array([a, b]), fold).tolist() == expected


def test_nested_is_honest_where_the_maximum_flatters():
    # 300 coins on 200 examples: the luckiest shows 0.5 + about 3 · 0.035, and none has more than 0.5.
    rng, nested, best = np.random.default_rng(0), [], []
    for _ in range(20):
        hits = rng.random((300, 200)) < 0.5
        nested.append(ranking.nested(hits, ranking.folds(200, 1)).mean())
        best.append(hits.mean(1).max())
    assert np.mean(best) > 0.58
    assert abs(np.mean(nested) - 0.5) < 3 * 0.0354 / np.sqrt(20)


def test_folds_are_of_nearly_equal_size_and_follow_the_seed():
    one = ranking.folds(103, 7)
    assert sorted(np.bincount(one)) == [10] * 7 + [11] * 3
    assert (one == ranking.folds(103, 7)).all() and (one != ranking.folds(103, 8)).any()


# Ranks.


def test_rank_orders_and_pairs_with_the_first():
    rng = np.random.default_rng(0)
    good = (rng.random(400) < 0.9).astype(float)
    worse = np.where(rng.random(400) < 0.2, 0, good)  # never right where the first is wrong
    same = good.copy()
    same[:2] = 1 - same[:2]
    found = ranking.rank({'worse': worse, 'good': good, 'same': same}, 0.95)
    assert found[-1]['source'] == 'worse' and found[0]['behind'] is None
    behind = {row['source']: row['behind'] for row in found[1:]}
    assert behind['worse']['verdict'] == 'helped' and behind['worse']['low'] > 0
    other = behind.get('same') or behind['good']
    assert other['verdict'] == 'cannot be told'
    assert behind['worse']['difference'] == pytest.approx(found[0]['value'] - worse.mean(), abs=1e-12)


def test_rank_of_equals_keeps_the_order_given():
    hits = np.array([1.0, 0, 1, 1] * 10)
    assert [row['source'] for row in ranking.rank({'b': hits, 'a': hits.copy()}, 0.95)] == ['b', 'a']


# Sentences.


def test_reasons_say_what_to_take_whom_it_beats_and_what_it_costs():
    behind = lambda verdict: {'difference': 0.05, 'low': 0.01, 'high': 0.09, 'verdict': verdict}
    table = [
        {'source': 'a', 'value': 0.9, 'behind': None},
        {'source': 'b', 'value': 0.89, 'behind': behind('cannot be told')},
        {'source': 'c', 'value': 0.8, 'behind': behind('helped')},
    ]
    cost = {'epochs': 5, 'total': {'full': 80.0, 'ridge': 2.0}}
    best = source(predicted={'value': 0.95, 'low': 0.91, 'high': 0.97, 'data_sets': 4}, cost=cost)
    sources = {'a': best, 'b': source(knn=0.9, logme=0.5), 'c': source(knn=0.5, logme=0.2)}
    said = ranking.reasons(table, sources, {'a': 'Anna', 'b': 'Bert', 'c': 'Carl'})
    assert said == [
        'Take Anna, block3: ridge 0.900 [0.880, 0.920]; it cannot be told from Bert (+5.0 points [1.0, 9.0]); ahead of '
        'Carl by 5.0 points [1.0, 9.0].',
        'By itself block3 has 0.900, +10.0 points [1.0, 20.0] against the features (0.800); picked among 2, it will do '
        'a little worse.',
        'LogME puts it first as well; k-NN puts Bert first.',
        'Full fine-tuning is predicted at 0.950 [0.910, 0.970] by real runs on 4 data sets, more than the ridge; 5 '
        'epochs of it cost 40 × as much as the pass and the ridge (80 s against 2.0 s).',
    ]


def test_reasons_do_not_count_scores_that_tie():
    behind = {'difference': 0.1, 'low': 0.0, 'high': 0.2, 'verdict': 'helped'}
    table = [{'source': 'a', 'value': 0.9, 'behind': None}, {'source': 'b', 'value': 0.8, 'behind': behind}]
    sources = {'a': source(knn=0.7), 'b': source(knn=0.6, logme=1.0 + 1e-9)}
    assert 'k-NN puts it first as well.' in ranking.reasons(table, sources, {'a': 'Anna', 'b': 'Bert'})


def test_reasons_do_not_invent_a_prediction():
    said = ranking.reasons([{'source': 'a', 'value': 0.9, 'behind': None}], {'a': source()}, {'a': 'Anna'})
    assert said[0].endswith('the only source.')
    assert said[-1] == 'Full fine-tuning is not predicted: there are no real runs.'


@pytest.mark.parametrize(
    ('low', 'high', 'expected'), [(0.92, 0.99, 'fine-tuning'), (0.7, 0.89, 'probe'), (0.85, 0.95, 'either')]
)
def test_choice_follows_the_whole_interval(low, high, expected):
    assert ranking.choice(source(predicted={'value': (low + high) / 2, 'low': low, 'high': high})) == expected


def test_choice_without_a_prediction_is_open():
    assert ranking.choice(source()) == 'either'


# The line through real runs.


def test_calibration_finds_the_line():
    found = calibration.fit(rows())
    assert found['slope'] == pytest.approx(1.3, abs=1e-9) and found['intercept'] == pytest.approx(0.4, abs=1e-9)
    assert found['error'] < 1e-9
    predicted = calibration.predict(found, 0.8, 500, 5, 'image')
    x = 0.4 + 1.3 * np.log(0.8 / 0.2)
    assert predicted['value'] == pytest.approx(1 / (1 + np.exp(-x)), abs=1e-9)


def test_calibration_error_is_that_of_data_sets_left_out():
    # Each data set is shifted as a whole by N(0, 1). Left out, its runs are off by about √(1 + 1/19) = 1.03 each; in
    # the fit they would be off by less, and a residual of single runs left out would miss the shift.
    errors = [calibration.fit(rows(sets=20, shift=1.0, noise=0.01, seed=seed))['error'] for seed in range(10)]
    assert 0.85 < np.mean(errors) < 1.2


def test_calibration_interval_holds_new_data_sets():
    inside, seeds = 0, range(200)
    for seed in seeds:
        *known, new = [list(group) for group in np.array_split(rows(sets=6, shift=0.5, noise=0.2, seed=seed), 6)]
        fitted = calibration.fit([row for group in known for row in group])
        fitted['range']['ridge'] = [0.01, 0.99]
        predicted = calibration.predict(fitted, new[0]['ridge'], 500, 5, 'image')
        inside += predicted['low'] <= new[0]['accuracy'] <= predicted['high']
    assert 0.90 < inside / len(seeds) < 0.995  # 0.95 meant; binomial error of 200: 0.015


def test_calibration_counts_data_sets_alike_however_many_runs_they_have():
    some = rows(sets=4, shift=1.0)
    many = some + [row for row in some if row['data'] == 'd0'] * 5
    assert calibration.fit(many)['slope'] == pytest.approx(calibration.fit(some)['slope'], abs=1e-9)


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        ({'ridge': 0.999}, 'a ridge accuracy of 1.00 lies outside'),
        ({'ridge': 0.1}, 'a ridge accuracy of 0.10 lies outside'),
        ({'examples': 5000}, '5,000 examples lies outside'),
        ({'classes': 100}, '100 classes lies outside'),
        ({'kind': 'tokens'}, 'not on tokens'),
    ],
)
def test_calibration_says_nothing_beyond_what_it_has_seen(change, why):
    case = {'ridge': 0.8, 'examples': 500, 'classes': 5, 'kind': 'image'} | change
    found = calibration.predict(calibration.fit(rows()), **case)
    assert found['value'] is None and why in found['why']


def test_calibration_says_nothing_without_runs():
    assert 'no real runs' in calibration.predict(None, 0.8, 500, 5, 'image')['why']


@pytest.mark.parametrize(('runs', 'what'), [(rows(sets=2), '2 data sets'), ([], '0 data sets')])
def test_calibration_of_few_data_sets_is_refused(runs, what):
    with pytest.raises(UserError, match=what):
        calibration.fit(runs)


def test_calibration_of_equal_ridges_is_refused():
    with pytest.raises(UserError, match='all ridge accuracies are the same'):
        calibration.fit([{**row, 'ridge': 0.8} for row in rows()])


def test_calibration_file_is_read_back_and_checked(tmp_path):
    file = tmp_path / 'calibration.json'
    assert calibration.read(file) is None
    file.write_text(json.dumps(calibration.fit(rows())))
    assert calibration.predict(calibration.read(file), 0.8, 500, 5, 'image')['value'] > 0.8
    file.write_text(json.dumps({**calibration.fit(rows()), 'error': None}))
    with pytest.raises(UserError, match=r'experiments/advice\.py'):
        calibration.read(file)
