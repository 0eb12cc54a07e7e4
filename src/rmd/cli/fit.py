"""`rmd plan --fit`: what every split of the steps over the resolutions costs, and what it loses."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich.table import Table

from rmd.bench.splits import weigh_splits, with_any_split
from rmd.cli.console import ruled_table, table_console
from rmd.cli.progress import progress_bar
from rmd.cli.start import start
from rmd.core.fit import Split, check_count, frontier
from rmd.data.prompts import load_prompts
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.report.tables import significant

MEANING = (
    "ms/picture: time of the denoiser, measured on this machine. Missing: information in the teacher's state about\n"
    "detail that a low resolution cannot hold, at the moment when the cascade leaves that resolution, in thousandths\n"
    "of a bit per latent number. Bold: no other split is both cheaper and misses less."
)


def print_fit(recipe: Recipe, *, samples: int, device: str | None, as_json: bool) -> None:
    """Let the teacher make pictures, time its network at every side, and print all splits, cheapest first.

    Raises:
        RMDError: the teacher or the prompts cannot be loaded, or there are too many or too few steps.
    """
    check_count(recipe.plan.step_count, len(recipe.plan.sides))  # before the teacher is loaded
    where = start(device)
    prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, samples)[0]
    recipe = with_any_split(recipe)
    backbone = load_teacher(recipe)
    backbone.pipe.to(where)
    with progress_bar() as report:
        splits = weigh_splits(backbone, recipe, prompts, report)
    if as_json:
        best = frontier(splits)
        rows = [{**split_values(split), "frontier": split in best} for split in splits]
        typer.echo(json.dumps({"splits": rows}, indent=2, allow_nan=False))
        return
    console = table_console()
    console.print(fit_table(recipe.name, splits))
    console.print(MEANING, soft_wrap=True)


def split_values(split: Split) -> dict[str, object]:
    """Return a split as `--json` prints it; the seconds are those of one picture."""
    return {
        "steps": list(split.steps),
        "sides": [[stage.height, stage.width] for stage in split.plan.stages],
        "thresholds": list(split.plan.thresholds),
        "seconds": split.cost,
        "missing_bits": split.missing,
    }


def fit_table(name: str, splits: Sequence[Split]) -> Table:
    """Return a table of all splits, with the sides and thresholds that a recipe needs to use one."""
    columns = dict.fromkeys(("split", "sides", "thresholds"), "left")
    columns |= dict.fromkeys(("ms/picture", "speed", "missing"), "right")
    table = ruled_table(f"{name}: {sum(splits[0].steps)} steps", columns)
    best, slowest = frontier(splits), max(split.cost for split in splits)
    for split in splits:
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
