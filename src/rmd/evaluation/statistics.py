"""Statistics of a row over its seeds: means with intervals, and tests of differences from another row.

With several seeds, the seeds are the units: intervals and tests are Student's t over them, paired by seed, since rows
share the captions and the noise of a seed. A few seeds can agree by chance far better than the number of their samples
allows, so an interval is at least as wide as the samples alone would make it, and p at least as large. With one seed
the interval is that of its samples, and only the share of right samples can be tested, sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pvariance, stdev

from scipy import stats
from scipy.optimize import brentq

from rmd.evaluation.metrics import Metric
from rmd.evaluation.rows import Measured

LEVEL = 0.95
POWER = 0.8
Outcomes = tuple[Sequence[bool], Sequence[bool]]
"""Two sequences say of each sample of a seed, or of each whole clip, whether it is right: in a row, and in another."""


@dataclass(frozen=True)
class Summary:
    """A mean over seeds with its 95 % interval, and its difference from the row that it is compared with.

    `low` and `high` are None if one seed gives no interval; `difference` and `p` if there is nothing to compare with.
    `level` is the p of the hypothesis that the two rows differ by more than the metric's margin; None if the metric has
    no margin, or there are fewer than two seeds.
    """

    mean: float
    low: float | None
    high: float | None
    difference: float | None = None
    p: float | None = None
    level: float | None = None


def summarise(
    metric: Metric, ours: Sequence[Measured], others: Sequence[Measured] | None,
    outcomes: Sequence[Outcomes] = (),
) -> Summary:  # fmt: skip
    """Summarise a metric over a row's seeds, and compare it with another row's values of the same seeds.

    Args:
        ours: the row's values, one per seed.
        others: those of the other row; None if there is nothing to compare with.
        outcomes: the outcomes of each seed's samples in the two rows; used if the metric is a share of the samples.
    """
    values = [each.value for each in ours]
    low, high = _interval(metric, ours)
    if others is None:
        return Summary(fmean(values), low, high)
    gaps = [value - other.value for value, other in zip(values, others, strict=True)]
    paired = outcomes if metric.by_sample else ()
    ps = [t_test(gaps)] if len(gaps) > 1 else []
    if paired:
        ps.append(mcnemar([a for own, _ in paired for a in own], [b for _, other in paired for b in other]))
    level = None
    if metric.margin is not None and len(gaps) > 1:
        level = equivalence(gaps, metric.margin, error=sampling_error(paired) if paired else 0.0)
    return Summary(fmean(values), low, high, fmean(gaps), max(ps, default=None), level)


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


def equivalence(gaps: Sequence[float], margin: float, *, error: float = 0.0) -> float:
    """Return the p of the hypothesis that two rows differ by at least the margin, from paired differences.

    Below 0.05, the rows are level within the margin. The result is the larger p of two one-sided tests by Student's t.
    If an error is given, it is no smaller than that of the same tests by the normal distribution.

    Args:
        gaps: two or more paired differences.
        error: standard error of their mean from the samples alone.

    Source: Schuirmann, A comparison of the two one-sided tests procedure and the power approach for assessing the
    equivalence of average bioavailability (1987).
    """
    room = margin - abs(fmean(gaps))
    spread = stdev(gaps) / math.sqrt(len(gaps))
    by_seeds = stats.t.sf(room / spread, len(gaps) - 1) if spread > 0 else float(room <= 0)
    by_samples = stats.norm.sf(room / error) if error > 0 else float(room <= 0)
    return float(max(by_seeds, by_samples))


def sampling_error(outcomes: Sequence[Outcomes]) -> float:
    """Return the standard error, from the samples alone, of the mean over seeds of a difference of two shares.

    Args:
        outcomes: the outcomes of each seed's samples in the two rows.
    """
    total = 0.0
    for ours, theirs in outcomes:
        gaps = [float(a) - float(b) for a, b in zip(ours, theirs, strict=True)]
        total += pvariance(gaps) / len(gaps)
    return math.sqrt(total) / len(outcomes)


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


def _interval(metric: Metric, ours: Sequence[Measured]) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of a mean over seeds: Student's t, but not narrower than that of all samples together."""
    if len(ours) == 1:
        return (None, None) if ours[0].interval is None else ours[0].interval
    values = [each.value for each in ours]
    low, high = t_interval(values)
    halves = [(each.interval[1] - each.interval[0]) / 2 for each in ours if each.interval is not None]
    half = max((high - low) / 2, math.hypot(*halves) / len(ours) if len(halves) == len(ours) else 0.0)
    low, high = fmean(values) - half, fmean(values) + half
    return (max(low, 0.0), min(high, 1.0)) if metric.shown == "percent" else (low, high)
