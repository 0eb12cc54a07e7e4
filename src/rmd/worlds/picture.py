"""Worlds of still pictures: what the scenes and the vistas have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rmd.common.files import check_new_folder, replacing
from rmd.common.pictures import to_image, to_uint8
from rmd.core.metrics import high_frequency
from rmd.worlds.assets import own_teachers
from rmd.worlds.base import Assessment, Demo, Features, PackagedTeacher
from rmd.worlds.batch import Batch, Named
from rmd.worlds.dataset import SceneSet
from rmd.worlds.judge import WIDTHS, Judge, accuracy, legibility, load_judge
from rmd.worlds.pictures import write_samples
from rmd.worlds.references import References, load_references


@dataclass(frozen=True)
class PictureJudge:
    """A judge of pictures with the reference statistics of one teacher.

    Attributes:
        asked: returns the attributes that a caption names, and raises RMDError if it is none.
    """

    network: Judge
    references: References
    asked: Callable[[str], Named]

    def assess(self, images: Tensor, prompts: Sequence[str], *, samples_per_prompt: int) -> Assessment:
        """Judge pictures (n, 3, side, side) in [-1, 1] against their captions; see `rmd.worlds.base.Judge`."""
        asked = torch.tensor([self.asked(text).to_tuple() for text in prompts])
        read = self.network.assess(images, asked)
        return Assessment(
            count=len(images),
            samples_per_prompt=samples_per_prompt,
            right=read.right.all(1),
            counted={
                "attributes": accuracy(read.right, asked, self.network.names),
                "legibility": legibility(read.odds),
            },
            features=Features(read.features, self.references["renders"], self.references["teacher"]),
            detail=high_frequency(images) / self.references.high_frequency,
        )


class PictureWorld(ABC):
    """A world of still pictures, see `rmd.worlds.base.World`; subclasses say how pictures are worded and painted.

    Attributes:
        name: the world's name.
        side: height and width in pixels at which the judge looks at samples.
        demo: the rows and targets of `rmd demo`.
        teacher_names: names of the packaged teachers; the folder of the first holds the judge, too.
        sizes: number of values of each attribute, by name.
        fold: side of the blocks of pixels that the judge folds into channels first.
        widths: number of channels of the judge's levels.
    """

    name: str
    side: int
    demo: Demo
    teacher_names: tuple[str, ...]
    sizes: Mapping[str, int]
    fold: int
    widths: Sequence[int] = WIDTHS
    noun: Literal["scenes"] = "scenes"
    moving: Literal[False] = False
    metrics: tuple[str, ...] = (
        "attributes", "kernel_distance", "kernel_distance_to_teacher", "frechet_distance", "high_frequency",
        "diversity",
    )  # fmt: skip

    @abstractmethod
    def asked(self, text: str) -> Named:
        """Return the attributes that a caption names.

        Raises:
            RMDError: the text is not a caption of the world.
        """

    @abstractmethod
    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of the world; `training` leaves out the held-out combinations."""

    @abstractmethod
    def renders(self, count: int, *, seed: int, size: int) -> SceneSet:
        """Render pictures that training may show, (count, 3, size, size)."""

    @abstractmethod
    def sample(self, count: int, *, seed: int, text: str | None) -> Batch:
        """Draw scenes of any caption, or of one; raise RMDError if the text is no caption of the world."""

    @abstractmethod
    def paint(self, batch: Batch, size: int) -> Tensor:
        """Render scenes to (n, 3, size, size) in [0, 1]."""

    @property
    def teachers(self) -> Mapping[str, PackagedTeacher]:
        """The packaged teachers by name."""
        return own_teachers(*self.teacher_names)

    def untrained_judge(self) -> Judge:
        """Return an untrained judge of the world."""
        return Judge(self.sizes, self.widths, fold=self.fold)

    def judge(self, teacher: str | None = None) -> PictureJudge:
        """Load the judge with a packaged teacher's reference statistics; see `rmd.worlds.base.World`."""
        first = self.teacher_names[0]
        references = load_references(self.teachers[teacher or first].home)
        return PictureJudge(load_judge(self.teachers[first].home, self.untrained_judge()), references, self.asked)

    def draw(self, count: int, *, seed: int, text: str | None, folder: Path, size: int) -> Path:
        """Render scenes into a new folder and return their contact sheet; see `rmd.worlds.base.World`."""
        check_new_folder(folder)
        batch = self.sample(count, seed=seed, text=text)
        images = to_uint8(self.paint(batch, size), low=0)
        return write_samples(batch, images, tuple(self.sizes), folder, sheet=64, width=160)

    def save_samples(
        self, grids: Mapping[str, Tensor], labels: Mapping[str, str], prompts: Sequence[str], folder: Path
    ) -> None:
        """Write one PNG row of pictures per sampler."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, images in grids.items():
            with replacing(folder / f"{name}.png") as partial:
                to_image(torch.cat(list(images), dim=2)).save(partial, "PNG")
