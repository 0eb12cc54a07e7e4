"""`rmd train`: distil a recipe's teacher into a few-step student, and save it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmd.cli.options import Device, Variant
from rmd.cli.plan import cost_line
from rmd.cli.quiet import quiet_libraries
from rmd.common.errors import RMDError
from rmd.recipes.schema import DataConfig, Recipe, load_recipe

if TYPE_CHECKING:
    from rmd.cli.progress import ReportProgress
    from rmd.core.plan import StepPlan
    from rmd.methods import Method
    from rmd.train.loop import Trainer
    from rmd.train.parallel import Parallel

OnIteration = Callable[[int, dict[str, float]], None]


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe, or the path of a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run. By default: runs/<recipe's name>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    reset_optimizer: Annotated[
        bool,
        typer.Option("--reset-optimizer", help="With --resume: go on from the weights alone, with new optimisers."),
    ] = False,
    profile: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Trace N iterations into the folder's trace.json, and train no further."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. By default: the recipe's, or torch's own choice.")
    ] = None,
    device: Device = None,
    variant: Variant = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what the run would be, and write nothing.")
    ] = False,
) -> None:
    """Distil a recipe's teacher into a few-step student."""
    if reset_optimizer and not resume:
        raise RMDError("--reset-optimizer goes with --resume: it goes on from a checkpoint's weights")
    overrides = [*(set_ or ()), *([] if variant is None else [f"variant={variant}"])]
    loaded = load_recipe(recipe, overrides)
    quiet_libraries()
    if isinstance(loaded.noise, str):
        from rmd.models.resolve import resolve_noise

        loaded = resolve_noise(loaded)
    folder = Path("runs") / loaded.name if out is None else out
    plan = loaded.build_plan()
    from rmd.cli.device import find_device
    from rmd.train.folder import hold_folder
    from rmd.train.parallel import local_device, processes

    with ExitStack() as held, processes(loaded.parallel, local_device(find_device(device))) as parallel:
        say = typer.echo if parallel.main else _silent
        for warning in plan.warnings():
            say(f"rmd: warning: {warning}", err=True)
        if dry_run:
            parallel.on_main(lambda: _check_unlocked(folder, resume=resume))
        else:  # before weights are loaded, which can take minutes
            held.enter_context(hold_folder(folder, parallel, resume=resume))
        trainer = _trainer(loaded, folder, threads or loaded.train.threads, device, parallel)
        say(f"{loaded.name}: {plan_line(plan)}")
        if dry_run:
            _dry_run(trainer, say)
            return
        if profile is not None:
            _profile(trainer, profile)
            return
        from rmd.cli.progress import progress_bar

        total = loaded.train.iterations
        with progress_bar() as report:
            trainer.on_iteration = _reporter(report, total)
            done = trainer.train(resume=resume, reset_optimizers=reset_optimizer, is_locked=True)
        if done < total:
            command = _resume_command(recipe, overrides, folder, threads, device)
            say(f"stopped at iteration {done} of {total}; it is saved in {folder}, go on with: {command}")
            return
        from rmd.models.student import save_student
        from rmd.train.checkpoint import checkpoint_name

        state = trainer.gathered_student()
        parallel.on_main(lambda: save_student(trainer.backbone, state, loaded, folder / "student"))
        say(f"student: {folder / 'student'} (for diffusers; its plan is in rmd_config.json)")
        if trainer.best is not None:
            at, right = trainer.best.iteration, trainer.best.right
            best = trainer.checkpoint_folder / checkpoint_name(at)
            say(f"best by the judge: iteration {at} ({right:.0%} right), kept as {best}, which rmd export takes")
        say(f"run: {folder} (metrics.jsonl, pictures, checkpoints); curves: tensorboard --logdir {folder}")


def _silent(message: str, *, err: bool = False) -> None:
    """What the other processes say instead of the first one."""


def _check_unlocked(folder: Path, *, resume: bool) -> None:
    """Check a run's folder as `hold_folder` does, without creating anything."""
    from rmd.train.folder import check_folder
    from rmd.train.rehearsal import check_place

    check_folder(folder, resume=resume)
    check_place(folder)


