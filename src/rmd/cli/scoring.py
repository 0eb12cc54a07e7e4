"""The beginning and the end of the commands that score samples: the model's name, and the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rmd.common.errors import RMDError, check_text
from rmd.common.workers import Worker

if TYPE_CHECKING:
    from rmd.scores.result import Result, Table


def model_name(place: str, name: str | None) -> str:
    """Return what a model is called: the name that was given, or else the last part of its samples' place.

    Raises:
        RMDError: there is no name, or text that no file can hold.
    """
    called = Path(place).name.strip("*") if name is None else name
    for option, text in (("DIR", place), ("--name", called)):
        check_text(option, text)
    if not called:
        raise RMDError("the samples have no name: give --name")
    return called


def conclude(found: tuple[Result, Table] | None, worker: Worker, folder: Path) -> None:
    """Write a result and print it; without one, say that other workers have not finished yet.

    Raises:
        RMDError: the result cannot be written.
    """
    from rmd.cli.console import table_console
    from rmd.scores.result import write_result
    from rmd.scores.text import scores_text

    if found is None:
        typer.echo(f"worker {worker[0]} of {worker[1]} has scored its share; other workers have not finished yet")
        return
    write_result(*found, folder)
    table_console(110).print(scores_text(found[0]))
    typer.echo(f"result: {folder}")
