"""`rmd bench`: what sampling and training cost, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from rmd.cli.options import Device

bench = typer.Typer(no_args_is_help=True, help="Measure what sampling and training cost.")


@bench.command()
def sample(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe whose teacher is at hand.")] = "scenes",
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Pictures per batch.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Timed repeats after one warm-up.")] = 5,
    teacher_steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps of the guided teacher.")] = 25,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU threads. By default: torch's own choice.")
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time the cascade against its teacher and against as many full-resolution steps.

    The network alone, the loop around it, the decoder; medians over the repeats.
    """
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    import json
    from dataclasses import asdict
    from functools import partial
    from itertools import count as count_up

    import torch
    from rich.table import Table

    from rmd.cli.console import table_console
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.cli.progress import progress_bar
    from rmd.core.plan import build_plan
    from rmd.models.teacher import load_teacher, resolve_noise
    from rmd.recipes.schema import load_recipe
    from rmd.sample.timing import time_sampling
    from rmd.worlds.registry import world_of_kind

    prepare_cpu(threads)
    loaded = resolve_noise(load_recipe(recipe))
    where = find_device(device)
    backbone, plan = load_teacher(loaded), loaded.build_plan()
    backbone.pipe.to(where)
    last, count, schedule = plan.stages[-1], len(plan.steps), backbone.schedule
    full = [(last.height, last.width)]
    many = build_plan(schedule, steps=teacher_steps, sides=full, thresholds=[])
    few = build_plan(schedule, steps=count, sides=full, thresholds=[])
    rows = [
        (f"teacher, {teacher_steps} steps", many, loaded.method.guidance),
        (f"{count} full-resolution steps", few, 1.0),
        ("RMD cascade", plan, 1.0),
    ]
    prompts, timings = world_of_kind(moving=False).captions(batch, seed=0, training=False), []
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
    table_console().print(table)
    gain = timings[1].network / timings[2].network
    typer.echo(f"the cascade is {gain:.2f}x as fast as {count} full-resolution steps, denoiser alone")


@bench.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe, or the path of a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights in the teacher's architecture: nothing is downloaded.")
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="Timed iterations per step, after one warm-up; 0: the warm-up only, to measure memory.",
        ),
    ] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU threads. By default: torch's own choice.")
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time real training iterations, and on a GPU measure their memory; nothing is kept."""
    from rmd.cli.quiet import quiet_libraries

    quiet_libraries()
    import json
    from dataclasses import replace
    from functools import partial
    from itertools import count as count_up
    from pathlib import Path

    import torch
    from rich.table import Table

    from rmd.bench import training as timed
    from rmd.cli.console import table_console
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.cli.progress import progress_bar
    from rmd.methods.base import draw_shares
    from rmd.models.teacher import DTYPES, load_teacher, resolve_noise
    from rmd.recipes.schema import load_recipe
    from rmd.train.loop import Trainer

    prepare_cpu(threads)
    where = find_device(device)
    changed = [*(set_ or ()), *(["data.prompts=scenes"] if untrained else [])]
    loaded = resolve_noise(load_recipe(recipe, changed))
    if untrained:
        backbone, architecture = timed.untrained(loaded, device=where, dtype=DTYPES[loaded.train.dtype])
        backbone.computes_on(where)
        trainer: Trainer = timed.EncodedTrainer(loaded, backbone, architecture)
    else:
        backbone = load_teacher(loaded)
        backbone.pipe.to(where)
        backbone.computes_on(where)
        trainer = Trainer(loaded, backbone, Path("unused"))
    with progress_bar() as show:
        total = len(trainer.plan.steps) * (repeats + 1)
        advance = partial(_advance, show, "iterations", count_up(1), total)
        if repeats:
            timings, bare = timed.time_in_turn(trainer, repeats=repeats, progress=advance)
        else:
            timings = timed.time_training(trainer, repeats=0, progress=advance)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    facts = {"recipe": loaded.name, "device": name, "untrained": untrained, "batch": loaded.train.batch_size}
    weights = "random weights" if untrained else "the teacher's weights"
    settings = f"{loaded.roles.mode}, batch {loaded.train.batch_size}, {loaded.train.dtype}"
    title = f"{loaded.name}: {settings}, {weights}; {name}"
    sides = [trainer.plan.stage_of(timing.step).size for timing in timings]
    peaks = ["" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e9:.2f}" for timing in timings]
    if not repeats:
        if as_json:
            rows = [{"step": t.step.index, "seconds": t.seconds, "peak_bytes": t.peak_bytes} for t in timings]
            typer.echo(json.dumps({**facts, "steps": rows}, indent=1))
            return
        table = Table("step that is trained", "side", "seconds, the first time", "peak, GB", title=title)
        for timing, side, peak in zip(timings, sides, peaks, strict=True):
            table.add_row(str(timing.step.index), side, f"{timing.seconds:.3f}", peak)
        table_console().print(table)
        return
    updates, guidance = loaded.method.fake_updates, loaded.method.guidance != 1.0
    steps = trainer.plan.steps
    scored = trainer.method.score_stage
    passes = [bare.of_iteration(steps, t.step, fake_updates=updates, scored=scored(t.step).index) for t in timings]
    shares = draw_shares(trainer.plan, loaded.method)
    mean = timed.mean_seconds(timings, shares)
    mean_bare = timed.mean_seconds([replace(t, seconds=s) for t, s in zip(timings, passes, strict=True)], shares)
    student = sum(share * step.index for share, step in zip(shares, steps, strict=True))
    calls = timed.evaluations(student, fake_updates=updates, guidance=guidance)
    tdm_calls = timed.public_tdm_evaluations(len(steps), fake_updates=updates, guidance=guidance)
    tdm = bare.of_public_tdm(len(steps), fake_updates=updates)
    if as_json:
        rows = [
            {"step": t.step.index, "seconds": t.seconds, "bare_seconds": s, "peak_bytes": t.peak_bytes}
            for t, s in zip(timings, passes, strict=True)
        ]
        means = {"mean_seconds": mean, "mean_bare_seconds": mean_bare, "evaluations": calls}
        reference = {"evaluations": tdm_calls, "bare_seconds": tdm}
        typer.echo(json.dumps({**facts, **means, "public_tdm": reference, "steps": rows}, indent=1))
        return
    table = Table(title=title)
    for column in ("step that is trained", "side", "seconds an iteration", "bare passes", "over them", "peak, GB"):
        table.add_column(column, justify="right")
    for timing, alone, side, peak in zip(timings, passes, sides, peaks, strict=True):
        over = f"{timing.seconds / alone:.2f}x"
        table.add_row(str(timing.step.index), side, f"{timing.seconds:.3f}", f"{alone:.3f}", over, peak)
    table_console().print(table)
    typer.echo(
        f"{mean:.3f} s an iteration on average over the steps as they are drawn, "
        f"{mean / mean_bare:.2f}x the bare forward and backward passes of its networks"
    )
    typer.echo(
        f"network evaluations per student update: {calls:.4g}; TDM's public schedule makes {tdm_calls:.4g}, all at "
        f"{trainer.plan.stages[-1].size} ({tdm:.3f} s of bare passes): {calls / tdm_calls:.2f} of its evaluations, "
        f"{mean / tdm:.2f} of its time"
    )


def _advance(show: Callable[[str, int, int], None], name: str, numbers: Iterator[int], total: int) -> None:
    show(name, next(numbers), total)
