"""The paths of moving objects: where one is, how large and how far turned, frame by frame; in canvas units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS
from rmd.worlds.still.render import CANVAS

FRAMES = 9
"""Of a clip."""
FPS = 8
"""At which clips are played."""

TRAVEL = {"slowly": (10.0, 13.0), "fast": (23.0, 27.0)}
"""How far an object moves over the clip, in canvas units (64 to a side)."""
HOPS = {"slowly": 1, "fast": 2}
"""Of a bouncing object over the clip."""
HOP_HEIGHT = (11.0, 15.0)
RADIUS, GROWING = (13.0, 16.0), (9.5, 11.0)
"""Of objects that stay as large as they are, and of growing ones at the start, in canvas units."""
OFF_CENTRE = 5.0
"""How far the middle of a path may be from the canvas's, either way, where the object so stays on it."""
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
    """The paths of clips: an object stays on the canvas, and upright unless it spins.

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
    travel = unit * amount(TRAVEL)[:, None]
    height = HOP_HEIGHT[0] + (HOP_HEIGHT[1] - HOP_HEIGHT[0]) * part
    hops = torch.where(fast, float(HOPS["fast"]), float(HOPS["slowly"]))
    hop = height[:, None] * (torch.sin(math.pi * hops[:, None] * time).abs() - 0.5)
    moved = travel[:, None] * (time - 0.5)[None, :, None]
    moved[..., 1] -= torch.where(bounces, hop, torch.zeros(()))
    low, high = torch.where(grows[:, 0, None], torch.tensor(GROWING), torch.tensor(RADIUS)).unbind(1)
    start = low + (high - low) * uniform[:, 3]
    growth = torch.where(grows[:, 0], amount(GROWTH), torch.ones(()))
    radius = start[:, None] * growth[:, None] ** time
    reach = travel.abs() / 2 + (start * growth)[:, None]
    reach[:, 1] += torch.where(bounces[:, 0], height / 2, torch.zeros(()))
    room = CANVAS / 2 - reach
    centre = CANVAS / 2 + moved + ((2 * uniform[:, 1:3] - 1) * room.clamp(0, OFF_CENTRE))[:, None]
    way = torch.where(uniform[:, 4] < 0.5, -1.0, 1.0)
    turned = (way * amount(TURN))[:, None] * time
    # upright but for what spins: how much an object is tilted is slow to learn and shows nothing of the motion
    angle = torch.where(spins, turned, torch.zeros(()))
    return Path(centre, radius, angle)
