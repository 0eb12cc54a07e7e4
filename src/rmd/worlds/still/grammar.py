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

SHAPES = ("ball", "box", "triangle", "cross", "star", "ring")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered", "ringed")
SIZES = ("small", "big")
LAYOUTS = ("left", "right", "top", "bottom", "middle", "beside", "above")
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


def held_out(shape: int, colour: int, texture: int) -> bool:
    """Return whether an object is kept out of training, as one combination in eleven is."""
    return (7 * shape + 3 * colour + 5 * texture) % 11 == 0


def has_held_out(attributes: Attributes) -> bool:
    """Return whether any object of the scene is a combination that training never shows."""
    a = held_out(attributes.shape_a, attributes.colour_a, attributes.texture_a)
    return a or (attributes.is_pair and held_out(attributes.shape_b, attributes.colour_b, attributes.texture_b))


def draw_attributes(draws: torch.Generator, *, training: bool) -> Attributes:
    """Draw a scene's attributes uniformly; `training` redraws the held-out combinations."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=draws))

    def draw_object() -> tuple[int, int, int]:
        while True:
            thing = (pick(len(SHAPES)), pick(len(COLOURS)), pick(len(TEXTURES)))
            if not (training and held_out(*thing)):
                return thing

    background = pick(len(BACKGROUNDS))
    pair = bool(torch.rand((), generator=draws) < PAIR_SHARE)
    shape, colour, texture = draw_object()
    if not pair:
        return Attributes(pick(5), background, shape, colour, texture, size_a=pick(len(SIZES)))
    second = draw_object()
    return Attributes(5 + pick(2), background, shape, colour, texture, NONE, *second)


def caption(attributes: Attributes, *, flipped: bool = False) -> str:
    """Return the caption of a scene. A pair has two equivalent captions; `flipped` names its second object first.

    >>> caption(Attributes(0, 0, 0, 0, 1, 1))
    'a big red striped ball on the left, on sand'
    """

    def words(colour: int, texture: int, shape: int) -> str:
        return f"{COLOURS[colour]} {TEXTURES[texture]} {SHAPES[shape]}"

    a = words(attributes.colour_a, attributes.texture_a, attributes.shape_a)
    background = BACKGROUND_WORDS[BACKGROUNDS[attributes.background]]
    layout = LAYOUTS[attributes.layout]
    if not attributes.is_pair:
        return f"a {SIZES[attributes.size_a]} {a} {PLACE_WORDS[layout]}, {background}"
    b = words(attributes.colour_b, attributes.texture_b, attributes.shape_b)
    forward, backward = RELATION_WORDS[layout]
    return f"a {b} {backward} a {a}, {background}" if flipped else f"a {a} {forward} a {b}, {background}"


def parse(text: str) -> Attributes | None:
    """Return the attributes that a caption names, or None if the text does not follow the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    background = next((i for i, b in enumerate(BACKGROUNDS) if BACKGROUND_WORDS[b] == tail), None)
    if background is None:
        return None
    for layout, (forward, backward) in RELATION_WORDS.items():
        for relation, swap in ((forward, False), (backward, True)):
            first, separator, second = head.partition(f" {relation} ")
            if separator:
                a, b = _parse_object(first), _parse_object(second)
                if a is None or b is None or a[0] != NONE or b[0] != NONE:
                    return None
                a, b = (b, a) if swap else (a, b)
                return Attributes(LAYOUTS.index(layout), background, *a[1:], NONE, *b[1:])
    for layout, place in PLACE_WORDS.items():
        if head.endswith(" " + place):
            a = _parse_object(head[: -len(place) - 1])
            if a is None or a[0] == NONE:
                return None
            return Attributes(LAYOUTS.index(layout), background, *a[1:], size_a=a[0])
    return None


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


def _parse_object(text: str) -> tuple[int, int, int, int] | None:
    """Return (size or NONE, shape, colour, texture) of the words "a [size] colour texture shape", or None."""
    words = text.split()
    if not words or words[0] != "a" or len(words) not in (4, 5):
        return None
    size, (colour, texture, shape) = (words[1] if len(words) == 5 else None), words[-3:]
    if colour not in COLOURS or texture not in TEXTURES or shape not in SHAPES or (size and size not in SIZES):
        return None
    return SIZES.index(size) if size else NONE, SHAPES.index(shape), COLOURS.index(colour), TEXTURES.index(texture)
