"""`rmd plan --fit`: what every split of the steps over the resolutions costs and loses, and its best times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table

from rmd.bench.splits import measured_spectrum, weigh_splits, with_any_split
from rmd.cli.console import ruled_table, table_console
from rmd.cli.progress import progress_bar
from rmd.cli.start import start
from rmd.core.plan import StepPlan
from rmd.core.splits import Split, check_count, frontier
from rmd.core.times import flow_sigma
from rmd.data.prompts import load_prompts
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import Recipe
from rmd.report.tables import significant

MEANING = """\
Every split comes twice, at uniform times and at those at which it loses least.
*: no other row is both cheaper and loses less.
sigma: noise level of the first step after each crossing.
missing: detail that the low resolutions lack at the crossings, in thousandths
of a bit per latent value. loss: the same, plus what is lost where a step has to
create much at once.
full: number of steps at full resolution, a ranking that needs no measurement.
ms: the denoiser's time for a picture, in milliseconds on this machine.
Settings of the best times, each in the order of the table:"""


def print_fit(recipe: Recipe, *, samples: int, images: Path | None, device: str | None, as_json: bool) -> None:
    """Measure the teacher's spectrum and the time of its network at every side, and print all splits, cheapest first.

    Args:
        recipe: the recipe.
        samples: number of pictures to measure.
        images: folder of pictures to measure; None: pictures that the teacher makes.
        device: device to compute on; None: the GPU if there is one.
        as_json: whether to print JSON instead of a table.

    Raises:
        RMDError: the teacher, prompts or pictures cannot be loaded, or there are too many or too few steps.
    """
    check_count(recipe.plan.step_count, len(recipe.plan.sides))  # before the teacher is loaded
    where = start(device)
    # With pictures, prompts only serve to time the network, which does not depend on them.
    prompts = [""] * samples
    if images is None:
        prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, samples)[0]
    recipe = with_any_split(recipe)
    backbone = load_teacher(recipe)
    backbone.pipe.to(where)
    with progress_bar() as report:
        power = measured_spectrum(backbone, recipe, prompts, images, samples, report)
        splits = weigh_splits(backbone, recipe, prompts, power, report)
    if as_json:
        best = frontier(splits)
        rows = [{**split_values(split), "frontier": split in best} for split in splits]
        typer.echo(json.dumps({"splits": rows}, indent=2, allow_nan=False))
        return
    console = table_console()
    console.print(fit_table(recipe.name, splits))
    console.print(MEANING, soft_wrap=True)
    for split in splits:
        if not split.uniform:
            console.print(settings(split), soft_wrap=True)


def settings(split: Split) -> str:
    """Return the options that set a split: `--set "plan.sides=[32, 64]" --set "plan.times=..." --set "plan.split=..."`.

    Times have all their digits.
    """
    times = [int(t) if t.is_integer() else t for t in (step.teacher_time for step in split.plan.steps)]
    values = {"sides": f"[{', '.join(_sizes(split.plan))}]", "times": times, "split": list(split.steps)}
    return " ".join(f'--set "plan.{key}={value}"' for key, value in values.items())


def _sizes(plan: StepPlan) -> list[str]:
    """Return the sides of the stages as recipes write them: 64, or 480x832 where they differ."""
    return [str(stage.height) if stage.height == stage.width else stage.size for stage in plan.stages]


def split_values(split: Split) -> dict[str, object]:
    """Return a split as `--json` prints it; the seconds are those of one picture."""
    return {
        "steps": list(split.steps),
        "sides": [[stage.height, stage.width] for stage in split.plan.stages],
        "uniform": split.uniform,
        "times": [step.teacher_time for step in split.plan.steps],
        "thresholds": list(split.plan.thresholds),
        "sigma": crossing_sigmas(split.plan),
        "full_steps": split.steps[-1],
        "seconds": split.cost,
        "missing_bits": split.missing,
        "loss": split.loss,
        "settings": settings(split),
    }


def crossing_sigmas(plan: StepPlan) -> list[float]:
    """Return the noise level, as sigma of a rectified flow, of the first step of every stage but the first."""
    firsts = [next(step for step in plan.steps if step.stage == stage.index) for stage in plan.stages[1:]]
    return [flow_sigma(step.logsnr) for step in firsts]


def fit_table(name: str, splits: Sequence[Split]) -> Table:
    """Return a table of all splits; a star marks those on the frontier of cost and loss."""
    columns = dict.fromkeys(("", "split", "sides", "times", "sigma"), "left")
    columns |= dict.fromkeys(("full", "ms", "missing", "loss"), "right")
    table = ruled_table(f"{name}: {sum(splits[0].steps)} steps", columns)
    best = frontier(splits)
    for split in splits:
        table.add_row(
            "*" if split in best else "",
            "+".join(map(str, split.steps)),
            " ".join(_sizes(split.plan)),
            "uniform" if split.uniform else " ".join(f"{step.teacher_time:g}" for step in split.plan.steps[1:]),
            " ".join(f"{sigma:.2f}" for sigma in crossing_sigmas(split.plan)),
            str(split.steps[-1]),
            significant(1000 * split.cost),
            f"{1000 * split.missing:.1f}",
            f"{1000 * split.loss:.1f}",
            style="bold" if split in best else None,
        )
    return table
