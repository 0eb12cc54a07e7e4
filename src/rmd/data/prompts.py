"""Prompt sources. Training needs nothing else: prompts in, student out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.core.randomness import permutation
from rmd.data.captions import RECIPE_KEYS, Keys
from rmd.data.sources import Source, read_raw, read_source
from rmd.recipes.schema import DataConfig
from rmd.worlds.registry import WORLDS

WORLD_PROMPTS = 8192
"""Number of captions that a world generates for training."""


@dataclass(frozen=True)
class Prompts:
    """A list of prompts and the order a seed puts them in: position p is a pure function of (seed, p)."""

    texts: Sequence[str]
    seed: int

    @property
    def key(self) -> str:
        """SHA-256 of the texts in order, in hex."""
        found = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            found.update(len(encoded).to_bytes(8, "big") + encoded)
        return found.hexdigest()

    def batch(self, iteration: int, batch_size: int) -> tuple[list[str], list[int]]:
        """Prompts of an iteration and the global numbers of their samples, which key their noise."""
        samples = range(iteration * batch_size, (iteration + 1) * batch_size)
        return [self.texts[i] for i in positions(len(self.texts), samples, seed=self.seed)], list(samples)


def positions(count: int, samples: Sequence[int], *, seed: int) -> list[int]:
    """Which of `count` things global samples get: each of them once an epoch, in another order every epoch."""
    epochs = dict.fromkeys(p // count for p in samples)
    order = {epoch: permutation(count, seed=seed, epoch=epoch).tolist() for epoch in epochs}
    return [order[p // count][p % count] for p in samples]


def load_prompts(data: DataConfig, *, seed: int, keys: Keys = RECIPE_KEYS) -> Prompts:
    """Load the prompts that a recipe names, or generate them if the source is a world, such as `scenes`.

    Args:
        seed: seed of the order of the prompts, and of the captions that the grammars generate.
        keys: names, in errors, of the settings that decide about rows.

    Raises:
        RMDError: the source is missing or cannot be read, or the filters leave nothing of it.
    """
    if data.prompts in WORLDS.names():
        return Prompts(WORLDS.get(data.prompts).captions(WORLD_PROMPTS, seed=seed, training=True), seed)
    return Prompts(read_source(source_of(data, keys=keys)).texts, seed)


def source_of(data: DataConfig, *, keys: Keys = RECIPE_KEYS) -> Source:
    """The source that a recipe names, with its filters."""
    return Source(
        data.prompts,
        column=data.column,
        split=data.split,
        journeydb=data.journeydb,
        skip_invalid=data.skip_invalid,
        min_chars=data.min_chars,
        max_chars=data.max_chars,
        exclude=data.exclude,
        keys=keys,
    )


def read_prompts(path: Path, column: str | None = None) -> list[str]:
    """Read the prompts of a file, pattern or dataset of any known format: stripped, without duplicates, in order.

    Args:
        path: the source as the user gave it on the command line.
        column: the column of the records that holds the prompts; None: prompt, caption or text.

    Raises:
        RMDError: the file cannot be read, one of its rows is not one prompt, or it has none.
    """
    source = Source(str(path), column=column, keys=Keys(column="--column", skip=None))
    found = list(dict.fromkeys(text.strip() for text in read_raw(source) if text.strip()))
    if not found:
        raise RMDError(f"the prompt file {path} has no prompts: write one a line")
    return found
