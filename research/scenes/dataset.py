"""Training data: scenes that are rendered once and kept on disk, and random batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from torch import Tensor

from research.scenes.checkpoint import read_whole, write_whole
from rmd.common.errors import RMDError
from rmd.core.randomness import permutation
from rmd.worlds import still, vistas
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.vistas.dataset import make_vistas

WorldName = Literal["scenes", "vistas"]
"""The worlds of still pictures."""
_SOURCES = {
    "scenes": (still, ("../wording", "grammar", "render")),
    "vistas": (vistas, ("../wording", "grammar", "canvas", "land", "things", "render")),
}


def renderer_key(world: WorldName = "scenes") -> str:
    """Return a hash (12 hexadecimal digits) of the source code of a world's grammar and renderer."""
    package, modules = _SOURCES[world]
    folder = Path(str(package.__file__)).parent
    sources = b"".join((folder / f"{module}.py").read_bytes() for module in modules)
    return hashlib.blake2b(sources, digest_size=6).hexdigest()


def batches(count: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Yield batches of indices below `count` without end.

    Every epoch is a new permutation; its last, incomplete batch is dropped.

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
    """Random access to `batches`; fast for increasing positions."""

    def __init__(self, count: int, batch_size: int, *, seed: int) -> None:
        """Take the arguments of `batches`."""
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._start()

    def at(self, position: int) -> Tensor:
        """Return the batch at a position, counted from 0."""
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


def cached_scenes(
    count: int, *, seed: int, training: bool, size: int = 64, world: WorldName = "scenes", poor: bool = False,
    cache: Path | None = None,
) -> SceneSet:  # fmt: skip
    """Render `count` pictures of a world, or read them from the cache if the renderer has not changed.

    Args:
        count, seed, training, size: as `World.renders` takes them.
        world: the world; `poor` pictures, which are wrong in their structure, exist in the vistas only.
        cache: folder of the cache; None: there is none.

    Raises:
        RMDError: the cache cannot be written, or a file in it is damaged.
    """
    split = ("train" if training else "all") + ("-poor" if poor else "")
    path = None if cache is None else cache / f"{world}-{renderer_key(world)}-{size}-{seed}-{count}-{split}.pt"
    if path is not None and path.exists():
        return SceneSet(**read_whole(path))
    if world == "vistas":
        scenes = make_vistas(count, seed=seed, training=training, size=size, poor=poor)
    else:
        scenes = make_scenes(count, seed=seed, training=training, size=size)
    if path is None:
        return scenes
    write_whole(vars(scenes), path)
    return scenes
