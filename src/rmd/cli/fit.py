"""`rmd plan --fit`: what every split of the steps over the resolutions costs, and what it misses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count

from rich import box
from rich.table import Table

from rmd.cli.console import table_console
from rmd.cli.device import find_device, prepare_cpu
from rmd.cli.progress import progress_bar
from rmd.common.errors import RMDError
from rmd.core.fit import Split, check_count, frontier, split_thresholds, splits
from rmd.data.prompts import load_prompts
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.report.tables import significant
from rmd.sample.spectrum import BATCH, teacher_spectrum
from rmd.sample.timing import side_seconds

REPEATS = 3
MEANING = (
    "ms/picture: of the denoiser, measured here. Missing: what the teacher's own state tells, when the cascade leaves\n"
    "a low resolution, about detail which that one cannot hold; in thousandths of a bit per latent number. Bold: no\n"
    "other split is both cheaper and misses less."
)


def print_fit(recipe: Recipe, *, samples: int, device: str | None, as_json: bool) -> None:
    """Let the teacher make pictures, time its network at every side, and print all splits, the cheapest first.

    Raises:
        RMDError: teacher or prompts are not at hand.
    """
    check_count(recipe.plan.steps, len(recipe.plan.sides))  # before the teacher is loaded
    prepare_cpu()
    where = find_device(device)
    prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, samples)[0]
    recipe = with_any_split(recipe)
    backbone = load_teacher(recipe)
    backbone.pipe.to(where)
    sides, timed = list(recipe.plan.sides), count(1)
    with progress_bar() as show:
        power = teacher_spectrum(
            backbone, sides[-1], prompts, seed=recipe.train.seed, guidance=recipe.method.guidance,
            frames=recipe.frames, progress=lambda done: show("the teacher's pictures", done, samples),
        )  # fmt: skip
        seconds = side_seconds(
            backbone, sides, prompts[:BATCH], repeats=REPEATS, frames=recipe.frames,
            progress=lambda: show("timing", next(timed), REPEATS + 1),
        )  # fmt: skip
    found = splits(
        recipe.schedule(), steps=recipe.plan.steps, sides=sides, costs=seconds, power=power,
        grid_end=recipe.plan.grid_end,
    )  # fmt: skip
    if as_json:
        best = frontier(found)
        rows = [{**split_values(split), "frontier": split in best} for split in found]
        print(json.dumps({"splits": rows}, indent=2, allow_nan=False))
        return
    console = table_console()
    console.print(fit_table(recipe.name, found))
    console.print(MEANING, soft_wrap=True)


def with_any_split(recipe: Recipe) -> Recipe:
    """The recipe with thresholds that suit its sides: one step for each, and the rest for the last.

    Raises:
        RMDError: there are more sides than steps.
    """
    steps, stages = recipe.plan.steps, len(recipe.plan.sides)
    if steps < stages:
        raise RMDError(f"{stages} sides need at least {stages} steps, and plan.steps is {steps}")
    thresholds = split_thresholds(recipe.schedule(), (*[1] * (stages - 1), steps - stages + 1))
    return recipe.model_copy(update={"plan": recipe.plan.model_copy(update={"thresholds": tuple(thresholds)})})


def split_values(split: Split) -> dict[str, object]:
    """A split as `--json` prints it; seconds are of a picture."""
    return {
        "steps": list(split.steps),
        "sides": [[stage.height, stage.width] for stage in split.plan.stages],
        "thresholds": list(split.plan.thresholds),
        "seconds": split.cost,
        "missing_bits": split.missing,
    }


def fit_table(name: str, found: Sequence[Split]) -> Table:
    """All splits, with what `rmd plan` and a recipe need to take one over."""
    table = Table(
        title=f"{name}: {sum(found[0].steps)} steps", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("split", "sides", "thresholds", "ms/picture", "speed", "missing"):
        table.add_column(heading, justify="left" if heading in ("split", "sides", "thresholds") else "right")
    best, slowest = frontier(found), max(split.cost for split in found)
    for split in found:
        table.add_row(
            "+".join(map(str, split.steps)),
            ", ".join(stage.size for stage in split.plan.stages),
            ", ".join(f"{value:g}" for value in split.plan.thresholds),
            significant(1000 * split.cost),
            f"{slowest / split.cost:.2f}x",
            f"{1000 * split.missing:.2f}",
            style="bold" if split in best else None,
        )
    return table
