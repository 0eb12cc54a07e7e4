"""The common part of the commands of VBench and T2V-CompBench: options, plans, and the check of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.common.errors import RMDError

if TYPE_CHECKING:
    from rmd.sample.plans import VideoPlan
    from rmd.scores.planned import Check

SHOWN = 10
"""Number of files of each list that are printed."""
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The file of a plan.")]
PlanOut = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file for the plan.")]
FirstSeed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=2**64 - 1, help="The first seed; every video has the next one.")
]
OtherPrompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts that the model is given instead, such as longer ones: one for each of the list, in its order.",
    ),
]
VideosDir = Annotated[Path, typer.Option("--videos", metavar="DIR", help="The folder of the plan's videos.")]
VideosPlace = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the videos.")]
ResultsDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for the results.")]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0.1, help="End a process that takes longer. By default, none is ended."),
]
TotalsOut = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the totals to a JSON file.")]


def save_plan(plan: VideoPlan, out: Path) -> None:
    """Write a plan, and print what it has and how its videos are made."""
    from rmd.sample.plans import write_plan

    write_plan(plan, out)
    typer.echo(
        f"plan: {out}   {plan.prompts.name}: {plan.prompts.count} prompts, {len(plan.videos)} videos\n"
        f"make them with: rmd generate --model DIR --plan {out} --out VIDEOS"
    )


def check_folder(plan: Path, videos: Path) -> None:
    """Print what a folder has and lacks of a plan.

    Raises:
        RMDError: it has not exactly the plan's videos.
    """
    from rmd.sample.plans import read_plan
    from rmd.scores.planned import check_videos

    found = check_videos(read_plan(plan), videos)
    for what, paths in (
        ("missing", found.missing), ("of another prompt or seed", found.different), ("superfluous", found.superfluous),
    ):  # fmt: skip
        for path in paths[:SHOWN]:
            typer.echo(f"{what}: {path}")
        if len(paths) > SHOWN:
            typer.echo(f"{what}: {len(paths) - SHOWN} more")
    if not found.exact:
        raise RMDError(_difference(found, videos))
    typer.echo(f"complete: {found.total} videos")


def write_totals(out: Path | None, json: str) -> None:
    """Write totals to a file, if one is named."""
    from rmd.common.files import disk_errors, write_text

    if out is not None:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json + "\n")


def _difference(found: Check, videos: Path) -> str:
    """Return one sentence on how a folder differs from a plan of videos."""
    return (
        f"{videos} is not what the plan says: of its {found.total} videos, {len(found.missing)} are missing and "
        f"{len(found.different)} have another prompt or seed, and {len(found.superfluous)} files are superfluous"
    )
