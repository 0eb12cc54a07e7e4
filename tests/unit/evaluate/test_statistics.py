"""Intervals and tests in closed form, and which of them a comparison uses."""

from __future__ import annotations

import pytest
from comparisons import result
from scipy import stats

from rmd.evaluate.statistics import MEASURES, mcnemar, summarise, t_interval, t_test

ATTRIBUTES, DISTANCE = MEASURES[0], MEASURES[1]


def test_the_interval_is_students() -> None:
    low, high = t_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / 3**0.5  # the 97.5 % quantile of two degrees of freedom, over root n
    assert (low, high) == pytest.approx((2 - half, 2 + half))


def test_paired_differences_are_tested_by_students_t() -> None:
    ours, theirs = [0.5, 0.6, 0.55, 0.7], [0.4, 0.52, 0.5, 0.61]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert t_test(gaps) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([0.5, 0.5]) == 0.0


def test_mcnemar_counts_the_samples_that_differ() -> None:
    assert mcnemar([True] * 5 + [False], [False] * 5 + [False]) == pytest.approx(2 / 2**5)
    assert mcnemar([True, False, True], [True, False, True]) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0


def test_several_seeds_are_the_units() -> None:
    ours, theirs = ([result(attributes=value) for value in values] for values in ((0.5, 0.6, 0.7), (0.4, 0.55, 0.6)))
    found = summarise(ATTRIBUTES, ours, theirs)
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx(t_interval([0.5, 0.6, 0.7]))
    assert found.difference == pytest.approx(0.25 / 3)
    assert found.p == pytest.approx(t_test([0.1, 0.05, 0.1]))
    alone = summarise(ATTRIBUTES, ours, None)
    assert alone.difference is None and alone.p is None


def test_one_seed_has_the_interval_of_its_samples_and_only_right_samples_are_tested() -> None:
    ours = [result(attributes=0.75, right=(True, True, True, False))]
    theirs = [result(attributes=0.25, right=(True, False, False, False))]
    found = summarise(ATTRIBUTES, ours, theirs)
    assert (found.low, found.high) == ours[0].row.attributes_ci
    assert (found.difference, found.p) == (0.5, 0.5)
    distance = summarise(DISTANCE, ours, theirs)
    assert (distance.low, distance.high) == ours[0].row.kernel_distance_ci
    assert distance.p is None


def test_a_share_stays_one() -> None:
    found = summarise(ATTRIBUTES, [result(attributes=value) for value in (0.1, 0.9)], None)
    assert (found.low, found.high) == (0.0, 1.0)
