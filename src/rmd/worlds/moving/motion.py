"""Measures motion from a track and compares its kind, direction and speed with the caption, with exact thresholds.

Every kind of motion has one number per clip: how far the object travelled, hopped, turned or grew. Each is divided by
the amount of that kind's slow motion. A clip moves as requested if the number of the requested kind is the largest and
at least 0.5, and if the direction is the requested one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS, SYMMETRY
from rmd.worlds.moving.judge import Track
from rmd.worlds.moving.path import DIRECTIONS, GROWTH, HOP_HEIGHT, TRAVEL, TURN

_KIND_OF = {"left": 0, "right": 0, "up": 0, "down": 0, "bounce": 1, "spin": 2, "grow": 3}
_STEADY = 0.8
"""Coherence (0 to 1) of the phases with a constant angular speed from which a clip counts as turning."""
_TURNS = 121
_LARGEST_TURN = 1.6 * TURN["fast"][1]


def _middle(pair: tuple[float, float]) -> float:
    return (pair[0] + pair[1]) / 2


_LOG_GROWTH = {speed: (math.log(low), math.log(high)) for speed, (low, high) in GROWTH.items()}
_SLOW = (_middle(TRAVEL["slowly"]), _middle(HOP_HEIGHT), _middle(TURN["slowly"]), _middle(_LOG_GROWTH["slowly"]))
"""Amount of each kind's slow motion."""
_BORDER = tuple(math.sqrt(r["slowly"][1] * r["fast"][0]) for r in (TRAVEL, TURN, _LOG_GROWTH))
"""Thresholds between slow and fast for travel, turn and growth; hops are counted instead."""


@dataclass(frozen=True)
class Motion:
    """Motion of n objects over their clips.

    Attributes:
        travel: (n, 2), along x and y (downwards) in canvas units.
        hop: (n,), height of the hops in canvas units.
        hops: (n,), number of hops.
        turn: (n,), rotation in radians, either way.
        growth: (n,), logarithm of the last radius over the first.
    """

    travel: Tensor
    hop: Tensor
    hops: Tensor
    turn: Tensor
    growth: Tensor


@dataclass(frozen=True)
class MotionJudgement:
    """Judgement of n clips.

    Attributes:
        motion: (n,) bool, whether kind and direction are as requested.
        speed: (n,) bool, whether the speed is too.
        amount: (n,), amount of the requested kind of motion over the requested amount; 0 stands still.
    """

    motion: Tensor
    speed: Tensor
    amount: Tensor


def read_motion(track: Track, shapes: Tensor) -> Motion:
    """Fit every kind of motion to the tracks of clips whose captions name the given shapes (n,)."""
    frames = track.radius.shape[1]
    time = torch.linspace(0, 1, frames)
    across = _fit(track.centre[..., 0], time)[0]
    hops = [_fit(track.centre[..., 1], time, -(math.pi * k * time).sin().abs()) for k in (1, 2)]
    residual = torch.stack([solution[2] for solution in hops], 1)
    best = residual.argmin(1, keepdim=True)
    down, hop = (torch.stack([solution[i] for solution in hops], 1).gather(1, best)[:, 0] for i in (0, 1))
    return Motion(
        torch.stack([across, down], 1),
        hop.clamp(min=0),
        best[:, 0] + 1,
        _turn(track.phase, time, torch.tensor(SYMMETRY)[shapes]),
        _fit(track.radius.clamp(min=0.1).log(), time)[0],
    )


def judge_motion(moved: Motion, attributes: Tensor) -> MotionJudgement:
    """Compare motions with the attributes (n, 5) of the captions, columns as `CLIP_ATTRIBUTES`."""
    asked, fast = attributes[:, 3], attributes[:, 4] == SPEEDS.index("fast")
    kind = torch.tensor([_KIND_OF[name] for name in MOTIONS])[asked]
    unit = torch.tensor([DIRECTIONS.get(name, (0.0, 0.0)) for name in MOTIONS])[asked]
    along = (moved.travel * unit).sum(1)
    aside = (moved.travel - along[:, None] * unit).norm(dim=1)
    sizes = torch.stack([moved.travel.norm(dim=1), moved.hop, moved.turn, moved.growth], 1)
    relative = sizes / torch.tensor(_SLOW)
    own = relative.gather(1, kind[:, None])[:, 0]
    largest = relative.argmax(1) == kind
    way = (kind != 0) | ((along > 0) & (along > aside))
    motion = largest & way & (own >= 0.5)
    travel, turn, growth = _BORDER
    is_fast = torch.stack([along > travel, moved.hops == 2, moved.turn > turn, moved.growth > growth], 1)
    speed = motion & (is_fast.gather(1, kind[:, None])[:, 0] == fast)
    return MotionJudgement(motion, speed, _amount(moved, along.clamp(min=0), kind, fast))


def _amount(moved: Motion, along: Tensor, kind: Tensor, fast: Tensor) -> Tensor:
    ranges = (TRAVEL, {"slowly": HOP_HEIGHT, "fast": HOP_HEIGHT}, TURN, _LOG_GROWTH)
    wanted = torch.tensor([[_middle(r["slowly"]), _middle(r["fast"])] for r in ranges])[kind, fast.long()]
    sizes = torch.stack([along, moved.hop, moved.turn, moved.growth.clamp(min=0)], 1)
    return sizes.gather(1, kind[:, None])[:, 0] / wanted


def _fit(values: Tensor, time: Tensor, *shapes: Tensor) -> tuple[Tensor, ...]:
    """Fit (n, T) values by a constant, time and further shapes (T,), by least squares.

    Returns the factors of all but the constant, and the mean squared residual, each (n,).
    """
    basis = torch.stack([torch.ones_like(time), time, *shapes], 1).double()
    solution = torch.linalg.lstsq(basis, values.double().T).solution
    residual = (basis @ solution - values.double().T).square().mean(0)
    return (*solution[1:].float(), residual.float())


def _turn(phase: Tensor, time: Tensor, fold: Tensor) -> Tensor:
    """Return how far (n, T) phases turn at a constant speed, divided by the symmetry; 0 if round or unsteady."""
    tries = torch.linspace(-_LARGEST_TURN, _LARGEST_TURN, _TURNS)
    turned = fold[:, None, None] * tries[:, None] * time
    coherence = torch.polar(torch.ones(()), phase[:, None] - turned).mean(2).abs()
    best = coherence.max(1)
    steady = (best.values > _STEADY) & (fold > 0)
    return torch.where(steady, tries[best.indices].abs(), torch.zeros(()))
