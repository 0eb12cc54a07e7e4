"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from rmd.errors import RMDError

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. By default: cuda if there is one.")]
"""Which device a command computes on."""
Variant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Which weight files to load, such as fp16. By default: the plain ones, or the only ones."
    ),
]
"""Which variant of a pipeline's weight files a command loads."""
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps of a pipeline that is no student.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale of a pipeline that is no student.")]


def check_options(model: str, student: bool, students: Mapping[str, bool], pipelines: Mapping[str, bool]) -> None:
    """RMDError for an option that is of the other kind of model."""
    for option, given in (pipelines if student else students).items():
        if given and student:
            raise RMDError(
                f"{option} is of diffusers pipelines, but {model} is a student with its own plan: leave it out"
            )
        if given:
            raise RMDError(f"{option} is of students, but {model} is a diffusers pipeline: leave it out")
