"""Sets of rendered scenes."""

from __future__ import annotations

import torch

from rmd.common.pictures import to_uint8
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still import render


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
