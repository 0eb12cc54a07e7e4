"""Marks of a student while it is trained: their history in the run's folder, and since when nothing was gained.

The marks of every evaluation are kept for each sample. All evaluations of a run share prompts and noise, so two of them
are compared sample by sample, which is far surer than a comparison of two means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, read_errors, write_text
from rmd.common.typed import Strict

FILE = "marks.jsonl"
PATIENCE = 3
"""Number of evaluations without a gain after which a run is said to stand still."""
Series = Sequence[tuple[int, Sequence[float]]]
"""The iterations of evaluations, in order, with the marks of all samples."""


@dataclass(frozen=True)
class Marks:
    """The marks of a student at one time.

    Attributes:
        recorded: the numbers that a run records, by name.
        samples: the mark of every sample, by the name of a number that is their mean; higher is better. The first one
            decides which iteration is the best.
        sampled: a key of the prompts and noise; only marks with the same one are compared.
    """

    recorded: dict[str, float]
    samples: dict[str, tuple[float, ...]]
    sampled: str = ""

    @property
    def deciding(self) -> str | None:
        """The name of the number that decides which iteration is the best; None if there is none."""
        return next(iter(self.samples), None)


class Record(Strict):
    """The marks of one evaluation."""

    iteration: int
    samples: dict[str, tuple[float, ...]]
    sampled: str


class MarkBook:
    """The marks of all evaluations of a run, in `marks.jsonl` in its folder."""

    def __init__(self, folder: Path, *, start: int) -> None:
        """Open the file; records after iteration `start` are dropped, since they will be made again.

        Raises:
            RMDError: the file cannot be read or written.
        """
        self.path = folder / FILE
        self.records = [record for record in read_marks(self.path) if record.iteration <= start] if start else []
        if self.path.exists() or self.records:
            with disk_errors(self.path):
                write_text(self.path, "".join(f"{record.model_dump_json()}\n" for record in self.records))

    def add(self, iteration: int, marks: Marks) -> None:
        """Keep the marks of an evaluation.

        Raises:
            RMDError: they cannot be written.
        """
        record = Record(iteration=iteration, samples=marks.samples, sampled=marks.sampled)
        self.records.append(record)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{record.model_dump_json()}\n")

    def series(self, name: str) -> Series:
        """Return the marks of one name, without those of other prompts or noise than the last ones."""
        return series_of(self.records, name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the marks of the last evaluation."""
        return tuple(self.records[-1].samples) if self.records else ()


def series_of(records: Sequence[Record], name: str) -> Series:
    """Return the marks of one name, without those of other prompts or noise than the last ones."""
    marked = [record for record in records if name in record.samples]
    return [(record.iteration, record.samples[name]) for record in marked if record.sampled == marked[-1].sampled]


def read_marks(path: Path) -> list[Record]:
    """Read the marks of a run; a last line that was not written to its end is left out.

    Raises:
        RMDError: the file cannot be read, or another line is damaged.
    """
    if not path.exists():
        return []
    with read_errors(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    records, adapter = [], TypeAdapter(Record)
    for number, line in enumerate(lines, start=1):
        try:
            records.append(adapter.validate_json(line))
        except (ValidationError, json.JSONDecodeError) as error:
            if number == len(lines):
                break
            raise RMDError(f"{path} is damaged in line {number}: remove the file") from error
    return records


def last_gain(series: Series) -> int:
    """Return the iteration of the last evaluation that is better, beyond noise, than the best one before it.

    "Beyond noise" means that the 95 % interval of the mean difference lies above 0, by Student's t over the samples.
    Evaluations are compared with the last gain and not with the one just before, so slow gains add up.
    """
    since, best = series[0]
    for iteration, values in series[1:]:
        if _is_gain(best, values):
            since, best = iteration, values
    return since


def standstill(series: Series) -> int | None:
    """Return the iteration since which nothing was gained, if `PATIENCE` evaluations followed it; otherwise None."""
    if not series:
        return None
    since = last_gain(series)
    return since if sum(iteration > since for iteration, _ in series) >= PATIENCE else None


def _is_gain(before: Sequence[float], after: Sequence[float]) -> bool:
    gaps = np.subtract(after, before)
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return float(gaps.mean()) > float(stats.t.ppf(0.975, len(gaps) - 1)) * error
