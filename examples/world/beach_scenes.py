"""A world: the still scenes on sand only, with their renderer and judge. `data.prompts: beach-scenes` trains on it."""

from __future__ import annotations

from collections.abc import Mapping

from rmd.worlds.base import PackagedTeacher
from rmd.worlds.still.world import Scenes

GROUND = "on sand"


class BeachScenes(Scenes):
    """The scenes whose caption puts them on sand; everything else is that of `scenes`."""

    name = "beach-scenes"

    @property
    def teachers(self) -> Mapping[str, PackagedTeacher]:
        """None of its own: a recipe takes one of `scenes`, whose samples are the reference."""
        return {}

    def captions(self, count: int, *, seed: int, training: bool) -> list[str]:
        """Return captions on sand, in the order in which `scenes` draws them."""
        captions: list[str] = []
        drawn = 4 * count
        while len(captions) < count:
            captions = [text for text in super().captions(drawn, seed=seed, training=training) if GROUND in text]
            drawn *= 2
        return captions[:count]


WORLD = BeachScenes()
