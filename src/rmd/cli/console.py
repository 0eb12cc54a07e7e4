"""The console on which tables are printed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NARROWEST = 40
"""Smallest width, in columns, at which a table is readable; a terminal that reports less is ignored."""


def ruled_table(title: str, columns: Mapping[str, str]) -> Table:
    """Return an empty table without a frame; `columns` are headings and their justification, left or right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in columns.items():
        table.add_column(heading, justify="left" if justify == "left" else "right")
    return table


def table_console(otherwise: int | None = None) -> Console:
    """Return a rich console for standard output that does not treat brackets in names as markup.

    Args:
        otherwise: width in columns if standard output is not a terminal; None: rich chooses it.
    """
    from rich.console import Console

    plain: dict[str, Any] = {"file": sys.stdout, "highlight": False, "markup": False}
    console = Console(**plain)
    if otherwise is not None and not console.is_terminal:
        return Console(**plain, width=otherwise)
    return console if console.width >= NARROWEST else Console(**plain, width=80)
