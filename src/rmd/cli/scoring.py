"""The common part of the commands that score samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rmd.common.errors import RMDError, check_text, one_of
from rmd.common.workers import Worker

if TYPE_CHECKING:
    import torch

    from rmd.scores.kinds import Kind
    from rmd.scores.result import Result, Table
    from rmd.scores.run import AnyMetric

DTYPES = ("float32", "float16", "bfloat16")
"""The types in which networks of metrics can compute."""


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


def score(
    place: str, metrics: Sequence[AnyMetric], *, kind: Kind, prompts: str | None, out: Path | None, name: str | None,
    weights: Path | None, licence: str | None, batch_size: int, dtype: str, allow_missing: bool, nfe: str | None,
    seconds: float | None, worker: Worker, device: torch.device,
) -> None:  # fmt: skip
    """Score the samples of a folder, and write and print the result; the arguments are those of the commands.

    Raises:
        RMDError: samples or networks are missing or damaged, or the result cannot be written.
    """
    import torch

    from rmd.cli.progress import progress_bar
    from rmd.scores.making import making_of
    from rmd.scores.metrics import Place
    from rmd.scores.result import tables
    from rmd.scores.run import find_pictures, score_pictures

    called = model_name(place, name)
    tables()  # without them, nothing could be written in the end
    folder = Path("runs/scores") / called if out is None else out
    expected = find_pictures(place, prompts, kind=kind)
    making = making_of(called, place, expected.paths, nfe=nfe, seconds=seconds)
    networks = Place(weights, device=device, dtype=getattr(torch, one_of("dtype", dtype, DTYPES)))
    with progress_bar() as report_progress:
        found = score_pictures(
            expected, metrics, networks, folder, making=making,
            prompt_set=Path(prompts).name if prompts else f"the {kind.noun}' own", licence=licence,
            batch_size=batch_size, allow_missing=allow_missing, worker=worker, progress=report_progress,
        )  # fmt: skip
    conclude(found, worker, folder)


def say_unfinished(worker: Worker) -> None:
    """Say that a worker is done, and others are not."""
    typer.echo(f"worker {worker[0]} of {worker[1]} has scored its share; other workers have not finished yet")


def conclude(found: tuple[Result, Table] | None, worker: Worker, folder: Path) -> None:
    """Write a result and print it; without one, say that other workers have not finished yet.

    Raises:
        RMDError: the result cannot be written.
    """
    from rmd.cli.console import table_console
    from rmd.scores.result import write_result
    from rmd.scores.text import scores_text

    if found is None:
        say_unfinished(worker)
        return
    write_result(*found, folder)
    table_console(110).print(scores_text(found[0]))
    typer.echo(f"result: {folder}")
