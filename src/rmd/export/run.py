"""A student out of a run's checkpoint, which many processes may have written."""

from __future__ import annotations

from pathlib import Path

from rmd.common.errors import RMDError
from rmd.models.student import save_student
from rmd.models.teacher import load_teacher, resolve_noise
from rmd.recipes.schema import load_recipe
from rmd.train.checkpoint import checkpoints, is_checkpoint, read_student_state


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path names, or the newest of the run it names; None if it is neither."""
    if is_checkpoint(path):
        return path
    found = checkpoints(path / "checkpoints")
    return found[-1] if found else None


def student_of(checkpoint: Path, folder: Path, *, teacher: str | None = None, variant: str | None = None) -> Path:
    """Write the student of a checkpoint (its moving average, if there is one) into `folder`, and return that folder.

    Args:
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
