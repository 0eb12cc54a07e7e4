"""`rmd eval table`: several models' results in the paper's layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.start import start
from rmd.common.errors import RMDError

Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIRS", help="Folders of results of `rmd eval`, one for each model; speed-ups refer to the first."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write the table to a file, whose name ends in .md, .tex or .html."),
]
Pictures = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, max=1000, help="Number of prompts whose pictures an .html file shows, of every model."
    ),
]


def table(folders: Folders, out: Out = None, pictures: Pictures = 4) -> None:
    """Print the results of several models as a table: the paper's Tab. 1 for pictures, its Tab. 2 for clips."""
    start()
    from rmd.cli.console import table_console
    from rmd.common.files import disk_errors, write_text
    from rmd.scores.paper import PaperTable, as_latex, as_markdown, as_page, as_text, paper_table

    found = paper_table(folders)
    page: Callable[[PaperTable], str] = partial(as_page, pictures=pictures)
    writers = {".md": as_markdown, ".tex": as_latex, ".html": page}
    if out is not None:
        if out.suffix not in writers:
            raise RMDError(f"a table is written to a file that ends in {', '.join(writers)}, not to {out.name}")
        text = writers[out.suffix](found)
        with disk_errors(out):
            write_text(out, text)
    table_console(150).print(as_text(found))
    if out is not None:
        typer.echo(f"table: {out}")
