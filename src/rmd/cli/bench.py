"""`rmd bench`: measure what sampling and training cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, Json, RecipeName, Settings, Threads
from rmd.cli.start import resolved_recipe, start

if TYPE_CHECKING:
    from rmd.bench.costs import TrainingCosts
    from rmd.recipes.schema import Recipe
    from rmd.sample.timing import Timing

bench = typer.Typer(no_args_is_help=True, help="Measure what sampling and training cost on this machine.")

BatchSize = Annotated[
    int, typer.Option(metavar="N", min=1, max=65536, help="Number of pictures that are sampled at once.")
]
Repeats = Annotated[
    int, typer.Option(metavar="N", min=1, max=10_000, help="Number of timed repeats, after one to warm up.")
]
TeacherSteps = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Sampling steps of the guided teacher.")]
Iterations = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=10_000,
        help="Number of timed iterations per step, after one to warm up. With 0, only the warm-up is run, to measure "
        "memory.",
    ),
]
Untrained = Annotated[
    bool,
    typer.Option(
        "--untrained", help="Use random weights in the teacher's architecture, so that nothing is downloaded."
    ),
]


@bench.command()
def sample(
    recipe: RecipeName = "scenes",
    batch: BatchSize = 64,
    repeats: Repeats = 5,
    teacher_steps: TeacherSteps = 25,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time a recipe's cascade against its teacher, and against the same number of full-resolution steps.

    The table shows medians over the repeats for the network alone, the loop around it, and the decoder.
    """
    where = start(device, threads=threads)
    from rmd.bench.costs import time_samplers
    from rmd.cli.progress import progress_bar
    from rmd.models.teacher import load_teacher

    loaded = resolved_recipe(recipe)
    backbone = load_teacher(loaded)
    backbone.pipe.to(where)
    with progress_bar() as report:
        timings = time_samplers(
            backbone, loaded, batch=batch, repeats=repeats, teacher_steps=teacher_steps, progress=report
        )
    if as_json:
        typer.echo(json.dumps([{**asdict(timing), "overhead": timing.overhead} for timing in timings], indent=1))
    else:
        _print_sampling(loaded.name, timings)


@bench.command()
def train(
    recipe: RecipeName,
    set_: Settings = None,
    untrained: Untrained = False,
    repeats: Iterations = 3,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Time real training iterations, and on a GPU also measure their memory; nothing is saved."""
    where = start(device, threads=threads)
    from rmd.bench.costs import bench_trainer, training_costs
    from rmd.cli.progress import progress_bar

    changes = [*(set_ or ()), *(["data.prompts=scenes"] if untrained else [])]
    trainer = bench_trainer(resolved_recipe(recipe, changes), where, untrained=untrained)
    with progress_bar() as report:
        costs = training_costs(trainer, repeats=repeats, progress=report)
    if as_json:
        typer.echo(json.dumps(costs.values(), indent=1))
    else:
        _print_training(trainer.recipe, costs)


def _print_sampling(name: str, timings: list[Timing]) -> None:
    import torch
    from rich.table import Table

    from rmd.cli.console import table_console

    batch = timings[0].batch
    table = Table(title=f"{name}, batch {batch}, {torch.get_num_threads()} threads; ms per picture")
    for column in ("", "network", "one call by stage", "loop around it", "decode", "speed-up"):
        table.add_column(column, justify="left" if not column else "right")
    for timing in timings:
        table.add_row(
            timing.name,
            f"{1000 * timing.network / batch:.2f}",
            " / ".join(f"{1000 * seconds / batch:.2f}" for seconds in timing.by_stage),
            f"+{100 * timing.overhead:.1f} %",
            f"{1000 * timing.decode / batch:.2f}",
            f"{timings[0].network / timing.network:.2f}x",
        )
    table_console().print(table)
    _, full, cascade = timings
    typer.echo(f"the cascade's denoiser is {full.network / cascade.network:.2f}x as fast as {full.name}")


def _print_training(recipe: Recipe, costs: TrainingCosts) -> None:
    from rich.table import Table

    from rmd.cli.console import table_console

    weights = "random weights" if costs.facts["untrained"] else "the teacher's weights"
    settings = f"{recipe.roles.mode}, batch {recipe.train.batch_size}, {recipe.train.dtype}"
    table = Table(title=f"{recipe.name}: {settings}, {weights}; {costs.facts['device']}")
    timed = costs.tdm_seconds is not None
    headings = ("seconds per iteration", "bare passes", "ratio") if timed else ("seconds, the first time",)
    for heading in ("step that is trained", "side", *headings, "peak, GB"):
        table.add_column(heading, justify="right")
    for step in costs.steps:
        seconds, peak = step.timing.seconds, step.timing.peak_bytes
        bare = [] if step.passes is None else [f"{step.passes:.3f}", f"{seconds / step.passes:.2f}x"]
        memory = "" if peak is None else f"{peak / 1e9:.2f}"
        table.add_row(str(step.timing.step.index), step.size, f"{seconds:.3f}", *bare, memory)
    table_console().print(table)
    if costs.tdm_seconds is None:
        return
    mean, tdm = costs.mean_seconds, costs.tdm_seconds
    typer.echo(
        f"{mean:.3f} s per iteration on average over the steps as they are drawn, which is "
        f"{mean / costs.mean_passes:.2f}x the bare forward and backward passes of its networks"
    )
    typer.echo(
        f"network evaluations per student update: {costs.evaluations:.4g}; TDM's public schedule makes "
        f"{costs.tdm_evaluations:.4g}, all at {costs.steps[-1].size} ({tdm:.3f} s of bare passes): "
        f"{costs.evaluations / costs.tdm_evaluations:.2f} of its evaluations, {mean / tdm:.2f} of its time"
    )
