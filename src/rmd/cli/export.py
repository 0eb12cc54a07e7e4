"""`rmd export`: a student in the layout that another program reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmd.cli.options import Teacher, Variant
from rmd.cli.start import start

Student = Annotated[
    str,
    typer.Argument(
        metavar="STUDENT", help="A student, given as a folder or as a repository on the Hub; or a run or a checkpoint."
    ),
]
Format = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="The layout to write: diffusers-lora, diffusers-full, kohya, comfyui or fused; or student, for the "
        "student of a checkpoint as training saves it, which is for this machine.",
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or an earlier export to replace.")]
CheckDevice = Annotated[
    str, typer.Option(metavar="DEVICE", help="The device on which the export is loaded back and checked.")
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="The teacher's repository on the Hub, OWNER/NAME, which the model card and the config name. By default, "
        "it is the teacher that the student names, unless that is a folder.",
    ),
]
Push = Annotated[
    str | None,
    typer.Option(metavar="REPOSITORY", help="Also upload the export to this repository on the Hub."),
]


def export(
    student: Student,
    to: Format,
    out: Out,
    teacher: Teacher = None,
    variant: Variant = None,
    device: CheckDevice = "cpu",
    base_model: BaseModel = None,
    push: Push = None,
) -> None:
    """Write a student in the layout of another program, check that it gives the same samples, and add a model card."""
    where = start(device)
    from rmd.export.run import STUDENT, run_export
    from rmd.models.share import upload
    from rmd.models.student import read_student
    from rmd.report.tables import measures_beside

    checkpoint = run_export(
        student, to, out, teacher=teacher, variant=variant, device=str(where), base_model=base_model,
        push=push, measures=measures_beside(Path(student)),
    )  # fmt: skip
    if to == STUDENT:
        typer.echo(f"student: {out} (of {checkpoint})")
    else:
        typer.echo(f"{to}: {out} (loaded back: the same samples; its card is README.md)")
        if read_student(out).teacher is None:
            typer.echo(
                "the teacher is a folder of this machine, so the export does not name it; to name its repository on "
                "the Hub, add --base-model OWNER/NAME",
                err=True,
            )
    if push is not None:
        typer.echo(f"uploaded: {upload(out, push, base_model=base_model)}")
