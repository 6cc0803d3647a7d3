"""McNemar's test and the bootstrap of a paired difference: by hand, by SciPy, by simulation."""

import numpy as np
import pytest
from scipy import stats

from jtl.paired import bootstrap_difference, commonest, mcnemar


def pairs(both, a_alone, b_alone, neither):
    """`(right_a, right_b)` with so many examples of each kind."""
    counts = (both, a_alone, b_alone, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_of_a_hand_example():
    # 7 examples differ, 1 of them is b's: p = 2 (C(7, 0) + C(7, 1)) / 2^7 = 16 / 128
    assert mcnemar(*pairs(20, 6, 1, 3)) == pytest.approx(0.125, abs=1e-15)
    assert mcnemar(*pairs(20, 1, 6, 3)) == pytest.approx(0.125, abs=1e-15)  # it has no side
    assert mcnemar(*pairs(2000, 6, 1, 0)) == pytest.approx(0.125, abs=1e-15)  # agreement says nothing


def test_mcnemar_of_equals_is_one():
    assert mcnemar(*pairs(5, 0, 0, 4)) == 1.0
    assert mcnemar(*pairs(5, 3, 3, 4)) == 1.0  # twice the tail is more than 1: 84 / 64
    assert mcnemar(np.zeros(0, bool), np.zeros(0, bool)) == 1.0


@pytest.mark.parametrize('a, b', [(10, 2), (2, 10), (0, 1), (9, 8), (150, 100), (2000, 1700)])
def test_mcnemar_is_the_binomial_test(a, b):
    assert mcnemar(*pairs(31, a, b, 7)) == pytest.approx(stats.binomtest(a, a + b, 0.5).pvalue, rel=1e-9)


def test_mcnemar_refuses_other_examples():
    with pytest.raises(ValueError, match=r'\(3,\) and \(4,\)'):
        mcnemar(np.ones(3), np.ones(4))


# The bootstrap.


def test_bootstrap_of_one_seed_is_that_of_a_multinomial():
    # d in {+1, 0, -1}, 60, 30 and 10 of N = 100: mean 0.5, variance of a mean (0.7 - 0.25) / 100, sd 0.0671;
    # a sum of 100 is normal to about 0.01 at the 2.5 % tails (its grid is 0.01)
    a, b = np.repeat([1, 1, 0], (60, 30, 10))[None], np.repeat([0, 1, 1], (60, 30, 10))[None]
    low, high = bootstrap_difference(a, b)
    assert low == pytest.approx(0.5 - 1.96 * 0.0671, abs=0.015) and high == pytest.approx(
        0.5 + 1.96 * 0.0671, abs=0.015
    )
    inner = bootstrap_difference(a, b, confidence=0.5)
    assert inner[0] == pytest.approx(0.5 - 0.674 * 0.0671, abs=0.015) and low < inner[0] < inner[1] < high
    swapped = bootstrap_difference(b, a)
    assert swapped[0] == pytest.approx(-high, abs=0.011) and swapped[1] == pytest.approx(-low, abs=0.011)


def test_bootstrap_of_seeds_has_the_spread_of_seeds():
    # every example alike, so that seeds alone vary: 8 seeds of difference 0, 0.1, …, 0.7 (soft, as of many labels).
    # The unbiased standard error of their mean is √(0.06 / 8) = 0.0866; 0.06 is their variance over n - 1.
    d = np.arange(8)[:, None] * np.full((1, 50), 0.1)
    low, high = bootstrap_difference(d, np.zeros_like(d))
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0866, rel=0.05)
    assert (low + high) / 2 == pytest.approx(0.35, abs=0.01)


def test_bootstrap_draws_the_same_examples_for_all_seeds():
    # 5 seeds that agree on every example: no more is known than of one
    rng = np.random.default_rng(1)
    d = rng.choice([1.0, 0.0, -1.0], (1, 200), p=(0.3, 0.6, 0.1))
    one = bootstrap_difference(d, 0 * d)
    five = bootstrap_difference(np.repeat(d, 5, 0), np.zeros((5, 200)))
    assert five[1] - five[0] == pytest.approx(one[1] - one[0], rel=0.05)  # not 1 / √5 of it


def test_bootstrap_repeats_and_has_a_seed():
    rng = np.random.default_rng(2)
    a, b = rng.random((3, 40)), rng.random((3, 40))  # 40 different columns
    assert bootstrap_difference(a, b) == bootstrap_difference(a, b)
    assert bootstrap_difference(a, b) != bootstrap_difference(a, b, seed=1)
    many = bootstrap_difference(np.repeat(a, 2000, 1), np.repeat(b, 2000, 1), samples=200)  # in parts
    assert many[0] < (a - b).mean() < many[1]


def test_bootstrap_of_what_never_differs_is_a_point():
    assert bootstrap_difference(np.ones((2, 9)), np.ones((2, 9))) == (0.0, 0.0)
    low, high = bootstrap_difference(np.ones((2, 9)), np.zeros((2, 9)))
    assert (low, high) == (pytest.approx(1.0, abs=1e-12), pytest.approx(1.0, abs=1e-12))


@pytest.mark.parametrize('a, b', [((2, 3), (3, 2)), ((3,), (3,)), ((0, 3), (0, 3)), ((2, 0), (2, 0))])
def test_bootstrap_refuses_other_shapes(a, b):
    with pytest.raises(ValueError, match='expected two arrays'):
        bootstrap_difference(np.ones(a), np.ones(b))


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """Two methods equally good on average; examples are more or less hard for both, seeds are luckier or not.

    200 intervals of a true coverage of 0.95 miss 10 ± 3: more than 20 would be 3.2 sd off.
    """
    rng, missed = np.random.default_rng(3), 0
    for _ in range(200):
        ease = rng.normal(0.5, 1, 150)
        luck = rng.normal(0, 0.1, (2, 4, 1))
        a, b = (ease + luck[i] + rng.normal(0, 0.5, (4, 150)) > 0 for i in (0, 1))
        low, high = bootstrap_difference(a, b, samples=500)
        missed += not low <= 0 <= high
    print(f'missed {missed} of 200')
    assert missed <= 20
    assert missed >= 1  # not all by being wide


def test_commonest_of_a_class_that_is_not_there_is_never_right():
    assert commonest(np.array([0] * 5 + [1] * 95), 0.0).sum() == 0
