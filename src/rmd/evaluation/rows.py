"""The contents of report.json: one row per sampler, the targets, and the facts of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from rmd.common.errors import RMDError
from rmd.common.typed import Strict
from rmd.core.plan import StepPlan
from rmd.worlds.base import Measured

TEACHER = "teacher"
"""Name of the row that the others are compared with."""
STUDENT = "rmd"
"""Name of the distilled student's row."""

__all__ = ["STUDENT", "TEACHER", "Check", "Measured", "Report", "Row"]


class Row(Strict):
    """One sampler: what it costs and what was measured of its samples, which are images or clips."""

    name: str
    """Short and unique: teacher, rmd, ..."""
    label: str
    """The name as people read it."""
    nfe: float
    """Network evaluations per sample; a guided step counts two, an evaluation at low resolution counts one."""
    seconds_per_image: float
    """Seconds per sample in the denoiser alone."""
    speedup: float
    """Denoiser time of the reference row (the teacher's) over this one's."""
    seconds_end_to_end: float
    """Seconds per sample, including encoding the caption and decoding."""
    measures: Mapping[str, Measured]
    """The measurements by the name of the metric (`rmd.evaluation.metrics`), in the order of the columns."""

    @property
    def title(self) -> str:
        """The label with the number of network evaluations, as a caption of pictures."""
        return f"{self.label} ({self.nfe:g} calls)"

    def value(self, name: str) -> float:
        """Return the measured value of a metric.

        Raises:
            RMDError: the row lacks it.
        """
        if name not in self.measures:
            raise RMDError(f"the row {self.name!r} has no measure {name!r}")
        return self.measures[name].value


class Check(Strict):
    """A target set beforehand and whether it was met."""

    name: str
    target: str
    """The limit in words, such as "at least 15"."""
    measured: float
    passed: bool


class Report(Strict):
    """Everything that `rmd.report.write_report` shows except the pictures."""

    rows: Sequence[Row] = Field(min_length=1)
    checks: Sequence[Check]
    quick: bool
    """Set for a smoke run of the demo, whose numbers mean nothing."""
    seconds: float
    """Wall-clock time of the whole run."""
    peak_memory_gb: float
    config: Mapping[str, object]
    """The resolved recipe, as JSON values."""
    versions: Mapping[str, str]
    """Versions of Python, of the packages that decide numbers, and of RMD."""
    plan: Mapping[str, object]
    """`StepPlan.to_dict()`."""
    prompts: Sequence[str]
    """The prompts of the grids, in their order."""
    history: Sequence[Mapping[str, float | None]]
    """Records of the training: `iteration` and what was measured at it; None where that was not finite."""
    n: int = Field(gt=0)
    """Number of samples per row."""
    seed: int
    overhead: float
    """Time of the student's sampler outside the network, over the time inside it."""

    @field_validator("rows")
    @classmethod
    def _unique_names(cls, rows: Sequence[Row]) -> Sequence[Row]:
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RMDError(f"the rows of a report must have different names, but {twice[0]!r} occurs twice")
        return rows

    @field_validator("plan")
    @classmethod
    def _valid_plan(cls, plan: Mapping[str, object]) -> Mapping[str, object]:
        StepPlan.from_dict(plan)
        return plan

    @property
    def moving(self) -> bool:
        """True if the samples are clips."""
        return self.step_plan.frames > 1

    @property
    def step_plan(self) -> StepPlan:
        """The plan as an object."""
        return StepPlan.from_dict(self.plan)

    def find(self, name: str) -> Row | None:
        """Return the row of a name, or None."""
        return next((row for row in self.rows if row.name == name), None)
