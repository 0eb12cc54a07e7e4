"""Rendered scenes kept on disk, so that the trainers of VAE, judge and teacher render each picture once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rmd.errors import RMDError
from rmd.randomness import permutation
from rmd.scenes import grammar, render
from rmd.scenes.checkpoint import read_whole, write_whole


@dataclass(frozen=True)
class SceneSet:
    """n rendered scenes.

    images: (n, 3, side, side) uint8. attributes: (n, 9) int64. places: (n, 2, 3), as `render.object_places`.
    """

    images: Tensor
    attributes: Tensor
    captions: list[str]
    places: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def pixels(self, index: Tensor) -> Tensor:
        """Images at the given indices as float32 in [-1, 1], the range of diffusers' VAEs."""
        return self.images[index].float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] float images to uint8 as PIL would save them."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def renderer_key() -> str:
    """Twelve hexadecimal digits that change with the sources of grammar and renderer."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (grammar, render))
    return hashlib.blake2b(sources, digest_size=6).hexdigest()


def make_scenes(count: int, *, seed: int, training: bool, size: int = 64, cache: Path | None = None) -> SceneSet:
    """Render `count` scenes of a seed, or read them back from `cache` if the renderer is still the same.

    Raises:
        RMDError: the cache cannot be written, or what it holds is damaged.
    """
    path = None
    if cache is not None:
        whose = "train" if training else "all"
        path = cache / f"scenes-{renderer_key()}-{size}-{seed}-{count}-{whose}.pt"
        if path.exists():
            stored = read_whole(path)
            return SceneSet(**stored)
    images, attributes, places, captions = [], [], [], []
    for start in range(0, count, 256):
        scenes = render.sample_scenes(range(start, min(start + 256, count)), seed=seed, training=training)
        images.append(to_uint8(render.render(scenes, size)))
        attributes.append(scenes.attributes)
        places.append(render.object_places(scenes))
        captions += scenes.captions
    found = SceneSet(torch.cat(images), torch.cat(attributes), captions, torch.cat(places))
    if path is not None:
        write_whole(vars(found), path)
    return found


def batches(count: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices below `count`: a fresh permutation every epoch, its last few dropped.

    Raises:
        RMDError: there are fewer scenes than a batch needs.
    """
    if count < batch_size:
        raise RMDError(f"{count} scenes do not fill a batch of {batch_size}: render more of them")
    epoch = 0
    while True:
        order = permutation(count, seed=seed, epoch=epoch)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
        epoch += 1


class BatchOrder:
    """Random access to `batches`, cheap when positions grow."""

    def __init__(self, count: int, batch_size: int, *, seed: int) -> None:
        """As `batches`."""
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._start()

    def at(self, position: int) -> Tensor:
        """The batch at a position, from 0."""
        if position < self._position:
            self._start()
        while self._position < position:
            next(self._iterator)
            self._position += 1
        self._position += 1
        return next(self._iterator)

    def _start(self) -> None:
        self._iterator = batches(self._count, self._batch_size, seed=self._seed)
        self._position = 0
