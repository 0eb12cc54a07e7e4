"""Judges any model's pictures of the scenes' captions: a row that stands beside those of other models.

Models share captions and seeds, not noise: each draws by its own call. Pictures of another size are scaled to the
judge's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rmd.common.files import disk_errors, locked, read_model, replacing, write_text
from rmd.common.pictures import grid_image, to_uint8
from rmd.common.typed import Strict
from rmd.core.plan import Stage
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT, SAMPLING_SEED, Entry, evaluation_prompts, measure, run_maker
from rmd.evaluate.rows import Row
from rmd.evaluate.versions import versions
from rmd.sample.samplers import Sampler
from rmd.worlds.assets import assets_folder, teacher_home
from rmd.worlds.references import load_references
from rmd.worlds.still.judge import load_judge

SIZE = Stage(1, 64, 64)
"""At which the judge looks at pictures."""
SHOWN = 24
COLUMNS = 12
DENOISERS = ("unet", "transformer", "transformer_2")
"""Parts of a diffusers pipeline whose calls are counted and timed."""


class Evaluation(Strict):
    """A model's row, and what it was measured on."""

    row: Row
    making: dict[str, Any]
    """Model, steps, size."""
    teacher: str
    """Whose samples `kernel_distance_to_teacher` is to."""
    samples: int
    seed: int
    versions: dict[str, str]


def evaluate(
    maker: Sampler, networks: Sequence[nn.Module], entry: Entry, *, teacher: str, samples: int, seed: int,
    batch_size: int, progress: Callable[[int], None] | None = None,
) -> tuple[Evaluation, Tensor]:  # fmt: skip
    """Make a picture of every caption of an evaluation, and judge them.

    Args:
        networks: the model's denoisers, which are timed.
        teacher: of `rmd.worlds.assets.TEACHERS`, whose samples are the reference.
        samples: pictures, two of each caption.

    Returns:
        The evaluation, and pictures (n, 3, 64, 64) in [-1, 1] of its first captions.

    Raises:
        RMDError: the model makes clips, or the teacher's references are not there.
    """
    references = load_references(teacher_home(teacher))
    prompts = evaluation_prompts(samples, seed=seed)
    made = run_maker(
        maker, networks, prompts, seed=SAMPLING_SEED + seed, size=SIZE, batch_size=batch_size, progress=progress
    )
    seconds = made.denoiser_seconds / len(prompts)
    judge = load_judge(assets_folder())
    row = measure(entry, made, prompts, judge=judge, references=references, teacher_seconds=seconds)
    shown = made.images[: SHOWN * SAMPLES_PER_PROMPT : SAMPLES_PER_PROMPT]
    found = Evaluation(
        row=row, making=dict(maker.settings), teacher=teacher, samples=len(prompts), seed=seed, versions=versions()
    )
    return found, shown


def save_evaluation(found: Evaluation, images: Tensor, folder: Path) -> None:
    """Write NAME.json and NAME.png, a grid of pictures; those of an earlier row of this name are replaced.

    Raises:
        RMDError: the folder cannot be written to.
    """
    with locked(folder, wait=60.0), disk_errors(folder):
        with replacing(folder / f"{found.row.name}.png") as partial:
            grid_image(to_uint8(images), COLUMNS).save(partial, format="PNG")
        write_text(folder / f"{found.row.name}.json", found.model_dump_json(indent=1) + "\n")


def all_evaluations(folder: Path) -> list[Evaluation]:
    """Return the evaluations that a folder holds, in the order of their names; RMDError if a file is not one."""
    return [read_model(path, Evaluation) for path in sorted(folder.glob("*.json"))]


def read_evaluations(folder: Path, like: Evaluation) -> list[Row]:
    """Rows of a folder that were measured on the same captions and references as `like`, the slowest first.

    Speed-ups are over the slowest.

    Raises:
        RMDError: a file of the folder is no evaluation.
    """
    rows = [
        found.row
        for found in all_evaluations(folder)
        if (found.teacher, found.samples, found.seed) == (like.teacher, like.samples, like.seed)
    ]
    rows.sort(key=lambda row: row.seconds_per_image, reverse=True)
    return [row.model_copy(update={"speedup": rows[0].seconds_per_image / row.seconds_per_image}) for row in rows]
