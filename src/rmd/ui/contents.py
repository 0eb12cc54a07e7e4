"""The contents of the page, and where the server finds what the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rmd.ui.comparing import Comparisons
from rmd.ui.models import Models
from rmd.ui.shelf import Shelf
from rmd.ui.watching import RunWatch

PAGES, ANSWERS = "/pages", "/answers"
"""Addresses of pages of results, and of the files of comparisons, begin with these."""


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows.

    Attributes:
        models: the students and their teacher.
        comparisons: the blind comparisons.
        run: the run that is watched; None if there is none.
        pages: pages of results by name.
        shelf: keeps what was generated.
    """

    models: Models
    comparisons: Comparisons
    run: RunWatch | None = None
    pages: Mapping[str, Path] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf)

    def page_address(self, name: str) -> str:
        """Return the address of a page of results."""
        return f"{PAGES}/{list(self.pages).index(name)}"
