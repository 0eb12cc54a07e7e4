"""`rmd demo`: distil the packaged teacher on this machine and show what came of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from rmd.common.errors import RMDError
from rmd.common.files import locked

TABLE_WIDTH = 110
"""Columns of the table where there is no terminal to ask."""
QUICK = ("train.iterations=6", "evaluation.n=64", "method.warmup_steps=2", "train.sample_every=6")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; what an earlier demo left there is replaced.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of a minute: its numbers mean nothing.")] = False,
    video: Annotated[
        bool, typer.Option("--video", help="The moving scenes: recipe scenes-wan, and TDM beside it.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="A recipe on the scenes. By default: scenes.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own choice.")] = None,
) -> None:
    """Distil the packaged teacher, sample five ways with the same seeds, judge, print a table and write report.html."""
    name = ("scenes-wan" if video else "scenes") if recipe is None else recipe
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.cli.console import table_console
    from rmd.cli.device import prepare_cpu
    from rmd.cli.progress import progress_bar
    from rmd.evaluate.demo import run_demo
    from rmd.evaluate.demo_moving import run_moving_demo
    from rmd.models.registry import family_class
    from rmd.models.resolve import resolve_noise
    from rmd.recipes.schema import load_recipe
    from rmd.report import print_table

    loaded = resolve_noise(load_recipe(name, [*(QUICK if quick else ()), *(overrides or ())]))
    prepare_cpu(threads)
    console = table_console(TABLE_WIDTH)
    with locked(out):
        _clear(out)
        with progress_bar() as report_progress:
            result = (run_moving_demo if family_class(loaded.family).moving else run_demo)(
                loaded, out, quick=quick, progress=report_progress
            )
    if result is None:
        console.print(f"stopped and saved; start again with: rmd demo --out {out}")
        return
    print_table(result.report, console)
    console.print(f"report: {result.page}   student: {out / 'student'}")


def _clear(out: Path) -> None:
    """Remove an earlier demo's run and student.

    Raises:
        RMDError: something else has one of their names, or another process, such as `rmd train`, writes to them.
    """
    marks = {"run": "recipe.yaml", "run-tdm": "recipe.yaml", "student": "rmd_config.json"}
    for part, mark in marks.items():
        folder = out / part
        if folder.exists() and not (folder / mark).is_file():
            raise RMDError(f"{folder} is not an earlier demo's: remove it, or choose another --out")
    for folder in (out / part for part in marks):
        if folder.is_dir():
            with locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
