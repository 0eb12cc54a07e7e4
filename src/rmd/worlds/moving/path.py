"""The paths of moving objects: place, size and rotation in every frame, in canvas units (64 to a side)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS
from rmd.worlds.still.render import CANVAS

FRAMES = 9
"""Number of frames of a clip."""

TRAVEL = {"slowly": (10.0, 13.0), "fast": (23.0, 27.0)}
"""Range of the distance that an object moves over the clip, in canvas units."""
HOPS = {"slowly": 1, "fast": 2}
"""Number of hops of a bouncing object over the clip."""
HOP_HEIGHT = (11.0, 15.0)
"""Range of their height, in canvas units."""
RADIUS, GROWING = (13.0, 16.0), (9.5, 11.0)
"""Ranges of the radius: of objects that do not grow, and of growing ones at the start, in canvas units."""
OFF_CENTRE = 5.0
"""Largest offset of a path's middle from the canvas's, where the object still stays on the canvas."""
TURN = {"slowly": (0.9, 1.2), "fast": (2.3, 2.8)}
"""Range of an object's rotation over the clip, in radians, either way."""
GROWTH = {"slowly": (1.30, 1.42), "fast": (1.75, 1.95)}
"""Range of the last radius over the first."""
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class Path:
    """Paths of n objects over T frames: centre (n, T, 2) with y downwards, radius (n, T), angle (n, T) in radians."""

    centre: Tensor
    radius: Tensor
    angle: Tensor


def draw_path(attributes: Tensor, uniform: Tensor, *, frames: int = FRAMES) -> Path:
    """Draw the paths of clips; objects stay on the canvas, and upright unless they spin.

    Args:
        attributes: (n, 5), columns as `CLIP_ATTRIBUTES`.
        uniform: (n, 8) in [0, 1), for what the caption leaves open (place, size, exact speed, sense of rotation).
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
    for name, direction in DIRECTIONS.items():
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
    # Objects that do not spin stay upright: a tilt would be slow to learn and would say nothing about motion.
    angle = torch.where(spins, turned, torch.zeros(()))
    return Path(centre, radius, angle)
