"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 40
"""Columns that a table can be read in; a terminal that claims fewer is not believed."""


def table_console(otherwise: int | None = None) -> Console:
    """Standard output as rich prints to it.

    Args:
        otherwise: columns of what is no terminal; by default rich's own choice.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if otherwise is not None and not console.is_terminal:
        return Console(file=sys.stdout, highlight=False, width=otherwise)
    return console if console.width >= NARROWEST else Console(file=sys.stdout, highlight=False, width=80)
