"""Encoded prompts, and the picture size that a network is given with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """Encoded prompts: named tensors whose first dimension is the batch.

    A tensor named "mask" (B, tokens) is 1 where a token is read and 0 where it is padding.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Cond:
        """Apply a function to every tensor."""
        return Cond({name: change(tensor) for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> Cond:
        """Repeat a single sample `count` times along the batch, without copying it."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Cond:
        """Move all tensors to a device, and cast those with floating-point values to a dtype if one is given."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Concatenate along the batch; all parts must have the same names, and the same shapes except for the batch."""
        return Cond({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Conditioning:
    """The picture size that the network is given at a low-resolution stage, both in training and in inference.

    original: SDXL's `original_size`. target: SDXL's `target_size`; PixArt-alpha's resolution and aspect ratio.
    pos_rescale: spread the positions of the final size over a smaller stage, instead of cutting its positions out of
    the middle of the table. An experiment, for families with `rescales_positions` only.
    """

    original: Literal["final", "stage"] = "final"
    target: Literal["final", "stage"] = "stage"
    pos_rescale: bool = False


class Encoder(Protocol):
    """Something that encodes prompts: a backbone, or a cache of prompts that were encoded earlier."""

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts; the batch of the result is their number."""
        ...

    def null(self, count: int) -> Cond:
        """Return what the teacher's unconditional branch is given, `count` times."""
        ...
