"""The packaged recipes as a list: what each is for, and the card that it fits, as its own file says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from rmd.common.errors import RMDError
from rmd.recipes.layers import PACKAGED, recipe_names
from rmd.recipes.schema import Recipe, load_recipe

_CARD = re.compile(r"^# Fits (?:(\d+) cards|one card) with (\d+) GB(?:, with (.+))?\.$", re.MULTILINE)
_NO_CARD = "# Needs no GPU."
_VARIANTS = ("-paper", "-authors")
"""Endings of the names of recipes that reproduce others' settings."""


@dataclass(frozen=True)
class Entry:
    """A packaged recipe in the list."""

    name: str
    purpose: str
    """The first sentence of the recipe's file."""
    cards: int
    """Number of cards that the recipe fits; 0 if it needs no GPU."""
    gb: int
    """Memory of each of these cards, in GB as makers count."""
    settings: tuple[str, ...]
    """Settings to change for these cards."""

    @property
    def card(self) -> str:
        """The cards in words: `24 GB`, `8 x 80 GB`, or `no GPU`."""
        return "no GPU" if not self.cards else f"{self.gb} GB" if self.cards == 1 else f"{self.cards} x {self.gb} GB"


@cache
def catalog() -> tuple[Entry, ...]:
    """Return the packaged recipes that can be run, by name.

    Raises:
        RMDError: a recipe's file does not say what it is for or which card it fits.
    """
    return tuple(_entry(name) for name in recipe_names())


def _entry(name: str) -> Entry:
    text = (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("#")]
    card = _CARD.search(text)
    if card is None and _NO_CARD not in lines:
        raise RMDError(f"{name}.yaml does not say which card it fits: add a line such as `# Fits one card with 24 GB.`")
    words = " ".join(line.removeprefix("# ") for line in lines)
    purpose = re.split(r"(?<=[a-z0-9)])(?<!App)[.:] (?=[A-Z`])", f"{words} ")[0].rstrip(". ")
    if card is None:
        return Entry(name, purpose, 0, 0, ())
    settings = tuple(card[3].split(" and ")) if card[3] else ()
    return Entry(name, purpose, int(card[1] or 1), int(card[2]), settings)


def closest_recipe(family: str, teacher: str, mode: str | None = None) -> Recipe | None:
    """Return the packaged recipe to begin with for a teacher; None if there is none of its family.

    One with the same teacher comes first, then one whose teacher is not packaged, and then the one with the shortest
    name; recipes that reproduce others' settings are left out.

    Args:
        mode: the value of `roles.mode`; None: any.
    """
    found = [
        (recipe.teacher != teacher, entry.cards == 0, len(entry.name), entry.name)
        for entry in catalog()
        if not entry.name.endswith(_VARIANTS)
        for recipe in [load_recipe(entry.name)]
        if (recipe.family, recipe.roles.mode) == (family, mode or recipe.roles.mode)
    ]
    return load_recipe(min(found)[-1]) if found else None
