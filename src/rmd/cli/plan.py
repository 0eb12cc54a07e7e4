"""`rmd plan`: which step runs when and at which resolution, and what the cascade costs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, RecipeName, Settings
from rmd.cli.start import resolved_recipe
from rmd.common.errors import RMDError, shown
from rmd.recipes.schema import TimeMap, load_recipe, parse_side, steps_overrides

if TYPE_CHECKING:
    from rmd.core.noise import NoiseSchedule
    from rmd.core.plan import Step, StepPlan
    from rmd.recipes.schema import Recipe


Steps = Annotated[int | None, typer.Option(metavar="N", help="Change the number of steps of the student.")]
Thresholds = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Change the logSNR thresholds between stages, as in --thresholds=-6.0,-2.5."),
]
Sides = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Change the sizes of the stages, as in --sides=256,512,1024 or --sides=480x832,720x1280."
    ),
]
Map = Annotated[
    TimeMap | None,
    typer.Option(
        metavar="MAP",
        help="Change the map from teacher time to model time of the low-resolution steps: raise, vp, lower or none.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Show the plan at another final size, height x width; all stages are scaled."),
]
PlanJson = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of a table; a logSNR of minus infinity is printed as null.")
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also draw the plan to a file that ends in .png, .svg or .pdf.")
]
ShowMemory = Annotated[
    bool, typer.Option("--memory", help="Also print the memory that training needs; no weights are loaded for this.")
]
Gpus = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=65536, help="With --memory: the number of GPUs that share the batch and the weights."
    ),
]
Fit = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="Instead of the plan, show all ways of splitting the steps over --sides, at uniform and at the best "
        "times: what they cost, and what they lose.",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        metavar="N", min=2, max=4096, help="With --fit: the number of pictures from which the spectrum is measured."
    ),
]
PictureFolder = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", help="With --fit: measure pictures of this folder, not ones that the teacher makes."
    ),
]


def plan(
    recipe: RecipeName,
    steps: Steps = None,
    thresholds: Thresholds = None,
    sides: Sides = None,
    map: Map = None,
    set_: Settings = None,
    size: Size = None,
    as_json: PlanJson = False,
    plot: Plot = None,
    memory: ShowMemory = False,
    gpus: Gpus = 1,
    fit: Fit = False,
    samples: Samples = 32,
    images: PictureFolder = None,
    device: Device = None,
) -> None:
    """Show the step plan of a recipe: the times, the stage and the cost of every step."""
    loaded = _load(recipe, set_ or (), steps, map, {"thresholds": thresholds, "sides": sides})
    if fit:
        from rmd.cli.quiet import quiet_libraries

        quiet_libraries()
        from rmd.cli.fit import print_fit

        print_fit(loaded, samples=samples, images=images, device=device, as_json=as_json)
        return
    if images is not None:
        raise RMDError("--images names the pictures that --fit measures: add --fit, or leave it out")
    built = loaded.build_plan()
    if size is not None:
        built = built.resized(*_final_size(size), loaded.plan.multiple)
    for warning in built.warnings():
        typer.echo(f"rmd: warning: {warning}", err=True)
    if plot is not None:
        from rmd.report.plotting import plot_plan

        plot_plan(built, loaded.schedule(), plot, title=f"{loaded.name}, {cost_line(built)}")
        typer.echo(f"rmd: drew {plot}", err=True)
    if as_json:
        typer.echo(json.dumps(plan_values(built, loaded.schedule()), indent=2, allow_nan=False))
    else:
        _print_table(loaded.name, built, loaded.schedule())
    if memory:
        _print_memory(loaded, gpus)


def _load(
    recipe: str, settings: Sequence[str], steps: int | None, map: TimeMap | None, lists: Mapping[str, str | None]
) -> Recipe:
    """Load a recipe with the settings and plan options that were given, and with its teacher's noise schedule."""
    overrides = [*settings, *([] if map is None else [f"plan.map={map}"])]
    overrides += [f"plan.{key}=[{value}]" for key, value in lists.items() if value is not None]
    more = [] if steps is None else steps_overrides(load_recipe(recipe, overrides), steps)
    return resolved_recipe(recipe, [*overrides, *more])


def cost_line(plan: StepPlan) -> str:
    """Return split and cost: `2+2 steps at the cost of 2.5 full-resolution steps by area (1.60x less)`."""
    counts = Counter(step.stage for step in plan.steps)
    split = "+".join(str(counts[stage.index]) for stage in plan.stages)
    total = sum(plan.relative_cost(plan.stage_of(step)) for step in plan.steps)
    full = len(plan.steps)
    return f"{split} steps at the cost of {round(total, 2):g} full-resolution steps by area ({full / total:.2f}x less)"


