"""What a report holds: frozen, typed, checked once, and written to report.json as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from rmd.common.errors import RMDError
from rmd.common.typed import Strict
from rmd.core.plan import StepPlan

TEACHER = "teacher"
"""Name of the row that the others are compared with."""
STUDENT = "rmd"
"""Name of the distilled student's row."""

Bounds = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""


class Motion(Strict):
    """How the clips of a video sampler move (`rmd.worlds.moving.metrics`)."""

    motion: float
    """Share of clips that move in the way and direction that the caption asks for."""
    motion_ci: Bounds
    speed: float
    """Share of clips whose speed is right too."""
    speed_ci: Bounds
    dynamics: float
    """How much moves, over what was asked; 1 is as much, 0 stands still."""
    flicker: float
    """Change from frame to frame where nothing moves, in percent of the pixels' range."""
    change_distance: float
    """Kernel distance to rendered clips of what changes from frame to frame."""
    change_distance_ci: Bounds


class Row(Strict):
    """One sampler: what it costs and how good its samples are; a sample is an image, or a clip."""

    name: str
    """Short and unique: teacher, rmd, ..."""
    label: str
    """The name as a person reads it."""
    nfe: float
    """Network evaluations per image; a guided step counts two, an evaluation at low resolution one."""
    seconds_per_image: float
    """Of the denoiser alone."""
    speedup: float
    """Denoiser time of the teacher's row over this one's."""
    seconds_end_to_end: float
    """Per image, with the caption's encoding and the decoding."""
    attributes: float
    """Share of samples (0 to 1) in which the judge finds every attribute right."""
    attributes_ci: Bounds
    attributes_by_name: Mapping[str, float]
    """Share of each attribute alone, among the samples that have it."""
    kernel_distance: float
    """To rendered scenes, times 1000 (`rmd.core.metrics.kernel_distance`)."""
    kernel_distance_ci: Bounds
    kernel_distance_to_teacher: float
    """The same to the teacher's samples."""
    kernel_distance_to_teacher_ci: Bounds
    frechet_distance: float
    """To rendered scenes, on the judge's features."""
    high_frequency: float
    """Energy of the finest detail over that of rendered scenes; 1 is as sharp."""
    diversity: float
    """Mean distance between the features of two samples of one prompt."""
    motion: Motion | None = None
    """Of clips: `attributes` then counts frames, and distances are of frames."""

    @property
    def title(self) -> str:
        """Its label and its calls, over pictures."""
        return f"{self.label} ({self.nfe:g} calls)"


class Check(Strict):
    """A target set beforehand and whether it was met."""

    name: str
    target: str
    """In words: 'at least 15'."""
    measured: float
    passed: bool


class Report(Strict):
    """Everything `write_report` shows, but for the pictures."""

    rows: Sequence[Row] = Field(min_length=1)
    checks: Sequence[Check]
    quick: bool
    """A smoke run: everything ran, and no number means anything."""
    seconds: float
    """Wall-clock time of the whole run."""
    peak_memory_gb: float
    config: Mapping[str, object]
    """The resolved recipe, as JSON values."""
    versions: Mapping[str, str]
    """Of Python, the packages that matter, and this one."""
    plan: Mapping[str, object]
    """`StepPlan.to_dict()`."""
    prompts: Sequence[str]
    """Of the grids, in their order."""
    history: Sequence[Mapping[str, float | None]]
    """Records of the training: `iteration` and what was measured at it; None where that was not finite."""
    n: int = Field(gt=0)
    """Samples behind each row's measures."""
    seed: int
    overhead: float
    """Time of the student's sampler outside the network, over the time inside it."""

    @field_validator("rows")
    @classmethod
    def _unique_names(cls, rows: Sequence[Row]) -> Sequence[Row]:
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RMDError(f"a report has one row of each name, but {twice[0]!r} comes twice")
        return rows

    @field_validator("plan")
    @classmethod
    def _valid_plan(cls, plan: Mapping[str, object]) -> Mapping[str, object]:
        StepPlan.from_dict(plan)
        return plan

    @property
    def moving(self) -> bool:
        """Whether the samples are clips."""
        return any(row.motion is not None for row in self.rows)

    @property
    def step_plan(self) -> StepPlan:
        """The plan as an object."""
        return StepPlan.from_dict(self.plan)

    def find(self, name: str) -> Row | None:
        """The row of that name, if there is one."""
        return next((row for row in self.rows if row.name == name), None)
