"""Sets of rendered scenes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.common.pictures import to_uint8
from rmd.worlds.still import render


@dataclass(frozen=True)
class SceneSet:
    """n rendered scenes.

    Attributes:
        images: (n, 3, side, side) uint8.
        attributes: (n, 9) int64, columns as `ATTRIBUTE_NAMES`.
        captions: one per scene.
        places: (n, 2, 3), see `render.object_places`.
    """

    images: Tensor
    attributes: Tensor
    captions: list[str]
    places: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def pixels(self, index: Tensor) -> Tensor:
        """Return the images at the given indices as float32 in [-1, 1], the range of diffusers' VAEs."""
        return self.images[index].float() / 127.5 - 1


def make_scenes(count: int, *, seed: int, training: bool, size: int = 64) -> SceneSet:
    """Render scenes 0 to `count` - 1 of a seed; `training` leaves out the held-out combinations."""
    images, attributes, places, captions = [], [], [], []
    for start in range(0, count, 256):
        scenes = render.sample_scenes(range(start, min(start + 256, count)), seed=seed, training=training)
        images.append(to_uint8(render.render(scenes, size), low=0))
        attributes.append(scenes.attributes)
        places.append(render.object_places(scenes))
        captions += scenes.captions
    return SceneSet(torch.cat(images), torch.cat(attributes), captions, torch.cat(places))
