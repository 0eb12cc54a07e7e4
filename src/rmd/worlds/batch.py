"""Batches of scenes or clips to render: attributes, captions, and draws for everything that the captions leave open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rmd.core.randomness import generator

NONE = -1
"""Value of an attribute that a scene or clip does not have."""
GRAIN = (4, 16, 16)
"""Shape of the normal draws of a scene or clip, from which the random fields of its background are made."""


class Named(Protocol):
    """Attributes of one scene or clip, as its grammar defines them."""

    def to_tuple(self) -> tuple[int, ...]: ...


NamedT = TypeVar("NamedT", bound=Named)


@dataclass(frozen=True)
class Batch:
    """n scenes or clips: attributes (n, k) int64, captions, draws (n, d) in [0, 1), and normal grain (n, f, h, w)."""

    attributes: Tensor
    captions: list[str]
    uniform: Tensor
    grain: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def split(self, size: int) -> list[Batch]:
        """Return consecutive parts of `size` scenes or clips; the last one may be shorter."""
        parts = (slice(start, start + size) for start in range(0, len(self), size))
        return [Batch(self.attributes[s], self.captions[s], self.uniform[s], self.grain[s]) for s in parts]


def draw_batch(
    key: str,
    indices: Sequence[int],
    attributes: Callable[[int, torch.Generator], NamedT],
    caption: Callable[[NamedT, Tensor], str],
    *,
    seed: int,
    draws: int,
    grain: tuple[int, int, int] = GRAIN,
) -> Batch:
    """Draw a batch, in which entry i depends only on (seed, key, index i).

    Args:
        key: name of the kind of draw.
        indices: the entries' indices.
        attributes: returns the attributes of an index, which it may draw from the generator.
        caption: returns the caption of attributes; it may depend on the uniform draws.
        seed: seed of the batch.
        draws: number of uniform draws per entry.
        grain: shape of the normal draws per entry.
    """
    named, captions, uniform, normal = [], [], [], []
    for index in indices:
        g = generator(seed, key, int(index))
        named.append(attributes(int(index), g))
        uniform.append(torch.rand(draws, generator=g))
        captions.append(caption(named[-1], uniform[-1]))
        normal.append(torch.randn(grain, generator=g))
    return Batch(torch.tensor([each.to_tuple() for each in named]), captions, torch.stack(uniform), torch.stack(normal))
