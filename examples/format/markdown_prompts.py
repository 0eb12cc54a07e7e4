"""A format of prompt files: the items of Markdown lists, as in `- a red ball on the beach`."""

from __future__ import annotations

from pathlib import Path

from rmd import RMDError
from rmd.data.captions import Keys, Rows
from rmd.data.formats import read_lines


def read_markdown(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the position and the text of every item.

    Args:
        path: the file.
        column: the column that the user has named; None if there is none.
        keys: what the user calls the settings, for errors.
    """
    if column is not None:
        raise RMDError(f"{path} is a Markdown list and has no columns: leave {keys.column} out")
    for number, line in enumerate(read_lines(path), start=1):
        if line.lstrip().startswith("- "):
            yield f"{path}, line {number}", line.lstrip().removeprefix("- ")
