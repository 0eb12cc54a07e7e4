"""`rmd export`: a student in the layout that another program reads."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from rmd.cli.options import Variant


def export(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="A student: a folder, or a repository of the Hub; or a checkpoint.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="diffusers-lora, diffusers-full, kohya, comfyui or fused; student: the student of a checkpoint, as "
            "training writes it, for this machine.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder, or an earlier export.")],
    teacher: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the teacher is. By default: where it was distilled.")
    ] = None,
    variant: Variant = None,
    device: Annotated[str, typer.Option(help="Where the check runs.")] = "cpu",
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="The teacher's repository on the Hub, OWNER/NAME, for the card and the config. By default: the "
            "teacher that the student names, unless that is a folder.",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPOSITORY", help="Upload it there, too; nothing is uploaded otherwise.")
    ] = None,
) -> None:
    """Write a student in another layout, check it, and add a model card."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.common.errors import RMDError, one_of
    from rmd.common.files import write_text
    from rmd.export.formats import FORMATS, check_out, export_student
    from rmd.export.run import find_checkpoint, student_of
    from rmd.models.share import check_hub_id, required_teacher, shared_values
    from rmd.models.student import CONFIG_NAME, read_student, upload
    from rmd.report.tables import measures_beside

    one_of("format", to, (*FORMATS, "student"))
    for what, name in (("the base model", base_model), ("the repository", push)):
        if name is not None:
            check_hub_id(what, name)
    check_out(out, [student])
    prepare_cpu()
    checkpoint = find_checkpoint(Path(student))
    if to == "student":
        if checkpoint is None:
            raise RMDError(f"{student} is no checkpoint, nor the folder of a run that has one")
        folder = student_of(checkpoint, out, teacher=teacher, variant=variant)
        if base_model is not None:
            write_text(
                folder / CONFIG_NAME, json.dumps(shared_values(read_student(folder).values, base_model), indent=1)
            )
        typer.echo(f"student: {folder} (of {checkpoint})")
    else:
        with TemporaryDirectory() as temporary:
            source = student
            if checkpoint is not None:
                source = str(student_of(checkpoint, Path(temporary) / "student", teacher=teacher, variant=variant))
            if push is not None:
                required_teacher(read_student(source).teacher, base_model)
            folder = export_student(
                source,
                to,
                out,
                teacher=teacher,
                variant=variant,
                device=str(find_device(device)),
                base_model=base_model,
                measures=measures_beside(Path(source)),
            )
        typer.echo(f"{to}: {folder} (loaded back: the same samples; its card is README.md)")
        if read_student(folder).teacher is None:
            typer.echo(
                "the teacher is a folder of this machine, so the export does not name it; to name its repository on "
                "the Hub, add --base-model OWNER/NAME",
                err=True,
            )
    if push is not None:
        typer.echo(f"uploaded: {upload(folder, push, base_model=base_model)}")
