"""Intervals and tests in closed form, and which of them a comparison uses."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from comparisons import measured
from scipy import stats

from rmd.evaluation.metrics import metric
from rmd.evaluation.statistics import (
    detectable,
    equivalence,
    holm,
    mcnemar,
    sampling_error,
    summarise,
    t_interval,
    t_test,
)

ATTRIBUTES, DISTANCE = metric("attributes"), metric("kernel_distance")


def test_the_interval_is_students() -> None:
    low, high = t_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / 3**0.5  # the 97.5 % quantile of two degrees of freedom, over root n
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    assert t_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_paired_differences_are_tested_by_students_t() -> None:
    ours, theirs = [0.5, 0.6, 0.55, 0.7], [0.4, 0.52, 0.5, 0.61]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert t_test(gaps) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([0.5, 0.5]) == 0.0


def test_a_detectable_difference_is_found_in_four_of_five_tables() -> None:
    """A simulation draws differences of that size, with the scatter from which it was computed."""
    generator = np.random.default_rng(0)
    rows = generator.normal(5.0, 2.0, size=(999, 3)).tolist()
    least = detectable([*rows, [-1e6, 0.0, 1e6]])  # one wild row does not matter
    assert least is not None
    draws = generator.normal(least, 2.0, size=(4000, 3))
    assert fmean(t_test(list(row)) < 0.05 for row in draws) == pytest.approx(0.8, abs=0.04)
    assert detectable([[1.0], [2.0]]) is None and detectable([]) is None
    six = detectable(generator.normal(5.0, 2.0, size=(999, 6)).tolist())
    assert six is not None and six < least / 2


def test_holms_adjustment_in_closed_form() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []
    generator = np.random.default_rng(0)
    families = generator.uniform(size=(4000, 8)).tolist()
    assert fmean(min(holm(ps)) < 0.05 for ps in families) == pytest.approx(0.05, abs=0.01)  # errs once in 20 families


def test_mcnemar_counts_the_samples_that_differ() -> None:
    assert mcnemar([True] * 5 + [False], [False] * 5 + [False]) == pytest.approx(2 / 2**5)
    assert mcnemar([True, False, True], [True, False, True]) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0


def test_several_seeds_are_the_units() -> None:
    ours, theirs = ([measured(value) for value in values] for values in ((0.5, 0.6, 0.7), (0.4, 0.55, 0.6)))
    summary = summarise(ATTRIBUTES, ours, theirs, [((True,) * 9, (False,) * 9)])
    assert summary.mean == pytest.approx(0.6)
    assert (summary.low, summary.high) == pytest.approx(t_interval([0.5, 0.6, 0.7]))
    assert summary.difference == pytest.approx(0.25 / 3)
    assert summary.p == pytest.approx(t_test([0.1, 0.05, 0.1]))
    alone = summarise(ATTRIBUTES, ours, None)
    assert alone.difference is None and alone.p is None


def test_one_seed_has_the_interval_of_its_samples_and_only_right_samples_are_tested() -> None:
    outcomes = [((True, True, True, False), (True, False, False, False))]
    summary = summarise(ATTRIBUTES, [measured(0.75, 0.1)], [measured(0.25, 0.1)], outcomes)
    assert (summary.low, summary.high) == (0.65, 0.85)
    assert (summary.difference, summary.p) == (0.5, 0.5)
    distance = summarise(DISTANCE, [measured(100.0, 20.0)], [measured(90.0, 20.0)], outcomes)
    assert (distance.low, distance.high) == (80.0, 120.0)
    assert distance.p is None
    assert summarise(metric("diversity"), [measured(8.0)], None).low is None
    assert summary.level is None and distance.level is None


def test_an_interval_is_not_narrower_than_that_of_all_samples_together() -> None:
    """Three seeds of 100 samples that agree to the last one have the interval of 300 samples."""
    half = 1.96 * (0.9 * 0.1 / 100) ** 0.5
    agreed = summarise(ATTRIBUTES, [measured(0.9, half)] * 3, None)
    together = 1.96 * (0.9 * 0.1 / 300) ** 0.5
    assert agreed.low is not None and agreed.high is not None
    assert (agreed.low, agreed.high) == pytest.approx((0.9 - together, 0.9 + together))
    apart = summarise(ATTRIBUTES, [measured(value, half) for value in (0.8, 0.9, 0.95)], None)
    assert (apart.low, apart.high) == pytest.approx((t_interval([0.8, 0.9, 0.95])[0], 1.0))


def test_a_difference_that_the_samples_do_not_show_is_none() -> None:
    """Two seeds agree on a difference of two samples in 100, which chance explains."""
    ours, theirs = [True] * 90 + [False] * 10, [True] * 88 + [False] * 12
    summary = summarise(ATTRIBUTES, [measured(0.9)] * 2, [measured(0.88)] * 2, [(ours, theirs)] * 2)
    assert t_test([0.02, 0.02]) == 0.0
    assert summary.p == pytest.approx(mcnemar(ours * 2, theirs * 2)) == pytest.approx(2 / 2**4)
    # Nothing is known about the samples' part in the difference of two distances: the seeds alone are tested.
    distance = summarise(DISTANCE, [measured(12.0, 9.0)] * 2, [measured(10.0, 9.0)] * 2, [(ours, theirs)] * 2)
    assert distance.p == 0.0


def test_the_samples_part_in_a_difference_of_shares() -> None:
    """With b samples of n right in one row alone and c in the other, the variance is (b + c - (b - c)^2 / n) / n^2."""
    ours, theirs = [True] * 6 + [False] * 14, [False] * 6 + [True] * 2 + [False] * 12
    expected = (6 + 2 - (6 - 2) ** 2 / 20) / 20**2
    assert sampling_error([(ours, theirs)]) == pytest.approx(expected**0.5)
    assert sampling_error([(ours, theirs)] * 4) == pytest.approx((expected / 4) ** 0.5)


def test_level_means_that_both_one_sided_tests_reject() -> None:
    gaps = [0.5, -1.0, 1.5, 0.2]
    low = stats.ttest_1samp(gaps, -2.0, alternative="greater").pvalue
    high = stats.ttest_1samp(gaps, 2.0, alternative="less").pvalue
    assert equivalence(gaps, 2.0) == pytest.approx(max(low, high))
    assert equivalence([3.0, 3.0], 2.0) == 1.0 and equivalence([1.0, 1.0], 2.0) == 0.0
    assert equivalence([1.0, 1.0], 2.0, error=1.0) == pytest.approx(stats.norm.sf(1.0))
    assert equivalence([5.0, 6.0, 4.0], 2.0) > 0.9


def test_rows_at_the_margin_are_called_level_once_in_twenty() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(2.0, 0.5, size=(4000, 6))
    assert fmean(equivalence(list(row), 2.0) < 0.05 for row in draws) == pytest.approx(0.05, abs=0.01)


def test_metrics_with_a_margin_are_tested_for_being_level() -> None:
    ours, theirs = ([measured(value) for value in values] for values in ((10.0, 11.0, 9.0), (10.5, 10.0, 9.5)))
    assert summarise(DISTANCE, ours, theirs).level == pytest.approx(equivalence([-0.5, 1.0, -0.5], 6.0))
    assert summarise(metric("diversity"), ours, theirs).level is None


def test_the_interval_of_a_share_stays_between_0_and_1() -> None:
    summary = summarise(ATTRIBUTES, [measured(value) for value in (0.1, 0.9)], None)
    assert (summary.low, summary.high) == (0.0, 1.0)
