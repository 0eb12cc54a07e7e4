"""`rmd demo`: distil a packaged teacher on this machine and show the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Settings, Threads
from rmd.cli.start import resolved_recipe, start
from rmd.common.errors import RMDError
from rmd.common.files import locked

TABLE_WIDTH = 110
"""Columns of the table if there is no terminal to ask."""
QUICK = ("train.iterations=6", "evaluation.n=64", "method.warmup_steps=2", "train.sample_every=6")


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for the results. Those of an earlier demo are replaced.")
    ] = Path("runs/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check in a minute that everything works; the numbers mean nothing.")
    ] = False,
    video: Annotated[
        bool, typer.Option("--video", help="Distil the packaged teacher of clips, with RMD and also with TDM.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="A recipe of a packaged teacher. By default, it is scenes, or scenes-wan with --video.",
        ),
    ] = None,
    overrides: Settings = None,
    threads: Threads = None,
) -> None:
    """Distil a packaged teacher, compare the student with four other samplers, and write report.html."""
    start(threads=threads)
    from rmd.cli.console import table_console
    from rmd.cli.progress import progress_bar
    from rmd.evaluation.demo import run_demo
    from rmd.report import print_table
    from rmd.report.demo import write_demo
    from rmd.worlds.registry import world_of_kind

    name = next(iter(world_of_kind(moving=video).teachers)) if recipe is None else recipe
    loaded = resolved_recipe(name, [*(QUICK if quick else ()), *(overrides or ())])
    console = table_console(TABLE_WIDTH)
    with locked(out):
        _clear(out)
        with progress_bar() as report_progress:
            result = run_demo(loaded, out, quick=quick, progress=report_progress)
        page = None if result is None else write_demo(result, out)
    if result is None:
        console.print(f"stopped and saved; start again with: rmd demo --out {out}")
        return
    print_table(result.report, console)
    console.print(f"report: {page}   student: {out / 'student'}")


def _clear(out: Path) -> None:
    """Remove an earlier demo's trainings and student.

    Raises:
        RMDError: something else has one of their names, or another process, such as `rmd train`, writes to them.
    """
    marks = {"run": "recipe.yaml", "run-tdm": "recipe.yaml", "student": "rmd_config.json"}
    for part, mark in marks.items():
        folder = out / part
        if folder.exists() and not (folder / mark).is_file():
            raise RMDError(f"{folder} does not belong to an earlier demo: remove it, or choose another --out")
    for folder in (out / part for part in marks):
        if folder.is_dir():
            with locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
