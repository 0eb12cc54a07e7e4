"""Watching a run: what its folder says about it, while it goes on and after it has ended."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from rmd.common.errors import RMDError
from rmd.common.files import LOCK, is_locked
from rmd.recipes.schema import load_recipe
from rmd.report.marks import CURVE, standstill_text
from rmd.train.checkpoint import checkpoints, iteration_of
from rmd.train.folder import CHECKPOINTS
from rmd.train.marks import FILE as MARKS
from rmd.train.marks import read_marks, series_of, standstill
from rmd.train.tracking import read_metrics

Records = list[dict[str, float | None]]
State = Literal["starting", "running", "finished", "stopped"]
RECIPE = "recipe.yaml"
MOST_POINTS = 600
"""Records of each stage from which curves are drawn."""
_RECENT = 50
"""Records whose median is the time of an iteration."""
_PICTURE = re.compile(r"([a-z]+)-(\d{6,})\.png")


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes:
        name: name of the recipe; that of the folder, if the run has not written its recipe yet.
        state: "starting" before the first record, "running", "finished", or "stopped" before its last iteration.
        done, total: number of iterations so far, and of the whole run (None if it is not known yet).
        seconds: median time of a recent iteration in seconds; None before the first record.
        checkpoint: iteration of the last checkpoint, and the seconds since it was written; None if there is none.
        notes: sentences about what should be looked at.
        history: the records of metrics, thinned for drawing.
        pictures: files of pictures by iteration and kind, in order.
        marks: the chart of the marks; None if there is none.
    """

    name: str
    state: State
    done: int
    total: int | None
    seconds: float | None
    checkpoint: tuple[int, float] | None
    notes: tuple[str, ...]
    history: Records = field(repr=False)
    pictures: Mapping[int, Mapping[str, Path]]
    marks: Path | None

    @property
    def left(self) -> float | None:
        """Seconds until the end of a run that goes on, judged by its recent iterations; None if that is not known."""
        if self.state != "running" or self.seconds is None or self.total is None:
            return None
        return self.seconds * (self.total - self.done)


class RunWatch:
    """Reads the folder of a run again and again; metrics that have not changed are not parsed again."""

    def __init__(self, folder: Path) -> None:
        """Begin to watch a folder.

        Raises:
            RMDError: there is no such folder, or it is not that of a run.
        """
        if not folder.is_dir():
            raise RMDError(f"there is no folder {folder}: give the folder of a run (--out of rmd train)")
        if not any((folder / name).is_file() for name in (RECIPE, LOCK)):
            raise RMDError(f"{folder} holds no run: it has no {RECIPE}; give the folder of a run, such as runs/scenes")
        self.folder = folder
        self._stamp: tuple[int, int] | None = None
        self._records: Records = []

    def view(self) -> RunView:
        """Read the run.

        Raises:
            RMDError: a file of the run is damaged.
        """
        recipe = load_recipe(str(self.folder / RECIPE)) if (self.folder / RECIPE).is_file() else None
        locked, records, saved = is_locked(self.folder), self._metrics(), checkpoints(self.folder / CHECKPOINTS)
        done = max([0, *(int(each["iteration"] or 0) for each in records[-1:]), *map(iteration_of, saved[-1:])])
        total = None if recipe is None else recipe.train.iterations
        chart = self.folder / CURVE
        return RunView(
            name=self.folder.name if recipe is None else recipe.name,
            state=_state(locked, done, total),
            done=done,
            total=total,
            seconds=_seconds(records),
            checkpoint=_last(saved),
            notes=(*_standstills(self.folder), *_collapsed(self.folder / CHECKPOINTS)),
            history=thinned(records),
            pictures=find_pictures(self.folder / "pictures"),
            marks=chart if chart.is_file() else None,
        )

    def _metrics(self) -> Records:
        """Return the records of the run, which are read only if their file has changed."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return []
        found = path.stat()
        stamp = (found.st_size, found.st_mtime_ns)
        if stamp != self._stamp:
            self._records, self._stamp = read_metrics(path), stamp
        return self._records


def thinned(records: Records, most: int = MOST_POINTS) -> Records:
    """Return at most about `most` records of every stage, evenly spaced, in their order."""
    by_stage = defaultdict[float | None, Records](list)
    for record in records:
        by_stage[record.get("stage")].append(record)
    kept = [record for its in by_stage.values() for record in its[:: -(-len(its) // most)]]
    return sorted(kept, key=lambda record: record["iteration"] or 0)


def find_pictures(folder: Path) -> dict[int, dict[str, Path]]:
    """Return the pictures of a run by iteration and kind, such as `samples` and `scores`, in order."""
    found: dict[int, dict[str, Path]] = {}
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        match = _PICTURE.fullmatch(name)
        if match is not None:
            found.setdefault(int(match[2]), {})[match[1]] = folder / name
    return dict(sorted(found.items()))


def _state(locked: bool, done: int, total: int | None) -> State:
    if locked:
        return "running" if done else "starting"
    return "finished" if total is not None and done >= total else "stopped"


def _seconds(records: Records) -> float | None:
    """Return the median seconds of the last iterations."""
    times = [seconds for record in records[-_RECENT:] if (seconds := record.get("seconds")) is not None]
    return median(times) if times else None


def _last(saved: Sequence[Path]) -> tuple[int, float] | None:
    if not saved:
        return None
    try:
        return iteration_of(saved[-1]), max(time.time() - saved[-1].stat().st_mtime, 0.0)
    except FileNotFoundError:  # it was pruned meanwhile
        return _last(saved[:-1])


def _standstills(folder: Path) -> list[str]:
    """Return a sentence about every mark that has stood still for several evaluations."""
    records = read_marks(folder / MARKS)
    names = records[-1].samples if records else ()
    since = {name: standstill(series_of(records, name)) for name in names}
    return [standstill_text(name, iteration) for name, iteration in since.items() if iteration is not None]


def _collapsed(folder: Path) -> list[str]:
    """Return a sentence if the student has collapsed: checkpoints were set aside then."""
    aside = sorted(folder.glob("collapsed-step-*"))
    return [f"the student collapsed: {aside[0].name} and later checkpoints were set aside"] if aside else []
