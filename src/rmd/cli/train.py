"""`rmd train`: distil a recipe's teacher into a few-step student, and save it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, RecipeName, Settings, Variant
from rmd.cli.plan import cost_line
from rmd.cli.quiet import quiet_libraries
from rmd.cli.start import resolved_recipe
from rmd.common.errors import RMDError
from rmd.recipes.schema import Recipe

if TYPE_CHECKING:
    from rmd.cli.progress import ReportProgress
    from rmd.core.plan import StepPlan
    from rmd.train.loop import Trainer
    from rmd.train.parallel import Parallel

Say = Callable[..., None]


@dataclass(frozen=True)
class _Command:
    """The arguments of `rmd train`, and the recipe that they give."""

    name: str
    overrides: list[str]
    recipe: Recipe
    folder: Path
    resume: bool
    reset_optimizer: bool
    threads: int | None
    device: str | None

    def to_resume(self) -> str:
        """Return the command line that resumes the run."""
        changed = [part for override in self.overrides for part in ("--set", override)]
        more = [] if self.threads is None else ["--threads", str(self.threads)]
        more += [] if self.device is None else ["--device", self.device]
        return shlex.join(["rmd", "train", self.name, *changed, "--out", str(self.folder), *more, "--resume"])


RunThreads = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="The number of CPU threads. By default, the recipe sets it, or torch chooses it."
    ),
]


def train(
    recipe: RecipeName,
    set_: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the run. By default, it is runs/ with the recipe's name."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the folder.")
    ] = False,
    reset_optimizer: Annotated[
        bool,
        typer.Option("--reset-optimizer", help="With --resume: load only the weights, and start with new optimisers."),
    ] = False,
    profile: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Record a trace of N iterations in trace.json in the folder, and stop."),
    ] = None,
    threads: RunThreads = None,
    device: Device = None,
    variant: Variant = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Try everything that the run would do, describe the run, and leave nothing behind."
        ),
    ] = False,
) -> None:
    """Distil a recipe's teacher into a few-step student."""
    if reset_optimizer and not resume:
        raise RMDError("--reset-optimizer needs --resume: it continues from the weights of a checkpoint")
    overrides = [*(set_ or ()), *([] if variant is None else [f"variant={variant}"])]
    loaded = resolved_recipe(recipe, overrides)
    quiet_libraries()
    folder = Path("runs") / loaded.name if out is None else out
    command = _Command(recipe, overrides, loaded, folder, resume, reset_optimizer, threads, device)
    from rmd.cli.device import find_device
    from rmd.train.parallel import local_device, processes

    with processes(loaded.parallel, local_device(find_device(device))) as parallel:
        say = typer.echo if parallel.main else _silent
        for warning in loaded.build_plan().warnings():
            say(f"rmd: warning: {warning}", err=True)
        with _claimed_folder(command, parallel, dry_run=dry_run):  # before weights are loaded, which can take minutes
            trainer = prepare(loaded, folder, threads or loaded.train.threads, device, parallel)
            say(f"{loaded.name}: {plan_line(trainer.plan)}")
            _carry_out(command, trainer, say, dry_run=dry_run, profile=profile)


def _claimed_folder(command: _Command, parallel: Parallel, *, dry_run: bool) -> AbstractContextManager[None]:
    """Lock the run's folder for the duration of the block; a dry run checks it without creating anything."""
    from rmd.train.folder import check_folder, hold_folder
    from rmd.train.rehearsal import check_place

    def check() -> None:
        check_folder(command.folder, resume=command.resume)
        check_place(command.folder)

    if not dry_run:
        return hold_folder(command.folder, parallel, resume=command.resume)
    parallel.on_main(check)
    return nullcontext()


