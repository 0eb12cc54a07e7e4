"""The world `scenes`: still pictures of one object at a place, or of two in a relation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmd.common.files import check_new_folder, replacing
from rmd.common.pictures import to_image, to_uint8
from rmd.core.metrics import high_frequency
from rmd.worlds.assets import own_teachers, teacher_home
from rmd.worlds.base import Assessment, Demo, Features, PackagedTeacher, Target
from rmd.worlds.pictures import write_samples
from rmd.worlds.references import References, load_references
from rmd.worlds.still.dataset import SceneSet, make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, attributes_of, scene_captions
from rmd.worlds.still.judge import Judge, accuracy, load_judge
from rmd.worlds.still.render import render, sample_scenes, scenes_of

DEMO = Demo(
    rows=("teacher", "teacher-4", "cascade-undistilled", "teacher-low", "rmd"),
    targets=(
        Target("attributes over the teacher's", "at least 0.95", "attributes", 0.95, least=True, over="teacher"),
        Target("attributes over the undistilled cascade's", "at least 1", "attributes", 1, least=True,
               over="cascade-undistilled"),
        Target("distance to renders over the 4-step teacher's", "at most 0.5", "kernel_distance", 0.5,
               over="teacher-4"),
        Target("distance to the teacher's samples over the 4-step teacher's", "below 1",
               "kernel_distance_to_teacher", 1, over="teacher-4"),
        Target("denoiser speed-up over the teacher", "at least 15", "speedup", 15, least=True),
        Target("denoiser speed-up over as many full-resolution steps", "at least 1.4", "gain", 1.4, least=True),
        Target("sampler time outside the network", "at most 0.02", "overhead", 0.02),
        Target("4-step teacher's distance to renders over the teacher's", "at least 3", "kernel_distance", 3,
               least=True, row="teacher-4", over="teacher"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SceneJudge:
    """The scenes' judge with the reference statistics of one teacher."""

    network: Judge
    references: References

    def assess(self, images: Tensor, prompts: Sequence[str], *, samples_per_prompt: int) -> Assessment:
        """Judge pictures (n, 3, 64, 64) in [-1, 1] against their captions; see `rmd.worlds.base.Judge`."""
        asked = torch.tensor([attributes_of(text).to_tuple() for text in prompts])
        right, features = self.network.assess(images, asked)
        return Assessment(
            count=len(images),
            samples_per_prompt=samples_per_prompt,
            right=right.all(1),
            counted={"attributes": accuracy(right, asked)},
            features=Features(features, self.references["renders"], self.references["teacher"]),
            detail=high_frequency(images) / self.references.high_frequency,
        )


class Scenes:
    """Still scenes; see `rmd.worlds.base.World`."""

    name, noun, moving, side, demo = "scenes", "scenes", False, 64, DEMO
    metrics = (
        "attributes", "kernel_distance", "kernel_distance_to_teacher", "frechet_distance", "high_frequency",
        "diversity",
    )  # fmt: skip

    @property
    def teachers(self) -> Mapping[str, PackagedTeacher]:
        """The packaged SDXL, PixArt and SD3 teachers by name."""
        return own_teachers("scenes", "scenes-pixart", "scenes-sd3")

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of scenes; `training` leaves out the held-out combinations."""
        return scene_captions(count, seed=seed, training=training)

    def renders(self, count: int, *, seed: int, size: int) -> SceneSet:
        """Render scenes that training may show, (count, 3, size, size)."""
        return make_scenes(count, seed=seed, training=True, size=size)

    def judge(self, teacher: str | None = None) -> SceneJudge:
        """Load the judge with a packaged teacher's reference statistics; see `rmd.worlds.base.World`."""
        home = teacher_home() if teacher is None else self.teachers[teacher].home
        return SceneJudge(load_judge(teacher_home()), load_references(home))

    def draw(self, count: int, *, seed: int, text: str | None, folder: Path, size: int) -> Path:
        """Render scenes into a new folder and return their contact sheet; see `rmd.worlds.base.World`."""
        check_new_folder(folder)
        scenes = (
            sample_scenes(range(count), seed=seed, training=False)
            if text is None
            else scenes_of([attributes_of(text)] * count, seed=seed)
        )
        images = to_uint8(render(scenes, size, chunk=max(1, 64 * 64**2 // size**2)), low=0)
        return write_samples(scenes, images, ATTRIBUTE_NAMES, folder, sheet=64, width=160)

    def save_samples(
        self, grids: Mapping[str, Tensor], labels: Mapping[str, str], prompts: Sequence[str], folder: Path
    ) -> None:
        """Write one PNG row of pictures per sampler."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, images in grids.items():
            with replacing(folder / f"{name}.png") as partial:
                to_image(torch.cat(list(images), dim=2)).save(partial, "PNG")


WORLD = Scenes()
