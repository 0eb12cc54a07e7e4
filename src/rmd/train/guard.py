"""Notices that a student collapses: its samples lose variance or blow up, the scores drift apart, or accuracy falls.

The losses do not show it: in distribution matching, good and bad runs have similar losses (`docs/runs.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from rmd.common.typed import Strict

FIRST = 10
"""Number of a step's first observations, whose median counts as usual."""
PATIENCE = 5
"""Number of consecutive unusual observations that count as a collapse."""
LOWEST, HIGHEST = 0.25, 4.0
"""Bounds on the standard deviation within a step's samples, relative to the usual one."""
WIDEST = 5.0
"""Bound on the gap between teacher and fake score, relative to the usual one."""
JUDGED, DROP, KNOWN = "judge/all_right", 0.5, 0.2
"""Stop when judge accuracy falls below `DROP` x the best twice in a row; the best counts once it reaches `KNOWN`."""


class Best(Strict):
    """The iteration with the highest judge accuracy."""

    iteration: int
    right: float
    """Judge accuracy in [0, 1]: the share of samples that show every attribute of their caption."""

    @staticmethod
    def of(before: Best | None, iteration: int, values: Mapping[str, float]) -> Best | None:
        """Return the better of `before` and this iteration's score; `before` if they are equal or there is no score."""
        accuracy = values.get(JUDGED)
        if accuracy is None or not math.isfinite(accuracy) or (before is not None and accuracy <= before.right):
            return before
        return Best(iteration=iteration, right=accuracy)


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
    """Watched numbers by kind and step: `spread-1`, `gap-1`, `spread-2`, ..., where `spread` is `sample_std`."""
    best: float
    """Highest judge accuracy so far."""
    low: list[int]
    """Latest consecutive iterations at which judge accuracy was too low."""


@dataclass
class _Series:
    """One watched number of one step: what is usual, and since when it has been unusual."""

    first: list[float] = field(default_factory=list)
    unusual: int = 0
    since: int | None = None

    def add(self, iteration: int, value: float, lowest: float, highest: float) -> float | None:
        """Add an observation; return its ratio to the usual value if it has been unusual for long enough."""
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
    """Watches the metrics of every iteration, separately for each step, because late steps differ from early ones."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._best = 0.0
        self._low: list[int] = []

    def observe(self, iteration: int, values: Mapping[str, float]) -> str | None:
        """Return what is wrong, as a clause of a sentence, or None.

        Args:
            iteration: number of iterations done.
            values: the iteration's metrics: `step`, `sample_std`, `gap`, and the judge's scores if there are any.
        """
        step = int(values["step"])
        std = self._of("spread", step).add(iteration, values["sample_std"], LOWEST, HIGHEST)
        gap = self._of("gap", step).add(iteration, values["gap"], 0.0, WIDEST)
        judged = values.get(JUDGED)
        if judged is not None:
            self._best = max(self._best, judged)
            low = self._best >= KNOWN and judged < DROP * self._best
            self._low = [*self._low, iteration] if low else []
            if len(self._low) > 1:
                return f"judge accuracy has fallen to {judged:.0%} from {self._best:.0%}"
        if std is not None:
            return f"the samples of step {step} have {std:.2g} times the standard deviation they had at the start"
        if gap is not None:
            return f"teacher and fake score are {gap:.2g} times as far apart at step {step} as at the start"
        return None

    @property
    def since(self) -> int | None:
        """The iteration since which something has been unusual; None if nothing is."""
        since = [series.since for series in self._series.values() if series.since is not None]
        return min([*since, *self._low], default=None)

    def state(self) -> GuardState:
        """Return the state of the guard for a checkpoint."""
        series = {
            name: SeriesState(first=list(each.first), unusual=each.unusual, since=each.since)
            for name, each in self._series.items()
        }
        return GuardState(series=series, best=self._best, low=list(self._low))

    def load(self, state: GuardState) -> None:
        """Restore what `state` returned."""
        self._series = {
            name: _Series(list(each.first), each.unusual, each.since) for name, each in state.series.items()
        }
        self._best, self._low = state.best, list(state.low)

    def _of(self, kind: str, step: int) -> _Series:
        return self._series.setdefault(f"{kind}-{step}", _Series())