def prepare(recipe: Recipe, folder: Path, threads: int | None, device: str | None, parallel: Parallel) -> Trainer:
    """Build the run of a recipe, with its teacher loaded and checked; nothing is written.

    Args:
        threads: number of CPU threads; None leaves torch's choice.
        device: the `--device` option.
        parallel: the place of this process in the run.

    Raises:
        RMDError: as `rmd.train.run.build_run`, or there is no judge for the recipe's prompts.
    """
    from rmd.cli.device import find_device, prepare_cpu
    from rmd.train.loop import Trainer
    from rmd.train.parallel import local_device
    from rmd.train.run import build_run

    if recipe.evaluation.every is not None:
        from rmd.scores.watch import check_evaluation

        check_evaluation(recipe)
    prepare_cpu(threads)
    run = build_run(recipe, folder=folder, parallel=parallel, device=local_device(find_device(device)))
    if recipe.evaluation.every is None:
        return Trainer(run)
    from rmd.report.marks import MarksReport
    from rmd.scores.watch import run_watcher

    run.judge = run_watcher(run)
    return Trainer(run, callbacks=[MarksReport(lambda line: typer.echo(f"rmd: {line}", err=True))])


def _carry_out(command: _Command, trainer: Trainer, say: Say, *, dry_run: bool, profile: int | None) -> None:
    """Rehearse, profile or train, as the command asks."""
    if dry_run:
        from rmd.cli.dry_run import rehearse

        rehearse(trainer, say)
    elif profile is not None:
        _profile(trainer, profile, say)
    else:
        _train(command, trainer, say)


def _train(command: _Command, trainer: Trainer, say: Say) -> None:
    """Train to the end or to a signal, save the student, and say where everything is."""
    from rmd.cli.progress import progress_bar
    from rmd.models.student import save_student
    from rmd.report.marks import CURVE
    from rmd.report.tables import significant
    from rmd.train.checkpoint import checkpoint_name

    folder, total = command.folder, command.recipe.train.iterations
    with progress_bar() as report:
        trainer.on_iteration = _reporter(report, total)
        done = trainer.train(resume=command.resume, reset_optimizers=command.reset_optimizer, is_locked=True)
    if done < total:
        say(f"stopped at iteration {done} of {total}; saved in {folder}, resume with: {command.to_resume()}")
        return
    state = trainer.gathered_student()
    trainer.parallel.on_main(lambda: save_student(trainer.backbone, state, command.recipe, folder / "student"))
    say(f"student: {folder / 'student'} (for diffusers; its plan is in rmd_config.json)")
    if trainer.best is not None:
        at, name, value = trainer.best.iteration, trainer.best.metric, trainer.best.value
        kept = trainer.checkpoint_folder / checkpoint_name(at)
        say(f"best {name}: {significant(value)} at iteration {at}, kept as {kept}, which rmd export accepts")
        say(f"marks: {folder / CURVE}")
    say(f"run: {folder} (metrics.jsonl, pictures, checkpoints); curves: tensorboard --logdir {folder}")


def _profile(trainer: Trainer, count: int, say: Say) -> None:
    """Trace `count` iterations after one to warm up; all processes compute, and the first one writes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = trainer.backbone.device.type == "cuda"
    trainer.iterate(0)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as trace:
        for iteration in range(1, count + 1):
            trainer.iterate(iteration)
        if gpu:
            torch.cuda.synchronize()
    if trainer.parallel.main:
        path = trainer.folder / "trace.json"
        trainer.folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))
        order = "self_device_time_total" if gpu else "self_cpu_time_total"
        say(trace.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=40))
        say(f"trace of {count} iteration{'s' * (count > 1)}: {path} (open it in https://ui.perfetto.dev)")


def plan_line(plan: StepPlan) -> str:
    """Return the cascade and its cost in one line: `32x32 at 1000, 842 -> 64x64 at 500, 250; ...`."""
    stages = [
        f"{plan.stages[stage - 1].size} at {', '.join(f'{step.model_time:.0f}' for step in steps)}"
        for stage, steps in groupby(plan.steps, key=lambda step: step.stage)
    ]
    return f"{' -> '.join(stages)}; {cost_line(plan)}"


def _silent(message: str, *, err: bool = False) -> None:
    """Print nothing: only the first process prints."""


def _reporter(report: ReportProgress, total: int) -> Callable[[int, dict[str, float]], None]:
    """Return a function that shows the progress of the training after each iteration."""
    start: int | None = None

    def show(done: int, values: dict[str, float]) -> None:
        nonlocal start
        start = done - 1 if start is None else start  # a resumed run does not begin at 0
        note = f"student loss {values['student_loss']:.4g}, gap {values['gap']:.4g}, {values['seconds']:.2f} s/it"
        report("training", done, total, note=note, start=start)

    return show
