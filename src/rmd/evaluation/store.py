"""Evaluations of `rmd eval` on disk: rows of different models that were measured on the same captions.

Models share captions and seeds but not noise, since each draws it by its own call. Pictures of another size are scaled
to the judge's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rmd.common.files import disk_errors, locked, read_model, replacing, write_text
from rmd.common.pictures import grid_image, to_uint8
from rmd.common.typed import Strict
from rmd.evaluation.protocol import SAMPLES_PER_PROMPT
from rmd.evaluation.rows import Row

SHOWN = 24
"""Number of captions whose pictures are kept."""
COLUMNS = 12


class Evaluation(Strict):
    """A model's row, and the conditions under which it was measured."""

    row: Row
    making: dict[str, Any]
    """Model, steps, size."""
    teacher: str
    """The packaged teacher whose samples are the reference of `kernel_distance_to_teacher`."""
    samples: int
    seed: int
    versions: dict[str, str]


def save_evaluation(evaluation: Evaluation, images: Tensor, folder: Path) -> None:
    """Write NAME.json, and a grid of pictures as NAME.png; files of an earlier row of this name are replaced.

    Args:
        images: all pictures (n, 3, H, W) in [-1, 1], `SAMPLES_PER_PROMPT` per caption.

    Raises:
        RMDError: the folder cannot be written to.
    """
    shown = images[: SHOWN * SAMPLES_PER_PROMPT : SAMPLES_PER_PROMPT]
    with locked(folder, wait=60.0), disk_errors(folder):
        with replacing(folder / f"{evaluation.row.name}.png") as partial:
            grid_image(to_uint8(shown), COLUMNS).save(partial, format="PNG")
        write_text(folder / f"{evaluation.row.name}.json", evaluation.model_dump_json(indent=1) + "\n")


def all_evaluations(folder: Path) -> list[Evaluation]:
    """Return the evaluations in a folder, in the order of their names.

    Raises:
        RMDError: a JSON file of the folder is not an evaluation.
    """
    return [read_model(path, Evaluation) for path in sorted(folder.glob("*.json"))]


def comparable_rows(folder: Path, like: Evaluation) -> list[Row]:
    """Return a folder's rows that were measured on the same captions and references as `like`, slowest first.

    Speed-ups are relative to the slowest row.

    Raises:
        RMDError: a JSON file of the folder is not an evaluation.
    """
    rows = [
        other.row
        for other in all_evaluations(folder)
        if (other.teacher, other.samples, other.seed) == (like.teacher, like.samples, like.seed)
    ]
    rows.sort(key=lambda row: row.seconds_per_image, reverse=True)
    return [row.model_copy(update={"speedup": rows[0].seconds_per_image / row.seconds_per_image}) for row in rows]
