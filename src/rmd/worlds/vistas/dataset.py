"""Sets of rendered vistas."""

from __future__ import annotations

import torch

from rmd.common.pictures import to_uint8
from rmd.worlds.dataset import SceneSet
from rmd.worlds.vistas import render


def make_vistas(count: int, *, seed: int, training: bool, size: int = 128, poor: bool = False) -> SceneSet:
    """Render vistas 0 to `count` - 1 of a seed; the other arguments are those of `sample_vistas`."""
    images, attributes, places, captions = [], [], [], []
    for start in range(0, count, 256):
        indices = range(start, min(start + 256, count))
        vistas = render.sample_vistas(indices, seed=seed, training=training, poor=poor)
        images.append(to_uint8(render.render(vistas, size), low=0))
        attributes.append(vistas.attributes)
        places.append(render.object_places(vistas))
        captions += vistas.captions
    return SceneSet(torch.cat(images), torch.cat(attributes), captions, torch.cat(places))
