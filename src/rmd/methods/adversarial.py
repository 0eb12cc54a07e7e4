"""The head that distinguishes real images from a student's samples by the fake score's features (DMD2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HEAD = "adversarial"
"""Name of the head in the fake score's network."""
WIDTH = 256
"""Width of the head's hidden layer."""


class Head(nn.Module):
    """A perceptron at every position of the features, whose logits are averaged.

    It maps features (B, n, width) of transformers, or (B, width, h, w) of UNets, to one logit per sample (B,).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, features: Tensor) -> Tensor:
        positions = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        logits: Tensor = self.layers(positions.float())
        return logits.mean((1, 2))


def new_head(width: int, *, seed: int, device: torch.device) -> Head:
    """Return a head whose weights depend on the seed only; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Head(width).to(device)


@contextmanager
def captured_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which the layer's outputs are added while the block runs.

    Of several outputs the last one is kept: in every family it belongs to the image.
    """
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[-1] if isinstance(output, tuple) else output)

    hook = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()