def plan_line(plan: StepPlan) -> str:
    """The cascade in one line: `32x32 at 1000, 842 -> 64x64 at 500, 250; ` and its cost."""
    stages = [
        f"{plan.stages[stage - 1].size} at {', '.join(f'{step.model_time:.0f}' for step in steps)}"
        for stage, steps in groupby(plan.steps, key=lambda step: step.stage)
    ]
    return f"{' -> '.join(stages)}; {cost_line(plan)}"


def prompts_line(data: DataConfig) -> str:
    """How many prompts there are, and what was left out: `120 prompts of p.txt (left out: 3 too long)`."""
    from rmd.data.prompts import source_of
    from rmd.data.sources import read_source
    from rmd.worlds.registry import WORLDS

    if data.prompts in WORLDS.names():
        return f"prompts: the grammar of {data.prompts}"
    found = read_source(source_of(data))
    left = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    return f"prompts: {len(found.texts)} of {data.prompts}" + (f" (left out: {left})" if left else "")


def calls_line(method: Method) -> str:
    """Network calls (batches) of one iteration by role: what the roll-out, the two scores and the updates take.

    The student runs the steps before the drawn one and that one.
    """
    from rmd.methods.base import draw_shares

    shares = draw_shares(method.plan, method.config)
    mean = sum(share * step.index for share, step in zip(shares, method.plan.steps, strict=True))
    both = "" if method.config.guidance == 1.0 else " (with guidance: twice the batch)"
    return (
        f"network calls per iteration: student 1 to {len(method.plan.steps)} ({mean:.4g} on average), "
        f"teacher 1{both}, fake {1 + method.config.fake_updates}"
    )


def _trainer(recipe: Recipe, folder: Path, threads: int | None, device: str | None, parallel: Parallel) -> Trainer:
    """The run with its teacher loaded and checked; writes nothing."""
    import torch

    from rmd.cli.device import find_device, prepare_cpu
    from rmd.data.prompts import load_prompts
    from rmd.models.teacher import load_teacher
    from rmd.train.loop import Trainer
    from rmd.train.parallel import local_device
    from rmd.train.tracking import service_module
    from rmd.train.weights import load_spread_teacher
    from rmd.worlds.registry import WORLDS

    if recipe.evaluation.every is not None and recipe.data.prompts not in WORLDS.names():
        judged = " or ".join(WORLDS.names())
        raise RMDError(
            f"evaluation.every needs a judge, but prompts of {recipe.data.prompts} have none: use those of {judged}, "
            "or leave it out"
        )
    for service in recipe.train.loggers:
        service_module(service)
    prepare_cpu(threads)
    where = local_device(find_device(device))
    load_prompts(recipe.data, seed=recipe.train.seed)  # a wrong file is reported before weights are loaded
    if parallel.world == 1:
        backbone, weights = load_teacher(recipe), None
    else:
        backbone, weights = load_spread_teacher(recipe)
    stay = [] if weights is None else [backbone.denoiser]  # which is moved while it is spread
    if recipe.data.offload or recipe.data.cache is not None:
        stay += backbone.text_encoders
    for part in backbone.pipe.components.values():
        if isinstance(part, torch.nn.Module) and part not in stay:
            part.to(where)
    backbone.computes_on(where)
    trainer = Trainer(recipe, backbone, folder, parallel=parallel, weights=weights)
    if recipe.evaluation.every is not None:
        from rmd.evaluate.watch import student_watcher

        trainer.judge = student_watcher(
            WORLDS.get(recipe.data.prompts), backbone, trainer.plan,
            samples=recipe.evaluation.samples, seed=recipe.train.seed,
        )  # fmt: skip
    return trainer


def _dry_run(trainer: Trainer, say: Callable[[str], None]) -> None:
    """Try everything that a run would do, and print what it would do, need and take; nothing is left behind.

    Iterations are measured, so the trainer's weights change.
    """
    from rmd.train.rehearsal import check_disk, check_pictures, check_prompts, check_student

    recipe, parallel = trainer.recipe, trainer.parallel
    trainable = {role: sum(p.numel() for p in trainer.roles.trainable(role)) for role in ("student", "fake")}
    say(
        f"trainable parameters: student {trainable['student']:,}, fake {trainable['fake']:,} (mode {recipe.roles.mode})"
    )
    say(prompts_line(recipe.data))
    say(calls_line(trainer.method))
    say(batch_line(recipe, parallel))
    say(memory_line(recipe, parallel))
    say(check_disk(trainer))
    prompts = check_prompts(trainer)
    say(time_line(trainer))
    _, rollout = trainer.iterate(0)
    check_pictures(trainer, rollout)
    judge = "" if trainer.judge is None else ", the judge asked"
    say(f"tried: {prompts}, every step trained, pictures made{judge}; {check_student(trainer)}")
    say(f"{recipe.train.iterations} iterations of batch {recipe.train.batch_size} into {trainer.folder}")


