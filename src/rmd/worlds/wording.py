"""The part of a caption that the worlds of still pictures share: one object at a place, or two objects in a relation.

An object is a kind, a colour and a pattern. Each world has its own words for them, and adds where the objects are seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rmd.worlds.batch import NONE

Thing = tuple[int, int, int]
"""The kind, colour and pattern of an object, as indices into a world's words."""


@dataclass(frozen=True)
class Arrangement:
    """One object of a size at a place, or two objects in a relation.

    Attributes:
        layout: index into `Wording.layouts`.
        first: the object, or the one that stands on the left or above.
        size: index into `Wording.sizes`; `NONE` for a pair.
        second: the other object of a pair; None for a single.
    """

    layout: int
    first: Thing
    size: int = NONE
    second: Thing | None = None


@dataclass(frozen=True)
class Wording:
    """A world's words for objects, sizes, places and relations.

    Attributes:
        kinds, colours, patterns, sizes: one word for each value.
        places: the words for each place of a single object, such as "on the left".
        relations: the words for each relation of a pair, read from its first object and from its second one.
        pair_share: the share of pairs among scenes.
    """

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    patterns: tuple[str, ...]
    sizes: tuple[str, ...]
    places: Mapping[str, str]
    relations: Mapping[str, tuple[str, str]]
    pair_share: float

    @property
    def layouts(self) -> tuple[str, ...]:
        """Names of the places, and then of the relations."""
        return (*self.places, *self.relations)

    def draw(self, draws: torch.Generator, *, training: bool) -> Arrangement:
        """Draw an arrangement uniformly; `training` redraws the held-out objects."""

        def pick(n: int) -> int:
            return int(torch.randint(n, (), generator=draws))

        def thing() -> Thing:
            while True:
                drawn = (pick(len(self.kinds)), pick(len(self.colours)), pick(len(self.patterns)))
                if not (training and held_out(*drawn)):
                    return drawn

        pair = bool(torch.rand((), generator=draws) < self.pair_share)
        first = thing()
        if not pair:
            return Arrangement(pick(len(self.places)), first, size=pick(len(self.sizes)))
        second = thing()
        return Arrangement(len(self.places) + pick(len(self.relations)), first, second=second)

    def words(self, arrangement: Arrangement, *, flipped: bool) -> str:
        """Return the words for an arrangement; `flipped` names the second object of a pair first."""
        layout, a = self.layouts[arrangement.layout], self._thing(arrangement.first)
        if arrangement.second is None:
            return f"a {self.sizes[arrangement.size]} {a} {self.places[layout]}"
        b = self._thing(arrangement.second)
        forward, backward = self.relations[layout]
        return f"a {b} {backward} a {a}" if flipped else f"a {a} {forward} a {b}"

    def parse(self, text: str) -> Arrangement | None:
        """Return the arrangement that lower-case words describe, or None if they do not follow the grammar."""
        for layout, (forward, backward) in self.relations.items():
            for relation, swap in ((forward, False), (backward, True)):
                left, separator, right = text.partition(f" {relation} ")
                if separator:
                    a, b = self._parse_thing(left), self._parse_thing(right)
                    if a is None or b is None or a[0] != NONE or b[0] != NONE:
                        return None
                    a, b = (b, a) if swap else (a, b)
                    return Arrangement(self.layouts.index(layout), a[1], second=b[1])
        for layout, place in self.places.items():
            if text.endswith(" " + place):
                a = self._parse_thing(text[: -len(place) - 1])
                if a is None or a[0] == NONE:
                    return None
                return Arrangement(self.layouts.index(layout), a[1], size=a[0])
        return None

    def _thing(self, thing: Thing) -> str:
        kind, colour, pattern = thing
        return f"{self.colours[colour]} {self.patterns[pattern]} {self.kinds[kind]}"

    def _parse_thing(self, text: str) -> tuple[int, Thing] | None:
        """Return the size, or `NONE`, and the object of the words "a [size] colour pattern kind"; None for others."""
        words = text.split()
        if not words or words[0] != "a" or len(words) not in (4, 5):
            return None
        size, (colour, pattern, kind) = (words[1] if len(words) == 5 else None), words[-3:]
        known = colour in self.colours and pattern in self.patterns and kind in self.kinds
        if not known or (size and size not in self.sizes):
            return None
        thing = (self.kinds.index(kind), self.colours.index(colour), self.patterns.index(pattern))
        return self.sizes.index(size) if size else NONE, thing


def held_out(kind: int, colour: int, pattern: int) -> bool:
    """Return whether an object is kept out of training, as one combination in eleven is."""
    return (7 * kind + 3 * colour + 5 * pattern) % 11 == 0