def plan_values(plan: StepPlan, schedule: NoiseSchedule) -> dict[str, list[dict[str, int | float | None]]]:
    """Return the plan as `--json` prints it: stages with their costs, steps with times and sizes, and crossings."""
    from rmd.core.fit import crossing_bits, natural_latents
    from rmd.core.times import flow_sigma

    bits = crossing_bits(plan, schedule, natural_latents(plan))
    return {
        "stages": [
            {"height": stage.height, "width": stage.width, "relative_cost": plan.relative_cost(stage)}
            for stage in plan.stages
        ],
        "steps": [
            {
                "index": step.index,
                "stage": step.stage,
                "teacher_time": step.teacher_time,
                "model_time": step.model_time,
                # JSON has no infinity
                "logsnr": step.logsnr if math.isfinite(step.logsnr) else None,
                "sigma": flow_sigma(step.logsnr),
                "height": plan.stage_of(step).height,
                "width": plan.stage_of(step).width,
            }
            for step in plan.steps
        ],
        "crossings": [
            {"step": step.index, "stage": step.stage, "sigma": flow_sigma(step.logsnr), "natural_missing_bits": missing}
            for step, missing in zip(_crossing_steps(plan), bits, strict=True)
        ],
    }


def crossing_lines(plan: StepPlan, schedule: NoiseSchedule) -> list[str]:
    """Return a line for every crossing: its noise level, and how much detail it leaves bare by the natural spectrum."""
    from rmd.core.fit import crossing_bits, natural_latents
    from rmd.core.times import flow_sigma

    bits = crossing_bits(plan, schedule, natural_latents(plan))
    lines = [
        f"crossing to {plan.stage_of(step).size} at sigma {flow_sigma(step.logsnr):.2f} "
        f"leaves {missing:.4f} bits of detail bare *"
        for step, missing in zip(_crossing_steps(plan), bits, strict=True)
    ]
    if lines:
        lines.append("* detail that the low resolution lacks, for each latent value; by a 1/f^2")
        lines.append("  spectrum: `rmd plan --fit` measures the teacher's own")
    return lines


def _crossing_steps(plan: StepPlan) -> list[Step]:
    """Return the first step of every stage but the first."""
    return [step for step in plan.steps[1:] if plan.steps[step.index - 2].stage != step.stage]


def _final_size(text: str) -> tuple[int, int]:
    try:
        return parse_side(text)
    except ValueError as error:
        raise RMDError(f"--size {error}, but is {shown(text)}") from error


def _print_table(name: str, plan: StepPlan, schedule: NoiseSchedule) -> None:
    from rmd.cli.console import ruled_table, table_console
    from rmd.core.times import flow_sigma

    headings = ("step", "stage", "side", "teacher time", "model time", "logSNR", "sigma", "cost")
    table = ruled_table(_title(name, plan), dict.fromkeys(headings, "right"))
    crossings = _crossing_steps(plan)
    for step in plan.steps:
        stage = plan.stage_of(step)
        table.add_row(
            str(step.index),
            f"-> {step.stage}" if step in crossings else str(step.stage),
            stage.size,
            f"{step.teacher_time:.1f}",
            f"{step.model_time:.1f}",
            f"{step.logsnr:.2f}",
            f"{flow_sigma(step.logsnr):.2f}",
            f"{plan.relative_cost(stage):.4g}",
            end_section=step is not plan.steps[-1] and plan.steps[step.index].stage != step.stage,
        )
    console = table_console()
    console.print(table)
    for line in crossing_lines(plan, schedule):
        console.print(line, soft_wrap=True)
    if plan.match_stage.size != plan.stages[-1].size:
        console.print(f"samples are matched at {plan.match_stage.size}", soft_wrap=True)
    console.print(cost_line(plan), soft_wrap=True)


def _title(name: str, plan: StepPlan) -> str:
    if len(plan.stages) == 1:
        return name
    sampled, trained = plan.crossing, plan.training_crossing
    betas = f"beta {sampled.beta:g} ({trained.beta:g} in training)"
    return f"{name}: time map {plan.time_map}, noise rule {sampled.rule}, {betas}"


def _print_memory(recipe: Recipe, gpus: int) -> None:
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    from rmd.bench.memory import recipe_memory
    from rmd.cli.memory import at_once, memory_lines

    needed = recipe_memory(recipe, gpus=gpus)
    where = "on one GPU" if gpus == 1 else f"on each of {gpus} GPUs"
    typer.echo(f"\nMemory for training {where}, with {at_once(needed.samples)} in {recipe.train.dtype}:")
    for line in memory_lines(needed):
        typer.echo(line)
