"""Exports a student, or the student of a run's checkpoint, which many processes may have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rmd.common.errors import RMDError, one_of
from rmd.common.files import write_text
from rmd.export.formats import FORMATS, check_out, export_student
from rmd.models.share import check_hub_id, required_teacher, shared_values
from rmd.models.student import CONFIG_NAME, read_student, save_student
from rmd.models.teacher import load_teacher, resolve_noise
from rmd.recipes.schema import load_recipe
from rmd.train.checkpoint import checkpoints, is_checkpoint, read_student_state

STUDENT = "student"
"""The format in which training saves a student, which an export can write for a checkpoint."""


@dataclass(frozen=True)
class Export:
    """What to export, and where to.

    Attributes:
        source: a student's folder or repository on the Hub, a run's folder, or a checkpoint.
        to: one of `rmd.export.formats.FORMATS`, or `STUDENT`.
        out: a new folder, or an earlier export.
        teacher: the location of the teacher, if it has moved.
        variant: the variant of the teacher's weight files.
        base_model: the teacher's repository on the Hub, for the card and the config.
        push: the repository on the Hub to which the export will be uploaded, for which it must name its teacher.
    """

    source: str
    to: str
    out: Path
    teacher: str | None = None
    variant: str | None = None
    base_model: str | None = None
    push: str | None = None

    def check(self) -> None:
        """Raise RMDError if a name is not valid, or the export cannot be written to `out`."""
        one_of("format", self.to, (*FORMATS, STUDENT))
        for what, name in (("the base model", self.base_model), ("the repository", self.push)):
            if name is not None:
                check_hub_id(what, name)
        check_out(self.out, [self.source])


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: the folder of the export.
        checkpoint: the checkpoint that it was made of, if it was made of one.
        names_teacher: whether others can find the teacher by the name that the export gives.
    """

    folder: Path
    checkpoint: Path | None
    names_teacher: bool


def run_export(export: Export, *, device: str = "cpu") -> Exported:
    """Write a student in another layout and check it; nothing is uploaded yet.

    Args:
        export: what to export.
        device: the device on which the export is loaded back and checked.

    Raises:
        RMDError: the source is not a student or a checkpoint, the format does not suit it, or the check fails.
    """
    export.check()
    checkpoint = find_checkpoint(Path(export.source))
    if export.to == STUDENT:
        if checkpoint is None:
            raise RMDError(f"{export.source} is neither a checkpoint nor the folder of a run that has one: name one")
        folder = student_of(checkpoint, export.out, teacher=export.teacher, variant=export.variant)
        if export.base_model is not None:
            values = shared_values(read_student(folder).values, export.base_model)
            write_text(folder / CONFIG_NAME, json.dumps(values, indent=1))
    else:
        with _student_source(export, checkpoint) as source:
            if export.push is not None:
                required_teacher(read_student(source).teacher, export.base_model)
            folder = export_student(
                source, export.to, export.out, teacher=export.teacher, variant=export.variant, device=device,
                base_model=export.base_model,
            )  # fmt: skip
    return Exported(folder, checkpoint, read_student(folder).teacher is not None)


@contextmanager
def _student_source(export: Export, checkpoint: Path | None) -> Iterator[str]:
    """Yield the location of the student: the source itself, or a temporary folder with the checkpoint's student."""
    if checkpoint is None:
        yield export.source
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "student"
        yield str(student_of(checkpoint, folder, teacher=export.teacher, variant=export.variant))


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint at a path, or the newest one of the run there; None if it is neither."""
    if is_checkpoint(path):
        return path
    of_run = checkpoints(path / "checkpoints")
    return of_run[-1] if of_run else None


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
    recipe = resolve_noise(load_recipe(str(recipe_path)))
    if teacher is not None:
        recipe = recipe.model_copy(update={"teacher": teacher})
    if variant is not None:
        recipe = recipe.model_copy(update={"variant": variant})
    return save_student(load_teacher(recipe), read_student_state(checkpoint), recipe, folder)
