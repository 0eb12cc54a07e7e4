"""The world `scenes`: still pictures of one object at a place, or of two in a relation."""

from __future__ import annotations

from torch import Tensor

from rmd.worlds.base import Demo, Target
from rmd.worlds.batch import Batch
from rmd.worlds.dataset import SceneSet
from rmd.worlds.picture import PictureWorld
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_SIZES, Attributes, attributes_of, scene_captions
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


class Scenes(PictureWorld):
    """Still scenes; see `rmd.worlds.picture.PictureWorld`."""

    name, side, demo, sizes, fold = "scenes", 64, DEMO, ATTRIBUTE_SIZES, 2
    teacher_names = ("scenes", "scenes-pixart", "scenes-sd3")

    def asked(self, text: str) -> Attributes:
        """Return the attributes that a caption names, or raise RMDError."""
        return attributes_of(text)

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of scenes; `training` leaves out the held-out combinations."""
        return scene_captions(count, seed=seed, training=training)

    def renders(self, count: int, *, seed: int, size: int) -> SceneSet:
        """Render scenes that training may show, (count, 3, size, size)."""
        return make_scenes(count, seed=seed, training=True, size=size)

    def sample(self, count: int, *, seed: int, text: str | None) -> Batch:
        """Draw scenes of any caption, or of one; raise RMDError if the text is no caption of scenes."""
        if text is None:
            return sample_scenes(range(count), seed=seed, training=False)
        return scenes_of([attributes_of(text)] * count, seed=seed)

    def paint(self, batch: Batch, size: int) -> Tensor:
        """Render scenes to (n, 3, size, size) in [0, 1]."""
        return render(batch, size, chunk=max(1, 64 * 64**2 // size**2))


WORLD = Scenes()
