"""The pages of results that can be opened: those of `rmd compare`, `rmd eval table --out`, `rmd demo` and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.common.files import read_errors, user_path

COMPARISON = "compare.html"
"""The page that `rmd compare` writes into its folder."""
MAX_PAGE = 256 * 2**20
"""Largest page in bytes; a page holds its pictures."""
POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
"""The content security policy of a page: no scripts, no forms, and nothing that is loaded from elsewhere."""


def find_pages(places: Sequence[str]) -> dict[str, Path]:
    """Return the pages of folders and files by the names that the page shows.

    A folder of a comparison that is not finished need not have its page yet.

    Args:
        places: folders of `rmd compare`, or HTML files.

    Raises:
        RMDError: a place does not exist, or a file is no page.
    """
    found: dict[str, Path] = {}
    for place in places:
        path = user_path(place)
        if path.is_dir():
            path = path / COMPARISON
        elif path.suffix.lower() != ".html" or not path.is_file():
            raise RMDError(
                f"{place} is neither a folder nor a page: give the folder of rmd compare, or an .html file that "
                "rmd eval table --out wrote"
            )
        found[str(path)] = path
    return found


def read_page(path: Path) -> bytes:
    """Return a page.

    Raises:
        RMDError: it does not exist (yet), cannot be read, or is too large.
    """
    if path.name == COMPARISON and not path.exists():
        raise RMDError(f"{path.parent} has no {COMPARISON} yet: rmd compare writes it with its first table")
    with read_errors(path):
        if path.stat().st_size > MAX_PAGE:
            raise RMDError(f"{path} is too large to be shown: pages have at most {MAX_PAGE // 2**20} MB")
        return path.read_bytes()
