"""The captions of the moving scenes: one object, how it moves and how fast, on a background."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from rmd.common.errors import RMDError
from rmd.core.randomness import generator
from rmd.worlds.still.grammar import BACKGROUND_WORDS, BACKGROUNDS, COLOURS, SHAPES

MOTIONS = ("left", "right", "up", "down", "bounce", "spin", "grow")
SPEEDS = ("slowly", "fast")
MOTION_WORDS = {
    "left": "moves left", "right": "moves right", "up": "moves up", "down": "moves down", "bounce": "bounces",
    "spin": "spins", "grow": "grows",
}  # fmt: skip
SYMMETRY = (0, 4, 3, 4, 5, 0)
"""Order of each shape's rotational symmetry; 0 for round shapes, whose rotation cannot be seen."""


@dataclass(frozen=True)
class ClipAttributes:
    """Attributes of a clip: indices into MOTIONS, SPEEDS and the tuples of `rmd.worlds.still.grammar`."""

    background: int
    shape: int
    colour: int
    motion: int
    speed: int

    def to_tuple(self) -> tuple[int, ...]:
        return tuple(int(getattr(self, name)) for name in CLIP_ATTRIBUTES)


CLIP_ATTRIBUTES: tuple[str, ...] = tuple(f.name for f in fields(ClipAttributes))
FRAME_ATTRIBUTES: dict[str, int] = {"background": len(BACKGROUNDS), "shape": len(SHAPES), "colour": len(COLOURS)}
"""The attributes that every single frame shows, and their numbers of values."""


def can_move(shape: int, motion: int) -> bool:
    """Return whether the motion of the shape can be seen; that of a spinning ball cannot."""
    return MOTIONS[motion] != "spin" or SYMMETRY[shape] > 0


def held_out(attributes: ClipAttributes) -> bool:
    """Return whether the combination of object and motion is kept out of training, as one in eleven is."""
    return (7 * attributes.shape + 3 * attributes.colour + 5 * attributes.motion) % 11 == 0


def draw_clip_attributes(draws: torch.Generator, *, training: bool) -> ClipAttributes:
    """Draw visible motions uniformly; `training` redraws the held-out combinations."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=draws))

    while True:
        drawn = ClipAttributes(
            pick(len(BACKGROUNDS)), pick(len(SHAPES)), pick(len(COLOURS)), pick(len(MOTIONS)), pick(len(SPEEDS))
        )
        if can_move(drawn.shape, drawn.motion) and not (training and held_out(drawn)):
            return drawn


def clip_caption(attributes: ClipAttributes) -> str:
    """Return the caption of a clip.

    >>> clip_caption(ClipAttributes(0, 4, 0, 1, 1))
    'a red star moves right fast, on sand'
    """
    thing = f"a {COLOURS[attributes.colour]} {SHAPES[attributes.shape]}"
    motion = f"{MOTION_WORDS[MOTIONS[attributes.motion]]} {SPEEDS[attributes.speed]}"
    return f"{thing} {motion}, {BACKGROUND_WORDS[BACKGROUNDS[attributes.background]]}"


def parse_clip(text: str) -> ClipAttributes | None:
    """Return the attributes that a caption names, or None if the text does not follow the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    words = head.split()
    background = [i for i, name in enumerate(BACKGROUNDS) if BACKGROUND_WORDS[name] == tail]
    if len(words) < 5 or words[0] != "a" or not background:
        return None
    motion = [i for i, name in enumerate(MOTIONS) if MOTION_WORDS[name].split() == words[3:-1]]
    if words[1] not in COLOURS or words[2] not in SHAPES or words[-1] not in SPEEDS or not motion:
        return None
    named = ClipAttributes(
        background[0], SHAPES.index(words[2]), COLOURS.index(words[1]), motion[0], SPEEDS.index(words[-1])
    )
    return named if can_move(named.shape, named.motion) else None


def clip_attributes_of(text: str) -> ClipAttributes:
    """Return the attributes that a caption names.

    Raises:
        RMDError: the text does not follow the grammar; the sentence gives examples.
    """
    attributes = parse_clip(text)
    if attributes is None:
        raise RMDError(
            f"{text!r} is not a caption of the moving scenes: word it like 'a red star moves right fast, on sand' or "
            "'a blue box spins slowly, at night'"
        )
    return attributes


def clip_captions(count: int, *, seed: int, training: bool) -> list[str]:
    """Return captions 0 to `count` - 1 of a seed; `training` leaves out the held-out combinations."""
    draws = (generator(seed, "clip-prompt", index) for index in range(count))
    return [clip_caption(draw_clip_attributes(g, training=training)) for g in draws]
