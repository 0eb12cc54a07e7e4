"""Training data: scenes that are rendered once and kept on disk, and random batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from research.scenes.checkpoint import read_whole, write_whole
from rmd.common.errors import RMDError
from rmd.core.randomness import permutation
from rmd.worlds.still import grammar, render
from rmd.worlds.still.dataset import SceneSet, make_scenes


def renderer_key() -> str:
    """Return a hash (12 hexadecimal digits) of the source code of the grammar and the renderer."""
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in (grammar, render))
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


def cached_scenes(count: int, *, seed: int, training: bool, size: int = 64, cache: Path | None = None) -> SceneSet:
    """Render `count` scenes, or read them from the cache if the renderer has not changed.

    Raises:
        RMDError: the cache cannot be written, or a file in it is damaged.
    """
    if cache is None:
        return make_scenes(count, seed=seed, training=training, size=size)
    split = "train" if training else "all"
    path = cache / f"scenes-{renderer_key()}-{size}-{seed}-{count}-{split}.pt"
    if path.exists():
        return SceneSet(**read_whole(path))
    scenes = make_scenes(count, seed=seed, training=training, size=size)
    write_whole(vars(scenes), path)
    return scenes
