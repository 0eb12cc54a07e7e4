"""`rmd bench`: time a recipe's cascade against its teacher and against as many full-resolution steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer


def bench(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe whose teacher is at hand.")] = "scenes",
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a batch.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measured repeats after one warm-up.")] = 5,
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of the teacher, guided.")] = 25,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time sampling: the network alone, the loop around it, the decoder; medians over the repeats."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    import json
    from dataclasses import asdict
    from functools import partial
    from itertools import count as count_up

    import torch
    from rich.console import Console
    from rich.table import Table

    from rmd.bench.sampling import time_sampling
    from rmd.cli.progress import progress_bar
    from rmd.config import load_recipe
    from rmd.data.prompts import scene_captions
    from rmd.plan import build_plan
    from rmd.teacher import load_teacher

    loaded = load_recipe(recipe)
    if threads is not None:
        torch.set_num_threads(threads)
    backbone, plan = load_teacher(loaded), loaded.build_plan()
    last, count, schedule = plan.stages[-1], len(plan.steps), backbone.schedule
    full = [(last.height, last.width)]
    many = build_plan(schedule, steps=teacher_steps, sides=full, thresholds=[])
    few = build_plan(schedule, steps=count, sides=full, thresholds=[])
    rows = [
        (f"teacher, {teacher_steps} steps", many, loaded.method.guidance),
        (f"{count} full-resolution steps", few, 1.0),
        ("RMD cascade", plan, 1.0),
    ]
    prompts, timings = scene_captions(batch, seed=0, training=False), []
    with progress_bar() as show:
        for name, its, guidance in rows:
            advance = partial(_advance, show, name, count_up(1), repeats + 1)
            timings.append(
                time_sampling(
                    name, backbone, backbone.denoiser, its, prompts,
                    repeats=repeats, guidance=guidance, progress=advance,
                )
            )  # fmt: skip
    if as_json:
        typer.echo(json.dumps([{**asdict(t), "overhead": t.overhead} for t in timings], indent=1))
        return
    table = Table(title=f"{loaded.name}, batch {batch}, {torch.get_num_threads()} threads; ms per picture")
    for column in ("", "network", "one call by stage", "loop around it", "decode", "speed-up"):
        table.add_column(column, justify="left" if not column else "right")
    for timing in timings:
        stages = " / ".join(f"{1000 * seconds / batch:.2f}" for seconds in timing.by_stage)
        table.add_row(
            timing.name,
            f"{1000 * timing.network / batch:.2f}",
            stages,
            f"+{100 * timing.overhead:.1f} %",
            f"{1000 * timing.decode / batch:.2f}",
            f"{timings[0].network / timing.network:.2f}x",
        )
    Console().print(table)
    gain = timings[1].network / timings[2].network
    typer.echo(f"the cascade is {gain:.2f}x as fast as {count} full-resolution steps, denoiser alone")


def _advance(show: Callable[[str, int, int], None], name: str, numbers: Iterator[int], total: int) -> None:
    show(name, next(numbers), total)
