"""The interface of worlds: captions, renders, packaged teachers, and a judge whose assessments the metrics read.

A world is a synthetic distribution of captioned pictures or clips for which ground truth is known, so that any model
of it can be measured exactly. Other packages add worlds through the entry points `rmd.worlds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor, nn

from rmd.common.typed import Strict
from rmd.core.metrics import standardise, wilson


class Measured(Strict):
    """A measured value, with its 95 % confidence interval where there is one."""

    value: float
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    parts: Mapping[str, float] = {}
    """The same measure for each part alone, such as the share of samples with the right colour."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval as (low, high), or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def share_of(hits: int, count: int, parts: Mapping[str, float] | None = None) -> Measured:
    """Return the share of `hits` in `count` samples, with Wilson's 95 % interval."""
    share = wilson(hits, count)
    return Measured(value=share.value, low=share.low, high=share.high, parts=parts or {})


@dataclass(frozen=True)
class Features:
    """The judge's features of samples, of renders, and of the teacher's own samples.

    Attributes:
        samples: (n * rows, d); the rows of one sample are consecutive.
        renders: (m, d).
        teacher: (k, d).
        rows: number of rows per sample, such as one for each frame that is compared.
    """

    samples: Tensor
    renders: Tensor
    teacher: Tensor
    rows: int = 1

    @cached_property
    def scores(self) -> tuple[Tensor, Tensor]:
        """Samples and renders as z-scores by the renders' statistics."""
        return standardise(self.samples, self.renders)

    @cached_property
    def teacher_scores(self) -> Tensor:
        """The teacher's samples as z-scores by the renders' statistics."""
        return standardise(self.teacher, self.renders)[0]


@dataclass(frozen=True)
class Assessment:
    """A judge's reading of n samples, from which every metric is computed.

    Attributes:
        count: n.
        samples_per_prompt: number of consecutive samples that share a prompt.
        right: (n,) bool, whether everything that the caption asks for is there.
        counted: measures that the judge takes itself, by the name of their metric, such as the share of right samples.
        features: features of pictures, or of a clip's frames.
        changes: features of what changes from frame to frame; None for pictures.
        detail: high-frequency energy of the samples over that of renders.
    """

    count: int
    samples_per_prompt: int
    right: Tensor
    counted: Mapping[str, Measured]
    features: Features
    detail: float
    changes: Features | None = None


class Judge(Protocol):
    """Scores samples of a world; it was trained on renders alone and knows no generator."""

    @property
    def network(self) -> nn.Module:
        """The network whose weights decide every score."""

    def assess(self, images: Tensor, prompts: Sequence[str], *, samples_per_prompt: int) -> Assessment:
        """Judge samples against their captions.

        Args:
            images: (n, 3, H, W) pictures or (n, 3, T, H, W) clips in [-1, 1], of the world's side.
            prompts: n captions of the world's grammar.
            samples_per_prompt: number of consecutive samples that share a prompt.

        Raises:
            RMDError: a prompt is not a caption of the world.
        """


class Renders(Protocol):
    """Rendered pictures with their captions."""

    @property
    def captions(self) -> Sequence[str]:
        """One caption per picture."""

    @property
    def images(self) -> Tensor:
        """All pictures, (n, 3, side, side) uint8."""

    def pixels(self, index: Tensor) -> Tensor:
        """Return the pictures of the given indices as (n, 3, side, side) in [-1, 1]."""


@dataclass(frozen=True)
class PackagedTeacher:
    """A teacher that comes with a world.

    Attributes:
        name: what recipes call it; a packaged recipe has the same name.
        family: the model family.
        home: folder with the pipeline in `teacher/`, the reference statistics and the record of its training.
        build: the command that builds it, for the error when it is missing.
    """

    name: str
    family: str
    home: Path
    build: str = ""


@dataclass(frozen=True)
class Target:
    """A target of `rmd demo`, set beforehand: a quantity of the student, or its ratio to another row.

    Attributes:
        name: what is compared, as the report prints it.
        wanted: the limit in words, such as "at least 15".
        measure: a metric, or `speedup`, `gain` (speed over as many full-resolution steps) or `overhead` (time of the
            sampler outside the network).
        limit: the limit as a number.
        least: whether the quantity must be at least the limit; otherwise at most.
        row: the row whose quantity it is.
        over: row whose value is the denominator; empty: the quantity itself is compared.
    """

    name: str
    wanted: str
    measure: str
    limit: float
    least: bool = False
    row: str = "rmd"
    over: str = ""


@dataclass(frozen=True)
class Demo:
    """The rows and targets of `rmd demo` in a world.

    Attributes:
        rows: the samplers, of teacher (first: speed-ups are relative to it), teacher-4, cascade-undistilled,
            teacher-low, tdm and rmd.
        targets: what the student must reach.
        prompts: number of captions whose samples the report shows.
    """

    rows: tuple[str, ...]
    targets: tuple[Target, ...]
    prompts: int = 24


class World(Protocol):
    """A world: the one place where its captions, renders, teachers and judge are found."""

    @property
    def name(self) -> str:
        """The world's name, which is also the name of its prompt source."""

    @property
    def noun(self) -> Literal["scenes", "clips"]:
        """Name in the plural of the samples that the world renders."""

    @property
    def moving(self) -> bool:
        """True if the world's samples are clips."""

    @property
    def side(self) -> int:
        """Height and width in pixels at which the judge looks at samples."""

    @property
    def teachers(self) -> Mapping[str, PackagedTeacher]:
        """The packaged teachers by name; the first is the default one."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are reported by default, in the order of the columns."""

    @property
    def demo(self) -> Demo:
        """The rows and targets of `rmd demo`."""

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of the world's grammar; `training` leaves out the held-out combinations."""

    def renders(self, count: int, *, seed: int, size: int) -> Renders:
        """Render pictures that training may show.

        Raises:
            RMDError: the world renders clips only.
        """

    def judge(self, teacher: str | None = None) -> Judge:
        """Load the judge with the reference statistics of a packaged teacher, by default of the first one.

        Raises:
            RMDError: the judge's weights or the statistics are missing.
        """

    def draw(self, count: int, *, seed: int, text: str | None, folder: Path, size: int) -> Path:
        """Render samples of any caption, or of one, into a new folder, and return the path of their contact sheet.

        Raises:
            RMDError: the text is not a caption of the world, or the folder cannot be written to.
        """

    def save_samples(
        self, grids: Mapping[str, Tensor], labels: Mapping[str, str], prompts: Sequence[str], folder: Path
    ) -> None:
        """Write the samples of several samplers, uint8 by name, as picture files."""
