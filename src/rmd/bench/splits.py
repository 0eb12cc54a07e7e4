"""Weighs the splits of steps over resolutions by the teacher's spectrum and the measured cost of a step at each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.fit import split_thresholds
from rmd.core.splits import Split, splits
from rmd.models.base import Backbone
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress, running_total
from rmd.sample.spectrum import BATCH, image_spectrum, teacher_spectrum
from rmd.sample.timing import side_seconds

REPEATS = 3
"""Number of timed repeats after one to warm up."""


def measured_spectrum(
    backbone: Backbone, recipe: Recipe, prompts: Sequence[str], images: Path | None, samples: int, progress: Progress
) -> Tensor:
    """Return the power spectrum of the teacher's latents at the last side of a recipe.

    Args:
        backbone: the recipe's teacher, on the device to measure.
        recipe: the recipe.
        prompts: the prompts, of each of which the teacher makes one sample; not used with `images`.
        images: folder of pictures that are encoded instead.
        samples: largest number of these pictures.
        progress: called with the name of a piece of work, how much of it is done, and its total.
    """
    side = recipe.plan.sides[-1]
    if images is not None:
        return image_spectrum(
            backbone, side, images, samples, progress=lambda done, total: progress("the pictures", done, total)
        )
    return teacher_spectrum(
        backbone, side, prompts, seed=recipe.train.seed, guidance=recipe.method.guidance,
        frames=recipe.frames, progress=lambda done: progress("the teacher's pictures", done, len(prompts)),
    )  # fmt: skip


def weigh_splits(
    backbone: Backbone, recipe: Recipe, prompts: Sequence[str], power: Tensor, progress: Progress
) -> list[Split]:
    """Return all splits of a recipe's steps over its sides with their costs and losses, cheapest first.

    Args:
        backbone: the recipe's teacher, on the device to measure.
        recipe: the recipe, whose own times and division are ignored.
        prompts: at least one prompt, for the batch that is timed.
        power: the power spectrum of the teacher's latents (`measured_spectrum`).
        progress: called with the name of a piece of work, how much of it is done, and its total.
    """
    sides = list(recipe.plan.sides)
    seconds = side_seconds(
        backbone, sides, prompts[:BATCH], repeats=REPEATS, frames=recipe.frames,
        progress=running_total(progress, "timing", REPEATS + 1),
    )  # fmt: skip
    return splits(
        recipe.schedule(), steps=recipe.plan.step_count, sides=sides, costs=seconds, power=power,
        grid_end=recipe.plan.grid_end,
    )  # fmt: skip


def with_any_split(recipe: Recipe) -> Recipe:
    """Return the recipe with uniform times and a division that suits its sides: one step each, the others to the last.

    Raises:
        RMDError: there are more sides than steps.
    """
    steps, stages = recipe.plan.step_count, len(recipe.plan.sides)
    if steps < stages:
        raise RMDError(f"{stages} sides need at least {stages} steps, but plan.steps is {steps}: set it higher")
    thresholds = split_thresholds(recipe.schedule(), (*[1] * (stages - 1), steps - stages + 1))
    division = {"steps": steps, "times": (), "cross_at": None, "thresholds": tuple(thresholds), "split": ()}
    return recipe.model_copy(update={"plan": recipe.plan.model_copy(update=division)})
