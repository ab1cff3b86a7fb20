"""Intervals and p-values against values worked out by hand or known from the distribution."""

import math
import random

import pytest

from evaluation.scores.significance import bootstrap_mean, compare_paired, mcnemar_exact


def test_an_interval_is_that_of_the_binomial():
    # 300 of 1,000 right: the normal approximation is 0.3 -+ 1.96 * sqrt(0.3 * 0.7 / 1000) = 0.3 -+ 0.0284
    interval = bootstrap_mean([1.0] * 300 + [0.0] * 700)
    margin = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - margin, abs=0.003)
    assert interval.high == pytest.approx(0.3 + margin, abs=0.003)
    assert interval == bootstrap_mean([1.0] * 300 + [0.0] * 700)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    generator = random.Random(0)
    hits = 0
    for _ in range(100):
        interval = bootstrap_mean([float(generator.random() < 0.4) for _ in range(80)])
        hits += interval.low <= 0.4 <= interval.high
    assert 88 <= hits <= 100  # 95 expected; under 88 or over 100 has a probability below 0.01


def test_too_few_values_to_resample_give_no_bounds():
    assert bootstrap_mean([0.5]) == (0.5, None, None, 1)
    assert bootstrap_mean([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0, 3)


def test_an_exact_paired_p_value_by_hand():
    # b right and a wrong on 5 questions, never the other way round, 3 ties. Of the 2**5 sign patterns of the five
    # differences two are as extreme as this one: 2 / 32.
    a, b = [0.0] * 5 + [1.0, 0.0, 1.0], [1.0] * 5 + [1.0, 0.0, 1.0]
    comparison = compare_paired(a, b)
    assert comparison.p_value == pytest.approx(2 / 32)
    assert (comparison.mean_a, comparison.mean_b, comparison.difference.mean) == (2 / 8, 7 / 8, 5 / 8)
    assert compare_paired(b, a).p_value == pytest.approx(2 / 32)
    assert compare_paired(b, a).difference.mean == -5 / 8


def test_mcnemar_s_exact_p_value_by_hand():
    # Of 5 questions on which two runs differ, 1 or fewer, or 4 or more: 2 * (C(5, 0) + C(5, 1)) / 2**5.
    assert mcnemar_exact(4, 1) == mcnemar_exact(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1.0


def test_equal_runs_do_not_differ():
    comparison = compare_paired([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (comparison.p_value, comparison.difference.mean) == (1.0, 0.0)


def test_a_clear_difference_over_many_questions_is_significant_and_a_slight_one_is_not():
    generator = random.Random(1)
    a = [float(generator.random() < 0.3) for _ in range(500)]
    better = [float(value or generator.random() < 0.2) for value in a]
    other = [float(generator.random() < 0.3) for _ in range(500)]
    assert compare_paired(a, better).p_value < 0.001
    assert compare_paired(a, other).p_value > 0.05


def test_only_pairs_are_compared():
    with pytest.raises(ValueError, match="3 and 2 scores"):
        compare_paired([1.0, 0.0, 1.0], [1.0, 0.0])
