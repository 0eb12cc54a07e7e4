"""Tells real images from a student's by what the fake score sees in them (DMD2's adversarial part)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HEAD = "adversarial"
"""Name of the head in the fake score's network."""
WIDTH = 256


class Head(nn.Module):
    """Logits (B,) of features (B, n, width) or (B, width, h, w): means over places of a small perceptron's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, features: Tensor) -> Tensor:
        places = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        logits: Tensor = self.layers(places.float())
        return logits.mean((1, 2))


def new_head(width: int, *, seed: int, device: torch.device) -> Head:
    """A head whose weights are a function of the seed; the global generator is left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Head(width).to(device)


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer gives while the block runs; of several outputs the last, which is the picture's in every family."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[-1] if isinstance(output, tuple) else output)

    hook = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
