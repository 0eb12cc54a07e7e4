"""Exports a student, or the student of a run's checkpoint, which many processes may have written."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from rmd.common.errors import RMDError, one_of
from rmd.common.files import write_text
from rmd.export.formats import FORMATS, check_out, export_student
from rmd.models.hub import check_hub_id
from rmd.models.resolve import resolve_noise
from rmd.models.share import required_teacher, shared_values
from rmd.models.student import save_student
from rmd.models.student_config import CONFIG_NAME, read_student
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe
from rmd.train.checkpoint import checkpoints, is_checkpoint, read_student_state
from rmd.train.folder import CHECKPOINTS

STUDENT = "student"
"""The format in which training saves a student, which an export can write for a checkpoint."""


def run_export(
    source: str, to: str, out: Path, *, teacher: str | None = None, variant: str | None = None, device: str = "cpu",
    base_model: str | None = None, push: str | None = None, measures: str = "",
) -> Path | None:  # fmt: skip
    """Write a student in the layout of another program and check it; nothing is uploaded.

    Args:
        source: a student's folder or repository on the Hub, a run's folder, or a checkpoint.
        to: one of `rmd.export.formats.FORMATS`, or `STUDENT`.
        out: a new folder, or an earlier export.
        teacher: the location of the teacher, if it has moved.
        variant: the variant of the teacher's weight files.
        device: the device on which the export is loaded back and checked.
        base_model: the teacher's repository on the Hub, for the card and the config.
        measures: a table of the student's scores in Markdown, for the card.
        push: the repository to which the export will be uploaded, for which it must name its teacher.

    Returns:
        The checkpoint from which the student was taken, or None if the source is a student.

    Raises:
        RMDError: a name is not valid, the source is not a student or a checkpoint, or the export fails its check.
    """
    one_of("format", to, (*FORMATS, STUDENT))
    for what, name in (("the base model", base_model), ("the repository", push)):
        if name is not None:
            check_hub_id(what, name)
    check_out(out, source)
    path = Path(source)
    checkpoint = path if is_checkpoint(path) else next(reversed(checkpoints(path / CHECKPOINTS)), None)
    if to == STUDENT:
        if checkpoint is None:
            raise RMDError(f"{source} is neither a checkpoint nor the folder of a run that has one: name one")
        student_of(checkpoint, out, teacher=teacher, variant=variant)
        if base_model is not None:
            values = shared_values(read_student(out).values, base_model)
            write_text(out / CONFIG_NAME, json.dumps(values, indent=1))
        return checkpoint
    with TemporaryDirectory() as temporary:
        if checkpoint is not None:
            source = str(student_of(checkpoint, Path(temporary) / "student", teacher=teacher, variant=variant))
        if push is not None:
            required_teacher(read_student(source).teacher, base_model)
        export_student(
            source, to, out, teacher=teacher, variant=variant, device=device, base_model=base_model, measures=measures
        )
    return checkpoint


def student_of(checkpoint: Path, folder: Path, *, teacher: str | None = None, variant: str | None = None) -> Path:
    """Write the student of a checkpoint (its moving average, if there is one) into `folder`, and return that folder.

    Args:
        checkpoint: the checkpoint, in the folder of its run.
        folder: the folder to write, which is replaced if it exists.
        teacher: the location of the teacher, if it is not the one in the run's recipe.
        variant: the variant of the teacher's weight files, if it is not the recipe's.

    Raises:
        RMDError: the run's recipe or the checkpoint cannot be read, or the teacher does not fit.
    """
    recipe_path = checkpoint.parent.parent / "recipe.yaml"
    if not recipe_path.is_file():
        raise RMDError(f"there is no {recipe_path}: give a checkpoint that lies in its run's folder")
    changes = {name: value for name, value in (("teacher", teacher), ("variant", variant)) if value is not None}
    recipe = resolve_noise(load_recipe(str(recipe_path))).model_copy(update=changes)
    return save_student(load_teacher(recipe), read_student_state(checkpoint), recipe, folder)
