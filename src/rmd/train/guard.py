"""Notices that a student collapses: its samples lose variance or blow up, the scores drift apart, or accuracy falls.

The losses do not show it: in distribution matching, good and bad runs have similar losses (`docs/runs.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from pydantic import AliasChoices, Field

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
    """The iteration with the highest mark, by the first of the recipe's `evaluation.metrics`."""

    iteration: int
    value: float = Field(validation_alias=AliasChoices("value", "right"))
    """The mark; checkpoints of version 0.1 call it `right`."""
    metric: str = JUDGED
    """The name of the mark."""

    @staticmethod
    def of(before: Best | None, iteration: int, metric: str, value: float) -> Best | None:
        """Return the better of `before` and this iteration's mark; `before` if they are equal or it is not finite.

        A mark of another metric than before counts as the first one.
        """
        if not math.isfinite(value) or (before is not None and before.metric == metric and value <= before.value):
            return before
        return Best(iteration=iteration, value=value, metric=metric)


class Series(Strict):
    """One watched number of one step: what is usual, and since when it has been unusual."""

    first: tuple[float, ...] = ()
    """First finite observations; their median counts as usual."""
    unusual: int = 0
    """Number of consecutive unusual observations up to the latest one."""
    since: int | None = None
    """Iteration of the first of those."""

    def followed_by(self, iteration: int, value: float, lowest: float, highest: float) -> Series:
        """Return the series with one more observation."""
        if len(self.first) < FIRST:
            return Series(first=(*self.first, value)) if math.isfinite(value) else self
        usual = median(self.first)
        if lowest * usual <= value <= highest * usual:
            return Series(first=self.first)
        since = iteration if self.since is None else self.since
        return Series(first=self.first, unusual=self.unusual + 1, since=since)


class GuardState(Strict):
    """State of a guard, as a checkpoint stores it."""

    series: dict[str, Series]
    """Watched numbers by kind and step: `spread-1`, `gap-1`, `spread-2`, ..., where `spread` is `sample_std`."""
    best: float
    """Highest judge accuracy so far."""
    low: list[int]
    """Latest consecutive iterations at which judge accuracy was too low."""


class CollapseGuard:
    """Watches the metrics of every iteration, separately for each step, because late steps differ from early ones.

    Attributes:
        state: what a checkpoint stores; a resumed run sets it.
    """

    def __init__(self) -> None:
        self.state = GuardState(series={}, best=0.0, low=[])

    def observe(self, iteration: int, values: Mapping[str, float]) -> str | None:
        """Return what is wrong, as a clause of a sentence, or None.

        Args:
            iteration: number of iterations done.
            values: the iteration's metrics: `step`, `sample_std`, `gap`, and the judge's scores if there are any.
        """
        step = int(values["step"])
        std = self._ratio(f"spread-{step}", iteration, values["sample_std"], LOWEST, HIGHEST)
        gap = self._ratio(f"gap-{step}", iteration, values["gap"], 0.0, WIDEST)
        judged = values.get(JUDGED)
        if judged is not None:
            best = max(self.state.best, judged)
            low = [*self.state.low, iteration] if best >= KNOWN and judged < DROP * best else []
            self.state = self.state.model_copy(update={"best": best, "low": low})
            if len(low) > 1:
                return f"judge accuracy has fallen to {judged:.0%} from {best:.0%}"
        if std is not None:
            return f"the samples of step {step} have {std:.2g} times the standard deviation they had at the start"
        if gap is not None:
            return f"teacher and fake score are {gap:.2g} times as far apart at step {step} as at the start"
        return None

    @property
    def since(self) -> int | None:
        """The iteration since which something has been unusual; None if nothing is."""
        since = [series.since for series in self.state.series.values() if series.since is not None]
        return min([*since, *self.state.low], default=None)

    def _ratio(self, name: str, iteration: int, value: float, lowest: float, highest: float) -> float | None:
        """Add an observation; return its ratio to the usual value if it has been unusual for long enough."""
        series = self.state.series.get(name, Series()).followed_by(iteration, value, lowest, highest)
        self.state = self.state.model_copy(update={"series": {**self.state.series, name: series}})
        return value / median(series.first) if series.unusual >= PATIENCE else None
