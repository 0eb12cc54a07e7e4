"""Notices a collapse while it happens: samples that lose their spread or blow up, scores that drift apart, bad marks.

Losses do not show it: in distribution matching, good and bad runs have alike ones (`docs/runs.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from rmd.common.typed import Strict

FIRST = 10
"""Observations of a step whose median is what is usual."""
PATIENCE = 5
"""Observations in a row that must be unusual."""
LOWEST, HIGHEST = 0.25, 4.0
"""Spread of a step's samples over the usual one."""
WIDEST = 5.0
"""Gap between teacher and fake score over the usual one."""
JUDGED, DROP, KNOWN = "judge/all_right", 0.5, 0.2
"""What the judge finds right: twice in a row below this share of the best, which must be known to be one."""


class Best(Strict):
    """The iteration at which the judge found most of the samples right, and what share that was."""

    iteration: int
    right: float

    @staticmethod
    def of(before: Best | None, iteration: int, values: Mapping[str, float]) -> Best | None:
        """The better of `before` and what the judge found at this iteration, the former when they are equal."""
        found = values.get(JUDGED)
        if found is None or not math.isfinite(found) or (before is not None and found <= before.right):
            return before
        return Best(iteration=iteration, right=found)


class SeriesState(Strict):
    """State of one watched number of one step, as a checkpoint stores it."""

    first: list[float]
    """First finite observations; their median counts as usual."""
    unusual: int
    """Number of consecutive unusual observations up to the latest one."""
    since: int | None
    """Iteration of the first of those."""


class GuardState(Strict):
    """State of a guard, as a checkpoint stores it."""

    series: dict[str, SeriesState]
    """Watched numbers by kind and step: `spread-1`, `gap-1`, `spread-2`, ..."""
    best: float
    """Largest share of samples that the judge has found right."""
    low: list[int]
    """Latest consecutive iterations at which the judge found too few samples right."""


@dataclass
class _Series:
    """One number of one step: what was usual, and since when it is not."""

    first: list[float] = field(default_factory=list)
    unusual: int = 0
    since: int | None = None

    def add(self, iteration: int, value: float, lowest: float, highest: float) -> float | None:
        """The value over the usual one, if it has been unusual for long enough."""
        if len(self.first) < FIRST:
            if math.isfinite(value):
                self.first.append(value)
            return None
        usual = median(self.first)
        if lowest * usual <= value <= highest * usual:
            self.unusual, self.since = 0, None
            return None
        self.since = iteration if self.since is None else self.since
        self.unusual += 1
        return value / usual if self.unusual >= PATIENCE else None


class CollapseGuard:
    """Watches the numbers of every iteration, step by step: a late step's samples differ from an early one's."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._best = 0.0
        self._low: list[int] = []

    def observe(self, iteration: int, values: Mapping[str, float]) -> str | None:
        """What is wrong, in half a sentence, or None.

        Args:
            values: `step`, `sample_std` and `gap` of the iteration, and what the judge found, if it was asked.
        """
        step = int(values["step"])
        spread = self._of("spread", step).add(iteration, values["sample_std"], LOWEST, HIGHEST)
        gap = self._of("gap", step).add(iteration, values["gap"], 0.0, WIDEST)
        judged = values.get(JUDGED)
        if judged is not None:
            self._best = max(self._best, judged)
            low = self._best >= KNOWN and judged < DROP * self._best
            self._low = [*self._low, iteration] if low else []
            if len(self._low) > 1:
                return f"the judge finds {judged:.0%} of its samples right, after {self._best:.0%}"
        if spread is not None:
            return f"the samples of step {step} spread {spread:.2g} times as much as at the start"
        if gap is not None:
            return f"teacher and fake score are {gap:.2g} times as far apart at step {step} as at the start"
        return None

    @property
    def since(self) -> int | None:
        """The iteration since which something is unusual; None if nothing is."""
        found = [series.since for series in self._series.values() if series.since is not None]
        return min([*found, *self._low], default=None)

    def state(self) -> GuardState:
        """Return the state of the guard for a checkpoint."""
        series = {
            name: SeriesState(first=list(each.first), unusual=each.unusual, since=each.since)
            for name, each in self._series.items()
        }
        return GuardState(series=series, best=self._best, low=list(self._low))

    def load(self, state: GuardState) -> None:
        """Go on from what `state` gave."""
        self._series = {
            name: _Series(list(each.first), each.unusual, each.since) for name, each in state.series.items()
        }
        self._best, self._low = state.best, list(state.low)

    def _of(self, kind: str, step: int) -> _Series:
        return self._series.setdefault(f"{kind}-{step}", _Series())
