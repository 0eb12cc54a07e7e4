"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 40
"""Columns that a table can be read in; a terminal that claims fewer is not believed."""


def table_console(otherwise: int | None = None) -> Console:
    """Standard output as rich prints to it; brackets in a name are text, not markup.

    Args:
        otherwise: columns of what is no terminal; by default rich's own choice.
    """
    from rich.console import Console

    plain: dict[str, Any] = {"file": sys.stdout, "highlight": False, "markup": False}
    console = Console(**plain)
    if otherwise is not None and not console.is_terminal:
        return Console(**plain, width=otherwise)
    return console if console.width >= NARROWEST else Console(**plain, width=80)
