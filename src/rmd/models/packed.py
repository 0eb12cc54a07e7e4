"""Families whose networks take latents in squares of 2 x 2, each square as one token with four times the channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rmd.models.base import Architecture, Backbone

PIXELS = 4
"""Latent pixels of a token."""


def pack(latents: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as tokens (B, h w / 4, 4 C), each a square of 2 x 2, channel by channel."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return tokens as latents of a shape (B, C, h, w), the inverse of `pack`."""
    _, channels, height, width = shape
    squares = tokens.view(-1, height // 2, width // 2, channels, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def places(latents: Tensor) -> Tensor:
    """Return the positions (h w / 4, 3) of the tokens of latents: 0, the row and the column."""
    zero, *sides = (torch.arange(count, device=latents.device) for count in (1, *(s // 2 for s in latents.shape[-2:])))
    return torch.cartesian_prod(zero, *sides)


class PackedBackbone(Backbone):
    """A family of pictures with packed latents, which are (B, C, h, w) everywhere but in the network."""

    @classmethod
    def small_vae(cls, architecture: Architecture) -> nn.Module:
        config = {**architecture.config, "in_channels": architecture.config["in_channels"] // PIXELS}
        return super().small_vae(replace(architecture, config=config))

    @property
    def size_multiple(self) -> int:
        return int(self.pipe.vae_scale_factor) * 2

    def latent_shape(self, batch: int, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        _, channels, *sides = super().latent_shape(batch, height, width)
        return (batch, channels // PIXELS, *sides)

    def to_official(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def from_official(self, latents: Tensor, height: int, width: int) -> Tensor:
        return unpack(latents, self.latent_shape(len(latents), height, width))
