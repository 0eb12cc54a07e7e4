"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rmd.common.errors import RMDError

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="The name of a packaged recipe, or the path of a YAML file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; can be given more than once."),
]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The column that holds the prompts. By default, it is prompt, caption or text."),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="The device to compute on: cpu, cuda, or cuda:1. By default, it is the GPU if there is one.",
    ),
]
AnyDevice = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE", help="The device to compute on: cpu, cuda or mps. By default, it is the GPU if there is one."
    ),
]
Half = Annotated[bool, typer.Option("--half", help="Compute in bfloat16 instead of float32.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, max=4096, help="The number of CPU threads. By default, torch chooses it."),
]
Variant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The variant of the weight files to load, such as fp16. By default, it is the files "
        "without a variant, or else the only one.",
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder of the student's teacher, if it has moved since the distillation."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=1000,
        help="The sampling steps of an ordinary pipeline; a student follows its own plan.",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(metavar="N", min=0, help="The guidance scale of an ordinary pipeline; a student needs none."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A folder with the networks as OWNER/NAME/FILE. By default, they come from the Hub."
    ),
]


def check_options(model: str, student: bool, students: Mapping[str, bool], pipelines: Mapping[str, bool]) -> None:
    """Refuse options that do not apply to the kind of model that was given.

    Args:
        model: the model's name.
        student: whether it is a student; otherwise it is an ordinary diffusers pipeline.
        students: options for students only, and whether each was given.
        pipelines: options for ordinary pipelines only, and whether each was given.

    Raises:
        RMDError: an option for the other kind of model was given.
    """
    for option, given in (pipelines if student else students).items():
        if given and student:
            raise RMDError(
                f"{option} is for ordinary pipelines, but {model} is a student with its own plan: leave it out"
            )
        if given:
            raise RMDError(f"{option} is for students, but {model} is an ordinary diffusers pipeline: leave it out")


def parts(text: str) -> list[str]:
    """Return names that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
