"""Weighs the splits of steps over resolutions by the teacher's spectrum and the measured cost of a step at each."""

from __future__ import annotations

from collections.abc import Sequence

from rmd.common.errors import RMDError
from rmd.core.fit import Split, split_thresholds, splits
from rmd.models.base import Backbone
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress, running_total
from rmd.sample.spectrum import BATCH, teacher_spectrum
from rmd.sample.timing import side_seconds

REPEATS = 3
"""Number of timed repeats after one to warm up."""


def weigh_splits(backbone: Backbone, recipe: Recipe, prompts: Sequence[str], progress: Progress) -> list[Split]:
    """Return all splits of a recipe's steps over its sides with their costs and losses, cheapest first.

    Args:
        backbone: the recipe's teacher, on the device to measure.
        recipe: the recipe, whose thresholds are ignored.
        prompts: the prompts, of each of which the teacher makes one sample.
        progress: called with the name of a piece of work, how much of it is done, and its total.
    """
    sides = list(recipe.plan.sides)
    power = teacher_spectrum(
        backbone, sides[-1], prompts, seed=recipe.train.seed, guidance=recipe.method.guidance,
        frames=recipe.frames, progress=lambda done: progress("the teacher's pictures", done, len(prompts)),
    )  # fmt: skip
    seconds = side_seconds(
        backbone, sides, prompts[:BATCH], repeats=REPEATS, frames=recipe.frames,
        progress=running_total(progress, "timing", REPEATS + 1),
    )  # fmt: skip
    return splits(
        recipe.schedule(), steps=recipe.plan.step_count, sides=sides, costs=seconds, power=power,
        grid_end=recipe.plan.grid_end,
    )  # fmt: skip


def with_any_split(recipe: Recipe) -> Recipe:
    """Return the recipe with thresholds that suit its sides: one step for each side, and the others for the last.

    Raises:
        RMDError: there are more sides than steps.
    """
    steps, stages = recipe.plan.step_count, len(recipe.plan.sides)
    if steps < stages:
        raise RMDError(f"{stages} sides need at least {stages} steps, but plan.steps is {steps}: set it higher")
    thresholds = split_thresholds(recipe.schedule(), (*[1] * (stages - 1), steps - stages + 1))
    return recipe.model_copy(
        update={"plan": recipe.plan.model_copy(update={"thresholds": tuple(thresholds), "split": ()})}
    )
