"""The paths of moving objects: where one is, how large and how far turned, frame by frame; in canvas units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.scenes.moving.grammar import MOTIONS, SPEEDS

FRAMES = 9
"""Of a clip."""
FPS = 8
"""At which clips are played."""

TRAVEL = {"slowly": (10.0, 13.0), "fast": (23.0, 27.0)}
"""How far an object moves over the clip, in canvas units (64 to a side)."""
HOPS = {"slowly": 1, "fast": 2}
"""Of a bouncing object over the clip."""
HOP_HEIGHT = (11.0, 15.0)
TURN = {"slowly": (0.9, 1.2), "fast": (2.3, 2.8)}
"""How far an object turns over the clip, in radians, either way."""
GROWTH = {"slowly": (1.30, 1.42), "fast": (1.75, 1.95)}
"""Radius at the end over that at the start."""
_DIRECTION = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class Path:
    """n objects over T frames: centre (n, T, 2) as (x, y) with y downwards, radius (n, T), angle (n, T) in radians."""

    centre: Tensor
    radius: Tensor
    angle: Tensor


def draw_path(attributes: Tensor, uniform: Tensor, *, frames: int = FRAMES) -> Path:
    """The paths of clips.

    Args:
        attributes: (n, 5), columns as `CLIP_ATTRIBUTES`.
        uniform: (n, 8) in [0, 1): what the caption leaves open (place, size, exact speed, way of turning).
    """
    n = len(attributes)
    motion, fast = attributes[:, 3], attributes[:, 4] == SPEEDS.index("fast")
    time = torch.linspace(0, 1, frames)
    part = uniform[:, 0]

    def amount(ranges: dict[str, tuple[float, float]]) -> Tensor:
        (low, high), (fast_low, fast_high) = ranges["slowly"], ranges["fast"]
        return torch.where(fast, fast_low + (fast_high - fast_low) * part, low + (high - low) * part)

    def is_(name: str) -> Tensor:
        return (motion == MOTIONS.index(name))[:, None]

    grows, spins, bounces = is_("grow"), is_("spin"), is_("bounce")
    unit = torch.zeros(n, 2)
    for name, direction in _DIRECTION.items():
        unit[motion == MOTIONS.index(name)] = torch.tensor(direction)
    travel = unit[:, None] * amount(TRAVEL)[:, None, None] * (time - 0.5)[None, :, None]
    height = HOP_HEIGHT[0] + (HOP_HEIGHT[1] - HOP_HEIGHT[0]) * part
    hops = torch.where(fast, float(HOPS["fast"]), float(HOPS["slowly"]))
    hop = height[:, None] * (torch.sin(math.pi * hops[:, None] * time).abs() - 0.5)
    jitter = 5 * (2 * uniform[:, 1:3] - 1)
    centre = 32 + jitter[:, None] + travel
    centre[..., 1] -= torch.where(bounces, hop, torch.zeros(()))
    start = torch.where(grows[:, 0], 7.5 + 1.5 * uniform[:, 3], 9.5 + 3.0 * uniform[:, 3])
    radius = start[:, None] * torch.where(grows, amount(GROWTH)[:, None] ** time, torch.ones(()))
    way = torch.where(uniform[:, 4] < 0.5, -1.0, 1.0)
    first = 0.7 * (uniform[:, 5] - 0.5)
    turned = (way * amount(TURN))[:, None] * time
    angle = first[:, None] + torch.where(spins, turned, torch.zeros(()))
    return Path(centre, radius, angle)
