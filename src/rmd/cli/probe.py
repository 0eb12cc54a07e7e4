"""`rmd probe`: how far a teacher's low resolution can be trusted, and which matching and crossing that speaks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, Json, RecipeName, Settings, Threads
from rmd.cli.start import resolved_recipe, start

if TYPE_CHECKING:
    from rmd.recipes.schema import Recipe

Samples = Annotated[
    int, typer.Option(metavar="N", min=6, max=4096, help="The number of samples at each resolution; more: surer.")
]
Steps = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="The teacher's sampling steps.")]
Sides = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Probe other sizes than the recipe's stages, as in --sides=256,512,1024; the last is full."
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="The number of samples per batch.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A new folder for the page and its numbers. By default, it is runs/probe-RECIPE."),
]


def probe(
    recipe: RecipeName,
    samples: Samples = 24,
    steps: Steps = 25,
    sides: Sides = None,
    overrides: Settings = None,
    out: Out = None,
    as_json: Json = False,
    batch_size: BatchSize = 8,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure how far a teacher's low resolution can be trusted, and recommend a matching and a crossing."""
    from rmd.common.files import check_new_folder, check_place

    loaded = resolved_recipe(recipe, overrides or ())
    if sides is not None:
        loaded = _with_sides(recipe, overrides or [], sides)
    folder = Path(f"runs/probe-{loaded.name}") if out is None else out
    check_new_folder(folder)
    check_place(folder, replace=True)
    where = start(device, threads=threads)
    from rmd.cli.progress import progress_bar
    from rmd.evaluation.probe import lower_stages, run_probe
    from rmd.models.teacher import load_teacher
    from rmd.report.probe import summary, write_probe

    lower_stages(loaded.build_plan())  # before the teacher is loaded
    backbone = load_teacher(loaded)
    backbone.pipe.to(where)
    with progress_bar() as report:
        result = run_probe(backbone, loaded, samples=samples, steps=steps, batch=batch_size, progress=report)
    page = write_probe(result, folder)
    if as_json:
        typer.echo(result.probe.model_dump_json(indent=2))
        return
    for line in summary(result.probe):
        typer.echo(line)
    typer.echo(f"page: {page}")


def _with_sides(name: str, overrides: list[str], sides: str) -> Recipe:
    """Load the recipe with other stage sizes, and with a division of its steps that suits their number."""
    from rmd.common.errors import RMDError

    count = len(sides.split(","))
    steps = resolved_recipe(name, overrides).plan.step_count
    if steps < count:
        raise RMDError(f"{count} sides need at least {count} steps, but the recipe has {steps}: set plan.steps higher")
    split = [steps // count + (place >= count - steps % count) for place in range(count)]
    numbers = ", ".join(map(str, split))
    return resolved_recipe(
        name, [*overrides, f"plan.sides=[{sides}]", f"plan.split=[{numbers}]", f"plan.steps={steps}"]
    )
