"""Encoded prompts: `Cond`, what encodes them, and how they are handed to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
        """Concatenate along the batch; all parts must have the same names, and the same shapes but for the batch."""
        return Cond({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


class Encoder(Protocol):
    """Something that encodes prompts: a backbone, or a cache of prompts that were encoded earlier."""

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts; the batch of the result is their number."""
        ...

    def null(self, count: int) -> Cond:
        """Return what the teacher's unconditional branch is given, `count` times."""
        ...


def text_to(kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a network's keyword arguments with floating-point tensors cast to the network's precision.

    Text encoders may use another precision. Integer masks and nested arguments are left as they are.
    """
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in kwargs.items()
    }
