"""The captions of the vistas: their attributes, the grammar that words them, and the held-out combinations.

A vista is one object at a place in the sky, or two objects in a relation, over a landscape at a time of the day.
`Attributes` is its canonical form (the object on the left, or the upper one, comes first), so a caption and a picture
can be compared without ambiguity. Everything that a caption names is coarse enough to be seen at half the resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from rmd.common.errors import RMDError
from rmd.core.randomness import generator
from rmd.worlds.batch import NONE
from rmd.worlds.wording import Arrangement, Wording

KINDS = ("balloon", "airship", "kite", "lantern", "planet", "parachute")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PATTERNS = ("plain", "striped", "spotted")
SIZES = ("small", "big")
LANDS = ("mountains", "dunes", "sea", "forest", "hills", "town")
HOURS = ("dawn", "noon", "sunset", "night")
FORMS = ("whole", "doubled", "cut")
"""A picture shows its single object in one of these forms. Every caption asks for it whole, and once."""

PLACE_WORDS = {"left": "on the left", "right": "on the right", "middle": "in the middle"}
RELATION_WORDS = {"beside": ("left of", "right of"), "above": ("above", "below")}
LAND_WORDS = {
    "mountains": "over mountains",
    "dunes": "over dunes",
    "sea": "over the sea",
    "forest": "over a forest",
    "hills": "over hills",
    "town": "over a town",
}
PAIR_SHARE = 0.4
WORDING = Wording(KINDS, COLOURS, PATTERNS, SIZES, PLACE_WORDS, RELATION_WORDS, PAIR_SHARE)
LAYOUTS = WORDING.layouts


@dataclass(frozen=True)
class Attributes:
    """Canonical attributes of a vista: indices into the tuples above, `NONE` where it has no such attribute.

    A single has no second object, and a pair no size.
    """

    layout: int
    land: int
    hour: int
    kind_a: int
    colour_a: int
    pattern_a: int
    size_a: int = NONE
    kind_b: int = NONE
    colour_b: int = NONE
    pattern_b: int = NONE
    form: int = 0

    @property
    def is_pair(self) -> bool:
        return self.kind_b != NONE

    def exchanged(self) -> Attributes:
        """Return the attributes of a pair whose objects have changed places."""
        first, second = (self.kind_a, self.colour_a, self.pattern_a), (self.kind_b, self.colour_b, self.pattern_b)
        return Attributes(self.layout, self.land, self.hour, *second, NONE, *first)

    def to_tuple(self) -> tuple[int, ...]:
        return tuple(int(getattr(self, name)) for name in ATTRIBUTE_NAMES)


ATTRIBUTE_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Attributes))
ATTRIBUTE_SIZES: dict[str, int] = {
    "layout": len(LAYOUTS),
    "land": len(LANDS),
    "hour": len(HOURS),
    "kind_a": len(KINDS),
    "colour_a": len(COLOURS),
    "pattern_a": len(PATTERNS),
    "size_a": len(SIZES),
    "kind_b": len(KINDS),
    "colour_b": len(COLOURS),
    "pattern_b": len(PATTERNS),
    "form": len(FORMS),
}


def draw_attributes(draws: torch.Generator, *, training: bool) -> Attributes:
    """Draw a vista's attributes uniformly; `training` redraws the held-out combinations."""
    land, hour = (int(torch.randint(len(names), (), generator=draws)) for names in (LANDS, HOURS))
    return _attributes(WORDING.draw(draws, training=training), land, hour)


def caption(attributes: Attributes, *, flipped: bool = False) -> str:
    """Return the caption of a vista. A pair has two equivalent captions; `flipped` names its second object first.

    >>> caption(Attributes(0, 0, 0, 0, 0, 1, 1))
    'a big red striped balloon on the left, over mountains at dawn'
    """
    where = f"{LAND_WORDS[LANDS[attributes.land]]} at {HOURS[attributes.hour]}"
    return f"{WORDING.words(_arrangement(attributes), flipped=flipped)}, {where}"


def parse(text: str) -> Attributes | None:
    """Return the attributes that a caption names, or None if the text does not follow the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    land_words, _, hour = tail.rpartition(" at ")
    land = next((i for i, name in enumerate(LANDS) if LAND_WORDS[name] == land_words), None)
    arrangement = WORDING.parse(head)
    if land is None or hour not in HOURS or arrangement is None:
        return None
    return _attributes(arrangement, land, HOURS.index(hour))


def attributes_of(text: str) -> Attributes:
    """Return the attributes that a caption names.

    Raises:
        RMDError: the text does not follow the grammar; the sentence gives examples.
    """
    attributes = parse(text)
    if attributes is None:
        raise RMDError(
            f"{text!r} is not a caption of the vistas: word it like 'a big red striped balloon on the left, over "
            "mountains at dawn' or 'a red plain kite above a blue spotted airship, over the sea at night'"
        )
    return attributes


def vista_captions(count: int, *, seed: int, training: bool) -> list[str]:
    """Return captions 0 to `count` - 1 of a seed; `training` leaves out the held-out combinations."""
    draws = (generator(seed, "prompt", index) for index in range(count))
    return [caption(draw_attributes(g, training=training), flipped=i % 2 == 1) for i, g in enumerate(draws)]


def _attributes(arrangement: Arrangement, land: int, hour: int) -> Attributes:
    second = (NONE, NONE, NONE) if arrangement.second is None else arrangement.second
    return Attributes(arrangement.layout, land, hour, *arrangement.first, arrangement.size, *second)


def _arrangement(attributes: Attributes) -> Arrangement:
    first = (attributes.kind_a, attributes.colour_a, attributes.pattern_a)
    second = (attributes.kind_b, attributes.colour_b, attributes.pattern_b) if attributes.is_pair else None
    return Arrangement(attributes.layout, first, attributes.size_a, second)
