"""Statistics of a row over its seeds: means with intervals, and tests of differences from another row.

With several seeds, the seeds are the units: intervals and tests are Student's t over them, paired by seed, since rows
share the captions and the noise of a seed. With one seed the interval is that of its samples, and only the share of
right samples can be tested, sample by sample (McNemar's exact test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from scipy import stats
from scipy.optimize import brentq

from rmd.evaluation.metrics import Metric
from rmd.evaluation.rows import Measured

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Summary:
    """A mean over seeds with its 95 % interval, and its difference from the row that it is compared with.

    `low` and `high` are None if one seed gives no interval; `difference` and `p` if there is nothing to compare with.
    """

    mean: float
    low: float | None
    high: float | None
    difference: float | None = None
    p: float | None = None


def summarise(
    metric: Metric, ours: Sequence[Measured], others: Sequence[Measured] | None,
    outcomes: tuple[Sequence[bool], Sequence[bool]] | None = None,
) -> Summary:  # fmt: skip
    """Summarise a metric over a row's seeds, and compare it with another row's values of the same seeds.

    Args:
        ours: the row's values, one per seed.
        others: those of the other row; None if there is nothing to compare with.
        outcomes: whether each sample of the first seed is right, of this row and of the other one.
    """
    values = [each.value for each in ours]
    low, high = _interval(metric, ours[0], values)
    if others is None:
        return Summary(fmean(values), low, high)
    gaps = [value - other.value for value, other in zip(values, others, strict=True)]
    difference = fmean(gaps)
    if len(gaps) > 1:
        return Summary(fmean(values), low, high, difference, t_test(gaps))
    p = mcnemar(*outcomes) if metric.by_sample and outcomes is not None else None
    return Summary(fmean(values), low, high, difference, p)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values, by Student's t."""
    middle, error = fmean(values), stdev(values) / math.sqrt(len(values))
    low, high = stats.t.interval(LEVEL, len(values) - 1)
    return float(middle + low * error), float(middle + high * error)


def t_test(gaps: Sequence[float]) -> float:
    """Return the two-sided p of paired differences under a mean of zero; 1 if all of them are zero."""
    error = stdev(gaps) / math.sqrt(len(gaps))
    if error == 0:
        return 1.0 if fmean(gaps) == 0 else 0.0
    return float(2 * stats.t.sf(abs(fmean(gaps)) / error, len(gaps) - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's method, in the same order: below a level, the family errs at most as often.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def detectable(gaps: Sequence[Sequence[float]]) -> float | None:
    """Return the smallest difference that a table would have shown of a typical row, with a power of 80 % at p < 0.05.

    Args:
        gaps: of every row but the one that the others are compared with, its paired differences by seed. Two or three
            seeds say little about the scatter of a single row, so the median of all rows' variances stands for it.

    Returns:
        The difference, or None if no row has two seeds.
    """
    several = [row for row in gaps if len(row) > 1]
    if not several:
        return None
    count = len(several[0])
    # Variances of normal samples scatter themselves, as a chi-squared, whose median is below its mean.
    usual = median(stdev(row) ** 2 for row in several) / (stats.chi2.median(count - 1) / (count - 1))
    error = math.sqrt(usual / count)
    critical = stats.t.ppf((1 + LEVEL) / 2, count - 1)
    # In units of its error, a difference makes t a noncentral t; larger ones than the bound are never asked for.
    return error * float(brentq(lambda shift: stats.nct.sf(critical, count - 1, shift) - POWER, 0.0, 100.0))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Return the exact two-sided p of the hypothesis that two rows are right equally often on the same samples."""
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def _interval(metric: Metric, first: Measured, values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    if len(values) > 1:
        low, high = t_interval(values)
        return (max(low, 0.0), min(high, 1.0)) if metric.shown == "percent" else (low, high)
    return (None, None) if first.interval is None else first.interval
