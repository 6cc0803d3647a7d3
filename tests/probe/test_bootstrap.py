"""Intervals against formulas, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from jtl.errors import UserError
from jtl.probe.bootstrap import Interval, interval, jackknife, wilson
from jtl.probe.scores import h_score_regularised, logme, nce


def mean_of(values):
    return lambda w: ((w @ values).T / w.sum(1)).T


def test_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).exponential(size=400) + 3
    found = interval(mean_of(values), 400, replicates=20_000, confidence=0.9)
    error = values.std() / 20
    expected = values.mean() + np.array([-1.645, 1.645]) * error
    np.testing.assert_allclose(found.value, values.mean())
    # of 20,000 draws a quantile at 0.05 is known to sqrt(.05 .95 / 20000) / density(1.645) = 0.015 errors
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.1 * error)


def test_interval_draws_as_many_of_each_stratum_and_repeats_with_its_seed():
    strata = np.repeat([0, 1, 2], [30, 9, 1])
    seen = []

    def keep(w):
        seen.append(w)
        return w[:, 3]

    assert interval(keep, 40, strata=strata, seed=5) == interval(keep, 40, strata=strata, seed=5)
    all_of, drawn = seen[:2]
    assert (all_of == 1).all() and (drawn == seen[3]).all() and drawn.shape == (200, 40)
    assert (np.stack([drawn[:, strata == k].sum(1) for k in range(3)], 1) == [30, 9, 1]).all()
    assert interval(keep, 40, strata=strata, seed=6) != interval(keep, 40, strata=strata, seed=5)
    assert (drawn.max(0)[:39] > 1).all() and (drawn[:, 39] == 1).all()


def test_interval_is_moved_by_the_bias_of_the_draws():
    # what a resample of 30 examples in 10 cells says of their entropy is too low, and NCE too high
    rng = np.random.default_rng(1)
    y, z = rng.integers(0, 2, 30), rng.integers(0, 10, 30)
    draws = []

    def statistic(w):
        draws.append(nce(z, y, 2, w))
        return draws[-1]

    found = interval(statistic, 30)
    assert draws[1].mean() > found.value + 0.05
    assert found.low < found.value < found.high


def test_jackknife_of_a_mean_with_groups_of_one_is_the_t_interval():
    values = np.random.default_rng(2).exponential(size=25) + 3
    found = jackknife(mean_of(values), 25, groups=100)
    expected = stats.t.interval(0.95, 24, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9)


def test_jackknife_deals_each_class_out_and_each_example_once():
    strata = np.repeat([0, 1, 2], [30, 7, 2])
    seen = []

    def keep(w):
        seen.append(w)
        return w @ np.arange(39)

    jackknife(keep, 39, groups=10, strata=strata)
    without = 1 - seen[1]
    assert without.shape == (10, 39) and (without.sum(0) == 1).all()
    for k, most in enumerate((3, 1, 1)):
        assert without[:, strata == k].sum(1).max() == most
    assert set(without.sum(1)) <= {3, 4}


def test_intervals_take_several_statistics_at_once():
    values = np.random.default_rng(3).normal(size=(50, 3))
    for found in interval(mean_of(values), 50), jackknife(mean_of(values), 50):
        assert all(np.shape(part) == (3,) for part in found)
        assert ((found.low < found.value) & (found.value < found.high)).all()


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng, held = np.random.default_rng(4), np.zeros(2)
    for seed in range(400):
        values = rng.normal(size=60)
        for i, make in enumerate((interval, jackknife)):
            found = make(mean_of(values), 60, seed=seed)
            held[i] += found.low < 0 < found.high
    # Binomial(400, 0.95) is 380 ± 4.4; the bootstrap's quantiles of 60 examples are about 1 % narrow: 376
    assert (held > 362).all() and (held < 394).all(), held


@pytest.mark.parametrize('score', [logme, h_score_regularised])
def test_jackknife_of_a_score_is_as_wide_as_other_examples_make_it(score):
    x, y = load_digits(return_X_y=True)
    x, y = x[:, 10:50:4] / 16, y % 3
    rng = np.random.default_rng(5)
    rows = np.stack([rng.choice(len(y), 200, replace=False) for _ in range(60)])
    weights = np.zeros((60, len(y)))
    np.put_along_axis(weights, rows, 1, 1)
    # drawn from 1797 without replacement, the spread is less by the root of 1 - 200/1797
    spread = score(x, y, 3, weights).std() / np.sqrt(1 - 200 / len(y))
    reach = []
    for r in rows[:20]:
        found = jackknife(lambda w, r=r: score(x[r], y[r], 3, w), 200)
        reach.append((found.high - found.low) / 2 / stats.t.ppf(0.975, 19))
    # the spread of 60 is known to 9 %, the mean of 20 errors to 4 %: 3 of both together
    np.testing.assert_allclose(np.mean(reach), spread, rtol=0.3)


def test_wilson_equals_scipy():
    for right in np.arange(50) < 37, np.ones(8, bool), np.zeros(8, int):
        found = wilson(right, 0.9)
        expected = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.9, method='wilson')
        np.testing.assert_allclose(found, (right.mean(), *expected), atol=1e-12)
    assert isinstance(found, Interval) and found.low == 0 < found.high


def test_intervals_refuse_what_makes_no_sense():
    statistic = mean_of(np.arange(10.0))
    for message, call in {
        'at least 2': lambda: interval(statistic, 10, replicates=1),
        '1 examples': lambda: jackknife(statistic, 1),
        'confidence': lambda: interval(statistic, 10, confidence=95),
        '10 classes': lambda: jackknife(statistic, 10, strata=np.zeros(9)),
        'right or wrong': lambda: wilson(np.array([0.2, 0.7])),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
