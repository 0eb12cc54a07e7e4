"""`rmd train --dry-run`: rehearses a run, and prints what it computes, needs and takes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from rmd.bench.memory import recipe_memory
from rmd.bench.training import mean_seconds, time_training
from rmd.common.errors import RMDError
from rmd.data.prompts import read_source
from rmd.methods import Method
from rmd.methods.base import draw_shares
from rmd.recipes.schema import DataConfig, Recipe
from rmd.train.loop import Trainer
from rmd.train.parallel import Parallel
from rmd.train.rehearsal import check_disk, check_pictures, check_prompts, check_student
from rmd.worlds.registry import WORLDS


def rehearse(trainer: Trainer, say: Callable[[str], None]) -> None:
    """Try everything that the run would do, and describe the run in lines; nothing is left behind.

    Iterations are timed, so the trainer's weights change.

    Raises:
        RMDError: something that the run would do fails.
    """
    recipe, parallel = trainer.recipe, trainer.parallel
    student, fake = (sum(p.numel() for p in trainer.roles.trainable(role)) for role in ("student", "fake"))
    say(f"trainable parameters: student {student:,}, fake score {fake:,} (mode {recipe.roles.mode})")
    say(prompts_line(recipe.data))
    say(calls_line(trainer.method))
    say(batch_line(recipe, parallel))
    say(memory_line(recipe, parallel))
    say(check_disk(trainer))
    prompts = check_prompts(trainer)
    say(time_line(trainer))
    _, rollout = trainer.iterate(0)
    check_pictures(trainer, rollout)
    judge = "" if trainer.judge is None else ", the judge called"
    say(f"tried: {prompts}, every step trained, pictures made{judge}; {check_student(trainer)}")
    say(f"{recipe.train.iterations} iterations of batch {recipe.train.batch_size} into {trainer.folder}")


def prompts_line(data: DataConfig) -> str:
    """Return the number of prompts, and what was left out: `120 prompts of p.txt (left out: 3 too long)`."""
    if data.prompts in WORLDS.names():
        return f"prompts: the grammar of {data.prompts}"
    source = read_source(data)
    left_out = ", ".join(f"{count} {reason}" for reason, count in source.left_out.items())
    return f"prompts: {len(source.texts)} of {data.prompts}" + (f" (left out: {left_out})" if left_out else "")


def calls_line(method: Method) -> str:
    """Return the network calls (batches) of one iteration by role: roll-out, the two scores, and the updates.

    The student runs the drawn step and the steps before it.
    """
    shares = draw_shares(method.plan, method.config)
    mean = sum(share * step.index for share, step in zip(shares, method.plan.steps, strict=True))
    both = "" if method.config.guidance == 1.0 else " (with guidance: twice the batch)"
    return (
        f"network calls per iteration: student 1 to {len(method.plan.steps)} ({mean:.4g} on average), "
        f"teacher 1{both}, fake score {1 + method.config.fake_updates}"
    )


def batch_line(recipe: Recipe, parallel: Parallel) -> str:
    """Return how a batch is divided: `batch 32: 8 samples at once, by each of 2 processes, in 2 micro-batches`."""
    micro_batches = recipe.train.gradient_accumulation_steps
    at_once = recipe.train.batch_size // (parallel.dp * micro_batches)
    line = f"batch {recipe.train.batch_size}: {at_once} samples at once"
    if parallel.world > 1:
        line += f", by each of {parallel.world} processes"
    if parallel.cp > 1:
        line += f", {parallel.cp} of which share every sample"
    if micro_batches > 1:
        line += f", in {micro_batches} micro-batches"
    return line


def memory_line(recipe: Recipe, parallel: Parallel) -> str:
    """Return how much memory each GPU needs, estimated as by `rmd plan --memory`."""
    try:
        needed = recipe_memory(recipe, gpus=parallel.world)
    except RMDError as error:
        return f"memory: unknown ({error})"
    return (
        f"memory: about {needed.total / 1e9:.1f} GB on a GPU, of which the {needed.peak.name} takes "
        f"{needed.peak.bytes / 1e9:.1f} (by part: rmd plan --memory)"
    )


def time_line(trainer: Trainer) -> str:
    """Return how long the run would take here, from one timed iteration of every step; the weights change."""
    shares = draw_shares(trainer.plan, trainer.recipe.method)
    seconds = mean_seconds(time_training(trainer, repeats=1), shares)
    total = timedelta(seconds=round(seconds * trainer.recipe.train.iterations))
    return f"time: {seconds:.3g} s per iteration here, {total} in all"
