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

KINDS = ("balloon", "airship", "kite", "lantern", "planet", "parachute")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PATTERNS = ("plain", "striped", "spotted")
SIZES = ("small", "big")
LAYOUTS = ("left", "right", "middle", "beside", "above")
LANDS = ("mountains", "dunes", "sea", "forest", "hills", "town")
HOURS = ("dawn", "noon", "sunset", "night")
FORMS = ("whole", "doubled", "cut")
"""What pictures show of a single object. Every caption asks for it whole, and once."""

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


def held_out(kind: int, colour: int, pattern: int) -> bool:
    """Return whether an object is kept out of training, as one combination in eleven is."""
    return (7 * kind + 3 * colour + 5 * pattern) % 11 == 0


def draw_attributes(draws: torch.Generator, *, training: bool) -> Attributes:
    """Draw a vista's attributes uniformly; `training` redraws the held-out combinations."""

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=draws))

    def draw_object() -> tuple[int, int, int]:
        while True:
            thing = (pick(len(KINDS)), pick(len(COLOURS)), pick(len(PATTERNS)))
            if not (training and held_out(*thing)):
                return thing

    land, hour = pick(len(LANDS)), pick(len(HOURS))
    pair = bool(torch.rand((), generator=draws) < PAIR_SHARE)
    first = draw_object()
    if not pair:
        return Attributes(pick(len(PLACE_WORDS)), land, hour, *first, size_a=pick(len(SIZES)))
    second = draw_object()
    return Attributes(len(PLACE_WORDS) + pick(2), land, hour, *first, NONE, *second)


def caption(attributes: Attributes, *, flipped: bool = False) -> str:
    """Return the caption of a vista. A pair has two equivalent captions; `flipped` names its second object first.

    >>> caption(Attributes(0, 0, 0, 0, 0, 1, 1))
    'a big red striped balloon on the left, over mountains at dawn'
    """

    def words(kind: int, colour: int, pattern: int) -> str:
        return f"{COLOURS[colour]} {PATTERNS[pattern]} {KINDS[kind]}"

    a = words(attributes.kind_a, attributes.colour_a, attributes.pattern_a)
    where = f"{LAND_WORDS[LANDS[attributes.land]]} at {HOURS[attributes.hour]}"
    layout = LAYOUTS[attributes.layout]
    if not attributes.is_pair:
        return f"a {SIZES[attributes.size_a]} {a} {PLACE_WORDS[layout]}, {where}"
    b = words(attributes.kind_b, attributes.colour_b, attributes.pattern_b)
    forward, backward = RELATION_WORDS[layout]
    return f"a {b} {backward} a {a}, {where}" if flipped else f"a {a} {forward} a {b}, {where}"


def parse(text: str) -> Attributes | None:
    """Return the attributes that a caption names, or None if the text does not follow the grammar."""
    head, _, tail = text.strip().lower().rpartition(", ")
    land_words, _, hour_word = tail.rpartition(" at ")
    land = next((i for i, name in enumerate(LANDS) if LAND_WORDS[name] == land_words), None)
    if land is None or hour_word not in HOURS:
        return None
    hour = HOURS.index(hour_word)
    for layout, (forward, backward) in RELATION_WORDS.items():
        for relation, swap in ((forward, False), (backward, True)):
            first, separator, second = head.partition(f" {relation} ")
            if separator:
                a, b = _parse_object(first), _parse_object(second)
                if a is None or b is None or a[0] != NONE or b[0] != NONE:
                    return None
                a, b = (b, a) if swap else (a, b)
                return Attributes(LAYOUTS.index(layout), land, hour, *a[1:], NONE, *b[1:])
    for layout, place in PLACE_WORDS.items():
        if head.endswith(" " + place):
            a = _parse_object(head[: -len(place) - 1])
            if a is None or a[0] == NONE:
                return None
            return Attributes(LAYOUTS.index(layout), land, hour, *a[1:], size_a=a[0])
    return None


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


def _parse_object(text: str) -> tuple[int, int, int, int] | None:
    """Return (size or NONE, kind, colour, pattern) of the words "a [size] colour pattern kind", or None."""
    words = text.split()
    if not words or words[0] != "a" or len(words) not in (4, 5):
        return None
    size, (colour, pattern, kind) = (words[1] if len(words) == 5 else None), words[-3:]
    if colour not in COLOURS or pattern not in PATTERNS or kind not in KINDS or (size and size not in SIZES):
        return None
    return SIZES.index(size) if size else NONE, KINDS.index(kind), COLOURS.index(colour), PATTERNS.index(pattern)
