"""The captions of the moving scenes: one object, how it moves and how fast, on a background."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from rmd.worlds.still.grammar import BACKGROUND_WORDS, BACKGROUNDS, COLOURS, SHAPES

MOTIONS = ("left", "right", "up", "down", "bounce", "spin", "grow")
SPEEDS = ("slowly", "fast")
MOTION_WORDS = {
    "left": "moves left", "right": "moves right", "up": "moves up", "down": "moves down", "bounce": "bounces",
    "spin": "spins", "grow": "grows",
}  # fmt: skip
SYMMETRY = (0, 4, 3, 4, 5, 0)
"""Of each shape: how many turned copies look alike; 0 for the round ones, whose turning cannot be seen."""


@dataclass(frozen=True)
class ClipAttributes:
    """What a caption says of a clip: indices into MOTIONS, SPEEDS and the tuples of `rmd.worlds.still.grammar`."""

    background: int
    shape: int
    colour: int
    motion: int
    speed: int

    def to_tuple(self) -> tuple[int, ...]:
        return tuple(int(getattr(self, name)) for name in CLIP_ATTRIBUTES)


CLIP_ATTRIBUTES: tuple[str, ...] = tuple(f.name for f in fields(ClipAttributes))
FRAME_ATTRIBUTES: dict[str, int] = {"background": len(BACKGROUNDS), "shape": len(SHAPES), "colour": len(COLOURS)}
"""Those that every single frame shows, and how many values they have."""


def can_move(shape: int, motion: int) -> bool:
    """Whether the motion of the shape can be seen: a ball that spins cannot."""
    return MOTIONS[motion] != "spin" or SYMMETRY[shape] > 0


def held_out(attributes: ClipAttributes) -> bool:
    """Whether the combination of object and motion is kept out of training: one in eleven."""
    return (7 * attributes.shape + 3 * attributes.colour + 5 * attributes.motion) % 11 == 0


def draw_clip_attributes(generator: torch.Generator, *, training: bool) -> ClipAttributes:
    """Draw uniformly what can be seen to move; with `training` the held-out combinations are drawn again."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    while True:
        found = ClipAttributes(
            pick(len(BACKGROUNDS)), pick(len(SHAPES)), pick(len(COLOURS)), pick(len(MOTIONS)), pick(len(SPEEDS))
        )
        if can_move(found.shape, found.motion) and not (training and held_out(found)):
            return found


def clip_caption(attributes: ClipAttributes) -> str:
    """Word a clip.

    >>> clip_caption(ClipAttributes(0, 4, 0, 1, 1))
    'a red star moves right fast, on sand'
    """
    thing = f"a {COLOURS[attributes.colour]} {SHAPES[attributes.shape]}"
    motion = f"{MOTION_WORDS[MOTIONS[attributes.motion]]} {SPEEDS[attributes.speed]}"
    return f"{thing} {motion}, {BACKGROUND_WORDS[BACKGROUNDS[attributes.background]]}"


def parse_clip(text: str) -> ClipAttributes | None:
    """The attributes that a caption of this grammar names, or None when the text is not of the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    words = head.split()
    background = [i for i, name in enumerate(BACKGROUNDS) if BACKGROUND_WORDS[name] == tail]
    if len(words) < 5 or words[0] != "a" or not background:
        return None
    motion = [i for i, name in enumerate(MOTIONS) if MOTION_WORDS[name].split() == words[3:-1]]
    if words[1] not in COLOURS or words[2] not in SHAPES or words[-1] not in SPEEDS or not motion:
        return None
    found = ClipAttributes(
        background[0], SHAPES.index(words[2]), COLOURS.index(words[1]), motion[0], SPEEDS.index(words[-1])
    )
    return found if can_move(found.shape, found.motion) else None


def clip_vocabulary() -> list[str]:
    """Every word and mark that a caption can hold, sorted."""
    words = {"a", ",", *COLOURS, *SHAPES, *SPEEDS}
    for phrase in (*MOTION_WORDS.values(), *BACKGROUND_WORDS.values()):
        words.update(phrase.split())
    return sorted(words)
