"""`rmd export`: a student in the layout that another program reads."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


def export(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="A student: a folder, or a repository of the Hub; or a checkpoint.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="diffusers-lora, diffusers-full, kohya, comfyui or fused; student: a checkpoint's, as after training.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or an earlier export.")],
    teacher: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the teacher is. By default: where it was distilled.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the check runs.")] = "cpu",
    push: Annotated[
        str | None, typer.Option(metavar="REPOSITORY", help="Upload it there, too; nothing is uploaded otherwise.")
    ] = None,
) -> None:
    """Write a student in another layout, check it, and add a model card."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.errors import RMDError
    from rmd.export.formats import export_student
    from rmd.export.run import find_checkpoint, student_of
    from rmd.export.student import upload

    prepare_cpu()
    checkpoint = find_checkpoint(Path(student))
    if to == "student":
        if checkpoint is None:
            raise RMDError(f"{student} is no checkpoint, nor the folder of a run that has one")
        folder = student_of(checkpoint, out, teacher=teacher)
        typer.echo(f"student: {folder} (of {checkpoint})")
    else:
        with TemporaryDirectory() as temporary:
            source = student
            if checkpoint is not None:
                source = str(student_of(checkpoint, Path(temporary) / "student", teacher=teacher))
            folder = export_student(source, to, out, teacher=teacher, device=str(find_device(device)))
        typer.echo(f"{to}: {folder} (loaded back: the same samples; its card is README.md)")
    if push is not None:
        typer.echo(f"uploaded: {upload(folder, push)}")
