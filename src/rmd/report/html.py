"""Renders HTML pages from the templates beside this file; every value inserted into them is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
"""The folder of the reports' templates."""


def environment(*folders: Path) -> Environment:
    """Return an environment for the templates of the given folders, which may import those of the reports."""
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_TEMPLATES = environment()


@dataclass(frozen=True)
class Cell:
    """A cell of a table: plain text, which the template escapes."""

    text: str
    small: str = ""
    """Text in small print below it."""
    soft: bool = False
    """True prints the cell in grey."""


@dataclass(frozen=True)
class TableRow:
    """A row of a table; its first cell is the heading."""

    cells: Sequence[Cell]
    marked: bool = False
    """True highlights the row, like the student's."""


@dataclass(frozen=True)
class HtmlTable:
    """A table as the macro `table` of `macros.html.j2` draws it."""

    heads: Sequence[Cell]
    rows: Sequence[TableRow]


def cells(*texts: str) -> list[Cell]:
    """Return plain cells with the given texts."""
    return [Cell(text) for text in texts]


def render(template: str, **values: object) -> str:
    """Render a page from a file in `templates/`; the values may be any text, since all of it is escaped."""
    return _TEMPLATES.get_template(template).render(values)


def image_data(kind: str, content: bytes) -> str:
    """Return an image file as a data URL; `kind` is png, webp or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
