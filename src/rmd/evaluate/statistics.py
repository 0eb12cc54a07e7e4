"""What a table's cells say together: means with intervals over seeds, and differences from the row they stand against.

With several seeds they are the units: intervals and tests are Student's t over them, paired by seed, since rows share
the captions and noise of a seed. With one seed the interval is that of its samples, and only the share of right samples
can be tested, sample by sample (McNemar's exact test).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from rmd.compare.cells import CellResult
from rmd.evaluate.rows import Row

LEVEL = 0.95


@dataclass(frozen=True)
class Measure:
    """A column of numbers: how it is read from a row, and which way is better."""

    name: str
    title: str
    read: Callable[[Row], float]
    interval: Callable[[Row], tuple[float, float]] | None
    higher: bool | None
    """Whether more is better; None where neither is."""
    share: bool = False
    """A number from 0 to 1."""


MEASURES = (
    Measure("attributes", "all right", lambda row: row.attributes, lambda row: row.attributes_ci, True, share=True),
    Measure(
        "kernel_distance", "kernel distance", lambda row: row.kernel_distance, lambda row: row.kernel_distance_ci, False
    ),
    Measure(
        "kernel_distance_to_teacher", "to the teacher", lambda row: row.kernel_distance_to_teacher,
        lambda row: row.kernel_distance_to_teacher_ci, False,
    ),
    Measure("frechet_distance", "Frechet distance", lambda row: row.frechet_distance, None, False),
    Measure("high_frequency", "detail", lambda row: row.high_frequency, None, None),
    Measure("diversity", "diversity", lambda row: row.diversity, None, None),
)  # fmt: skip


def part(name: str) -> Measure:
    """The share of samples in which one attribute alone is right, among those that have it."""
    return Measure(name, name.replace("_", " "), lambda row: row.attributes_by_name[name], None, True, share=True)


@dataclass(frozen=True)
class Summary:
    """A mean over seeds with its 95 % interval, and its difference from the row it is compared with.

    low and high are None where one seed gives no interval; difference and p where there is nothing to compare.
    """

    mean: float
    low: float | None
    high: float | None
    difference: float | None = None
    p: float | None = None


def summarise(measure: Measure, ours: Sequence[CellResult], others: Sequence[CellResult] | None) -> Summary:
    """A row's number, from the cells of its seeds, and how it differs from another row's cells of the same seeds."""
    values = [measure.read(cell.row) for cell in ours]
    low, high = _interval(measure, ours, values)
    if others is None:
        return Summary(fmean(values), low, high)
    theirs = [measure.read(cell.row) for cell in others]
    gaps = [value - other for value, other in zip(values, theirs, strict=True)]
    return Summary(fmean(values), low, high, fmean(gaps), _p(measure, gaps, ours, others))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two values or more, by Student's t."""
    middle, spread = fmean(values), stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * spread
    return middle - half, middle + half


def t_test(gaps: Sequence[float]) -> float:
    """Two-sided p of paired differences whose mean were zero; 1 where all are zero."""
    spread = stdev(gaps) / math.sqrt(len(gaps))
    if spread == 0:
        return 1.0 if fmean(gaps) == 0 else 0.0
    return float(2 * stats.t.sf(abs(fmean(gaps)) / spread, len(gaps) - 1))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided p, by the exact test, that two rows are right equally often on the same samples."""
    gained = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def _interval(
    measure: Measure, cells: Sequence[CellResult], values: Sequence[float]
) -> tuple[float, float] | tuple[None, None]:
    if len(values) > 1:
        low, high = t_interval(values)
        return (max(low, 0.0), min(high, 1.0)) if measure.share else (low, high)
    return (None, None) if measure.interval is None else measure.interval(cells[0].row)


def _p(
    measure: Measure, gaps: Sequence[float], ours: Sequence[CellResult], others: Sequence[CellResult]
) -> float | None:
    if len(gaps) > 1:
        return t_test(gaps)
    return mcnemar(ours[0].right, others[0].right) if measure.name == "attributes" else None
