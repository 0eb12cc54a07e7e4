"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from rmd.common.errors import RMDError

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. By default: cuda if there is one.")]
"""Which device a command computes on."""
Variant = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Variant of the weight files, such as fp16. By default: the plain files, or the only variant.",
    ),
]
"""Variant of a pipeline's weight files that a command loads."""
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps (ordinary pipelines only).")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale (ordinary pipelines only).")]


def check_options(model: str, student: bool, students: Mapping[str, bool], pipelines: Mapping[str, bool]) -> None:
    """RMDError for an option that is of the other kind of model."""
    for option, given in (pipelines if student else students).items():
        if given and student:
            raise RMDError(
                f"{option} is of diffusers pipelines, but {model} is a student with its own plan: leave it out"
            )
        if given:
            raise RMDError(f"{option} is of students, but {model} is a diffusers pipeline: leave it out")
