"""The captions of the scenes: their attributes, the grammar that words them, and the held-out combinations.

A scene is one object at a place, or two objects in a relation, on a background. `Attributes` is its canonical form
(the object on the left, or at the top, comes first), so a caption and a picture can be compared without ambiguity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from rmd.common.errors import RMDError
from rmd.core.randomness import generator
from rmd.worlds.batch import NONE
from rmd.worlds.wording import Arrangement, Wording, held_out

SHAPES = ("ball", "box", "triangle", "cross", "star", "ring")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered", "ringed")
SIZES = ("small", "big")
BACKGROUNDS = ("sand", "grass", "night", "sunset", "wood", "sea")

PLACE_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
BACKGROUND_WORDS = {
    "sand": "on sand",
    "grass": "on grass",
    "night": "at night",
    "sunset": "at sunset",
    "wood": "on wood",
    "sea": "by the sea",
}
RELATION_WORDS = {"beside": ("left of", "right of"), "above": ("above", "below")}
PAIR_SHARE = 0.3
WORDING = Wording(SHAPES, COLOURS, TEXTURES, SIZES, PLACE_WORDS, RELATION_WORDS, PAIR_SHARE)
LAYOUTS = WORDING.layouts


@dataclass(frozen=True)
class Attributes:
    """Canonical attributes of a scene: indices into the tuples above, `NONE` where the scene has no such attribute.

    A single has no second object, and a pair no size.
    """

    layout: int
    background: int
    shape_a: int
    colour_a: int
    texture_a: int
    size_a: int = NONE
    shape_b: int = NONE
    colour_b: int = NONE
    texture_b: int = NONE

    @property
    def is_pair(self) -> bool:
        return self.shape_b != NONE

    def to_tuple(self) -> tuple[int, ...]:
        return tuple(int(getattr(self, name)) for name in ATTRIBUTE_NAMES)


ATTRIBUTE_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Attributes))
ATTRIBUTE_SIZES: dict[str, int] = {
    "layout": len(LAYOUTS),
    "background": len(BACKGROUNDS),
    "shape_a": len(SHAPES),
    "colour_a": len(COLOURS),
    "texture_a": len(TEXTURES),
    "size_a": len(SIZES),
    "shape_b": len(SHAPES),
    "colour_b": len(COLOURS),
    "texture_b": len(TEXTURES),
}


def has_held_out(attributes: Attributes) -> bool:
    """Return whether any object of the scene is a combination that training never shows."""
    a = held_out(attributes.shape_a, attributes.colour_a, attributes.texture_a)
    return a or (attributes.is_pair and held_out(attributes.shape_b, attributes.colour_b, attributes.texture_b))


def draw_attributes(draws: torch.Generator, *, training: bool) -> Attributes:
    """Draw a scene's attributes uniformly; `training` redraws the held-out combinations."""
    background = int(torch.randint(len(BACKGROUNDS), (), generator=draws))
    return _attributes(WORDING.draw(draws, training=training), background)


def caption(attributes: Attributes, *, flipped: bool = False) -> str:
    """Return the caption of a scene. A pair has two equivalent captions; `flipped` names its second object first.

    >>> caption(Attributes(0, 0, 0, 0, 1, 1))
    'a big red striped ball on the left, on sand'
    """
    background = BACKGROUND_WORDS[BACKGROUNDS[attributes.background]]
    return f"{WORDING.words(_arrangement(attributes), flipped=flipped)}, {background}"


def parse(text: str) -> Attributes | None:
    """Return the attributes that a caption names, or None if the text does not follow the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    background = next((i for i, b in enumerate(BACKGROUNDS) if BACKGROUND_WORDS[b] == tail), None)
    arrangement = WORDING.parse(head)
    return None if background is None or arrangement is None else _attributes(arrangement, background)


def attributes_of(text: str) -> Attributes:
    """Return the attributes that a caption names.

    Raises:
        RMDError: the text does not follow the grammar; the sentence gives examples.
    """
    attributes = parse(text)
    if attributes is None:
        raise RMDError(
            f"{text!r} is not a caption of the scenes: word it like 'a big red striped ball on the left, on sand' or "
            "'a red plain box above a blue dotted star, at night'"
        )
    return attributes


def scene_captions(count: int, *, seed: int, training: bool) -> list[str]:
    """Return captions 0 to `count` - 1 of a seed; `training` leaves out the held-out combinations."""
    draws = (generator(seed, "prompt", index) for index in range(count))
    return [caption(draw_attributes(g, training=training), flipped=i % 2 == 1) for i, g in enumerate(draws)]


def _attributes(arrangement: Arrangement, background: int) -> Attributes:
    second = (NONE, NONE, NONE) if arrangement.second is None else arrangement.second
    return Attributes(arrangement.layout, background, *arrangement.first, arrangement.size, *second)


def _arrangement(attributes: Attributes) -> Arrangement:
    first = (attributes.shape_a, attributes.colour_a, attributes.texture_a)
    second = (attributes.shape_b, attributes.colour_b, attributes.texture_b) if attributes.is_pair else None
    return Arrangement(attributes.layout, first, attributes.size_a, second)
