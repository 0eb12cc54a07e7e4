"""Motion read from a track and compared with what the caption asks: kind, direction and speed, with exact thresholds.

Every kind of motion has one number for a whole clip: how far the object travelled, hopped, turned or grew. A clip moves
as asked when the number of the asked kind is the largest, each measured by what the kind's slow motion amounts to, and
is at least half of that; and when it has the asked direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.worlds.moving.grammar import MOTIONS, SPEEDS, SYMMETRY
from rmd.worlds.moving.judge import Track
from rmd.worlds.moving.path import GROWTH, HOP_HEIGHT, TRAVEL, TURN

KINDS = ("travel", "hop", "turn", "growth")
_KIND_OF = {"left": 0, "right": 0, "up": 0, "down": 0, "bounce": 1, "spin": 2, "grow": 3}
_DIRECTION = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
_STEADY = 0.8
"""Of a turning: how well the phases must fit one speed, 0 to 1; frames that turn at random are no turning."""
_TURNS = 121
_LARGEST_TURN = 1.6 * TURN["fast"][1]


def _middle(pair: tuple[float, float]) -> float:
    return (pair[0] + pair[1]) / 2


_LOG_GROWTH = {speed: (math.log(low), math.log(high)) for speed, (low, high) in GROWTH.items()}
_SLOW = (_middle(TRAVEL["slowly"]), _middle(HOP_HEIGHT), _middle(TURN["slowly"]), _middle(_LOG_GROWTH["slowly"]))
"""What each kind's slow motion amounts to."""
_BORDER = tuple(math.sqrt(r["slowly"][1] * r["fast"][0]) for r in (TRAVEL, TURN, _LOG_GROWTH))
"""Between slow and fast, of travel, turn and growth; hops are counted."""


@dataclass(frozen=True)
class Motion:
    """What n objects did over their clips.

    travel: (n, 2) along x and y (downwards), in canvas units. hop: (n,) height, in canvas units, and `hops`: (n,) how
    many. turn: (n,) radians, either way. growth: (n,) logarithm of the last radius over the first.
    """

    travel: Tensor
    hop: Tensor
    hops: Tensor
    turn: Tensor
    growth: Tensor


@dataclass(frozen=True)
class MotionJudgement:
    """Of n clips: `motion`, whether kind and direction are as asked; `speed`, whether the speed is too.

    amount: (n,) the asked kind of motion over what the asked speed amounts to; 1 is as much as asked, 0 stands still.
    """

    motion: Tensor
    speed: Tensor
    amount: Tensor


def read_motion(track: Track, shapes: Tensor) -> Motion:
    """Fit every kind of motion to the tracks of clips whose captions ask for the given shapes (n,)."""
    frames = track.radius.shape[1]
    time = torch.linspace(0, 1, frames)
    across = _fit(track.centre[..., 0], time)[0]
    fits = [_fit(track.centre[..., 1], time, -(math.pi * k * time).sin().abs()) for k in (1, 2)]
    residual = torch.stack([fit[2] for fit in fits], 1)
    best = residual.argmin(1, keepdim=True)
    down, hop = (torch.stack([fit[i] for fit in fits], 1).gather(1, best)[:, 0] for i in (0, 1))
    return Motion(
        torch.stack([across, down], 1),
        hop.clamp(min=0),
        best[:, 0] + 1,
        _turn(track.phase, time, torch.tensor(SYMMETRY)[shapes]),
        _fit(track.radius.clamp(min=0.1).log(), time)[0],
    )


def judge_motion(found: Motion, attributes: Tensor) -> MotionJudgement:
    """Compare motions with clips' attributes (n, 5), columns as `CLIP_ATTRIBUTES`."""
    asked, fast = attributes[:, 3], attributes[:, 4] == SPEEDS.index("fast")
    kind = torch.tensor([_KIND_OF[name] for name in MOTIONS])[asked]
    unit = torch.tensor([_DIRECTION.get(name, (0.0, 0.0)) for name in MOTIONS])[asked]
    along = (found.travel * unit).sum(1)
    aside = (found.travel - along[:, None] * unit).norm(dim=1)
    sizes = torch.stack([found.travel.norm(dim=1), found.hop, found.turn, found.growth], 1)
    relative = sizes / torch.tensor(_SLOW)
    own = relative.gather(1, kind[:, None])[:, 0]
    largest = relative.argmax(1) == kind
    way = (kind != 0) | ((along > 0) & (along > aside))
    motion = largest & way & (own >= 0.5)
    travel, turn, growth = _BORDER
    is_fast = torch.stack([along > travel, found.hops == 2, found.turn > turn, found.growth > growth], 1)
    speed = motion & (is_fast.gather(1, kind[:, None])[:, 0] == fast)
    return MotionJudgement(motion, speed, _amount(found, along.clamp(min=0), kind, fast))


def _amount(found: Motion, along: Tensor, kind: Tensor, fast: Tensor) -> Tensor:
    ranges = (TRAVEL, {"slowly": HOP_HEIGHT, "fast": HOP_HEIGHT}, TURN, _LOG_GROWTH)
    wanted = torch.tensor([[_middle(r["slowly"]), _middle(r["fast"])] for r in ranges])[kind, fast.long()]
    sizes = torch.stack([along, found.hop, found.turn, found.growth.clamp(min=0)], 1)
    return sizes.gather(1, kind[:, None])[:, 0] / wanted


def _fit(values: Tensor, time: Tensor, *shapes: Tensor) -> tuple[Tensor, ...]:
    """Least squares of (n, T) values by a constant, time, and other shapes (T,): their factors, and the residual."""
    basis = torch.stack([torch.ones_like(time), time, *shapes], 1).double()
    solution = torch.linalg.lstsq(basis, values.double().T).solution
    residual = (basis @ solution - values.double().T).square().mean(0)
    return (*solution[1:].float(), residual.float())


def _turn(phase: Tensor, time: Tensor, fold: Tensor) -> Tensor:
    """How far (n, T) phases turn steadily, over their symmetry `fold`; 0 for round shapes and unsteady phases."""
    tries = torch.linspace(-_LARGEST_TURN, _LARGEST_TURN, _TURNS)
    turned = fold[:, None, None] * tries[:, None] * time
    fit = torch.polar(torch.ones(()), phase[:, None] - turned).mean(2).abs()
    best = fit.max(1)
    steady = (best.values > _STEADY) & (fold > 0)
    return torch.where(steady, tries[best.indices].abs(), torch.zeros(()))
