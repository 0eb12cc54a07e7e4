"""The measurements on a GPU at full size: seconds and memory of iterations with random weights.

docs/runs.md shows these rows; the estimates of memory are compared with them, and times on other cards computed from
them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rmd.bench.cards import CARDS, Card
from rmd.common.files import read_model
from rmd.common.typed import Strict
from rmd.recipes.schema import Recipe, load_recipe


class Row(Strict):
    """Iterations that were measured with `rmd bench train RECIPE --untrained`."""

    recipe: str
    settings: Annotated[tuple[str, ...], Field(strict=False)]
    """Settings that were changed, besides the batch size."""
    step: int | None
    """The step that was trained; None: the mean of all steps as they are drawn."""
    seconds: float
    peak_gb: float
    """Largest memory of torch's tensors, in 10^9 bytes."""


class Measured(Strict):
    """All rows, which were measured on one kind of GPU with one sample at once."""

    gpu: str
    batch_size: int
    rows: Annotated[tuple[Row, ...], Field(strict=False)]

    @property
    def card(self) -> Card:
        """The card on which the rows were measured."""
        return next(card for card in CARDS if card.name == self.gpu)

    def recipe_of(self, row: Row) -> Recipe:
        """Return the recipe of a row, with its settings and batch size."""
        return load_recipe(row.recipe, [*row.settings, f"train.batch_size={self.batch_size}"])


@cache
def measured() -> Measured:
    """Return what has been measured."""
    return read_model(Path(__file__).with_name("measured.json"), Measured)