def batch_line(recipe: Recipe, parallel: Parallel) -> str:
    """`batch 32: 8 samples at once, by each of 2 processes, in 2 micro-batches`."""
    at_once = recipe.train.batch_size // (parallel.parts * recipe.train.gradient_accumulation_steps)
    who = "" if parallel.world == 1 else f", by each of {parallel.world} processes"
    who += "" if parallel.context_parallel == 1 else f", {parallel.context_parallel} of which share every sample"
    micro = (
        ""
        if recipe.train.gradient_accumulation_steps == 1
        else f", in {recipe.train.gradient_accumulation_steps} micro-batches"
    )
    return f"batch {recipe.train.batch_size}: {at_once} samples at once{who}{micro}"


def memory_line(recipe: Recipe, parallel: Parallel) -> str:
    """What each GPU would hold, by the arithmetic of `rmd plan --memory`."""
    from rmd.bench.memory import recipe_memory

    try:
        ways = recipe_memory(recipe, recipe.build_plan())
    except RMDError as error:
        return f"memory: not known ({error})"
    (way,) = (way for way in ways if way.mode.startswith(recipe.roles.mode))
    samples = recipe.train.batch_size / (
        parallel.parts * parallel.context_parallel * recipe.train.gradient_accumulation_steps
    )
    gpus = parallel.world // recipe.parallel.dp_replicate
    needed = way.per_gpu(gpus, recompute=recipe.train.gradient_checkpointing, samples=samples) / 1e9
    return f"memory: about {needed:.1f} GB on a GPU in bfloat16, without the text encoders (see rmd plan --memory)"


def time_line(trainer: Trainer) -> str:
    """How long the run would take here, by one iteration of every step; the trainer's weights change."""
    from rmd.bench.training import mean_seconds, time_training
    from rmd.methods.base import draw_shares

    shares = draw_shares(trainer.plan, trainer.recipe.method)
    seconds = mean_seconds(time_training(trainer, repeats=1), shares)
    total = timedelta(seconds=round(seconds * trainer.recipe.train.iterations))
    return f"time: {seconds:.3g} s an iteration here, {total} in all"


def _profile(trainer: Trainer, count: int) -> None:
    """Trace iterations after one to warm up; all processes compute, the first writes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = trainer.backbone.device.type == "cuda"
    trainer.iterate(0)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        for iteration in range(1, count + 1):
            trainer.iterate(iteration)
        if gpu:
            torch.cuda.synchronize()
    if trainer.parallel.main:
        path = trainer.folder / "trace.json"
        trainer.folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(path))
        order = "self_device_time_total" if gpu else "self_cpu_time_total"
        typer.echo(found.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=40))
        typer.echo(f"trace of {count} iterations: {path} (open it in https://ui.perfetto.dev)")


def _resume_command(
    recipe: str, overrides: Sequence[str], folder: Path, threads: int | None, device: str | None
) -> str:
    changed = [part for override in overrides for part in ("--set", override)]
    more = [] if threads is None else ["--threads", str(threads)]
    more += [] if device is None else ["--device", device]
    return shlex.join(["rmd", "train", recipe, *changed, "--out", str(folder), *more, "--resume"])


def _reporter(report: ReportProgress, total: int) -> OnIteration:
    """What is shown after every iteration."""
    start: int | None = None

    def show(done: int, values: dict[str, float]) -> None:
        nonlocal start
        start = done - 1 if start is None else start  # a resumed run does not begin at 0
        report("training", done, total, note=_numbers(values), start=start)

    return show


def _numbers(values: dict[str, float]) -> str:
    return f"student loss {values['student_loss']:.4g}, gap {values['gap']:.4g}, {values['seconds']:.2f} s/it"
