"""`rmd export`: a student in the layout that another program reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A student: a folder, or a repository of the Hub.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="diffusers-lora, diffusers-full, kohya, comfyui or fused.")],
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
    from rmd.cli.device import find_device
    from rmd.export.formats import export_student
    from rmd.export.student import upload

    folder = export_student(student, to, out, teacher=teacher, device=str(find_device(device)))
    typer.echo(f"{to}: {folder} (loaded back: the same samples; its card is README.md)")
    if push is not None:
        typer.echo(f"uploaded: {upload(folder, push)}")
