"""The world `vistas`: pictures of one object in the air, or of two in a relation, above a landscape."""

from __future__ import annotations

from torch import Tensor

from rmd.worlds.base import Demo
from rmd.worlds.batch import Batch
from rmd.worlds.dataset import SceneSet
from rmd.worlds.picture import PictureWorld
from rmd.worlds.still.world import DEMO as SCENES
from rmd.worlds.vistas.dataset import make_vistas
from rmd.worlds.vistas.grammar import ATTRIBUTE_SIZES, Attributes, attributes_of, vista_captions
from rmd.worlds.vistas.render import render, sample_vistas, vistas_of

DEMO = Demo(rows=SCENES.rows, targets=SCENES.targets)


class Vistas(PictureWorld):
    """Vistas; see `rmd.worlds.picture.PictureWorld`."""

    name, side, demo, sizes, fold = "vistas", 128, DEMO, ATTRIBUTE_SIZES, 4
    teacher_names = ("vistas",)
    widths = (24, 40, 48, 48)
    metrics = (*PictureWorld.metrics, "legibility")

    def asked(self, text: str) -> Attributes:
        """Return the attributes that a caption names, or raise RMDError."""
        return attributes_of(text)

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions of vistas; `training` leaves out the held-out combinations."""
        return vista_captions(count, seed=seed, training=training)

    def renders(self, count: int, *, seed: int, size: int) -> SceneSet:
        """Render vistas that training may show, (count, 3, size, size)."""
        return make_vistas(count, seed=seed, training=True, size=size)

    def sample(self, count: int, *, seed: int, text: str | None) -> Batch:
        """Draw vistas of any caption, or of one; raise RMDError if the text is no caption of vistas."""
        if text is None:
            return sample_vistas(range(count), seed=seed, training=False)
        return vistas_of([attributes_of(text)] * count, seed=seed)

    def paint(self, batch: Batch, size: int) -> Tensor:
        """Render vistas to (n, 3, size, size) in [0, 1]."""
        return render(batch, size, chunk=max(1, 64 * 128**2 // max(size, 128) ** 2))


WORLD = Vistas()
