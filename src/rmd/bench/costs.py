"""Measures what sampling and training cost, for `rmd bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from rmd.bench import training
from rmd.bench.training import BarePasses, EncodedTrainer, StepTiming
from rmd.core.plan import build_plan
from rmd.data.prompts import scene_captions
from rmd.methods.base import draw_shares
from rmd.models import Backbone
from rmd.models.teacher import DTYPES, load_teacher
from rmd.recipes.schema import Recipe
from rmd.sample.timing import Timing, time_sampling
from rmd.train.loop import Trainer

Progress = Callable[[str, int, int], None]
"""Called with the name of a piece of work, how much of it is done, and its total."""


def time_samplers(
    backbone: Backbone, recipe: Recipe, *, batch: int, repeats: int, teacher_steps: int, progress: Progress
) -> list[Timing]:
    """Time a recipe's cascade, its guided teacher, and as many full-resolution steps as the cascade has.

    Args:
        backbone: the recipe's teacher, on the device to measure.
        recipe: the recipe.
        batch: number of pictures that are sampled at once.
        repeats: number of timed repeats after one to warm up.
        teacher_steps: the teacher's sampling steps.
        progress: called with the name of a row, the number of repeats that are done, and their total.

    Returns:
        The timings of the teacher, of the full-resolution steps, and of the cascade.
    """
    plan, schedule = recipe.build_plan(), backbone.schedule
    full = [(plan.stages[-1].height, plan.stages[-1].width)]
    steps = len(plan.steps)
    rows = [
        (f"teacher, {teacher_steps} steps", teacher_steps, recipe.method.guidance),
        (f"{steps} full-resolution steps", steps, 1.0),
        ("RMD cascade", None, 1.0),
    ]
    prompts = scene_captions(batch, seed=0, training=False)
    timings = []
    for name, full_steps, guidance in rows:
        of_row = plan if full_steps is None else build_plan(schedule, steps=full_steps, sides=full, thresholds=[])
        timings.append(
            time_sampling(
                name, backbone, backbone.denoiser, of_row, prompts,
                repeats=repeats, guidance=guidance, progress=_counted(progress, name, repeats + 1),
            )
        )  # fmt: skip
    return timings


def timing_values(timing: Timing) -> dict[str, Any]:
    """Return a timing as JSON values."""
    return {**asdict(timing), "overhead": timing.overhead}


@dataclass(frozen=True)
class TrainingCosts:
    """What the iterations of a recipe cost on one device.

    Attributes:
        recipe: the recipe.
        device: the name of the device.
        untrained: whether the weights are random.
        sizes: the size of the stage of each step.
        timings: the seconds and memory of an iteration that trains each step.
        passes: the seconds of the bare forward and backward passes of each of these iterations; None if only the
            warm-up was run, to measure memory.
        shares: the share of iterations that train each step.
        evaluations: network evaluations per student update.
        tdm_evaluations: those of TDM's public schedule.
        tdm_seconds: the seconds of the bare passes of TDM's public schedule; None without `passes`.
    """

    recipe: Recipe
    device: str
    untrained: bool
    sizes: tuple[str, ...]
    timings: tuple[StepTiming, ...]
    passes: tuple[float, ...] | None
    shares: tuple[float, ...]
    evaluations: float
    tdm_evaluations: float
    tdm_seconds: float | None

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of an iteration over the steps as they are drawn."""
        return training.mean_seconds(self.timings, self.shares)

    @property
    def mean_passes(self) -> float:
        """Mean seconds of the bare passes of an iteration over the steps as they are drawn."""
        passes = self.passes or ()
        bare = [replace(timing, seconds=seconds) for timing, seconds in zip(self.timings, passes, strict=True)]
        return training.mean_seconds(bare, self.shares)

    def values(self) -> dict[str, Any]:
        """Return the costs as JSON values."""
        batch = self.recipe.train.batch_size
        facts = {"recipe": self.recipe.name, "device": self.device, "untrained": self.untrained, "batch": batch}
        rows = [{"step": t.step.index, "seconds": t.seconds, "peak_bytes": t.peak_bytes} for t in self.timings]
        if self.passes is None:
            return {**facts, "steps": rows}
        steps = [
            {"step": row["step"], "seconds": row["seconds"], "bare_seconds": bare, "peak_bytes": row["peak_bytes"]}
            for row, bare in zip(rows, self.passes, strict=True)
        ]
        return {
            **facts,
            "mean_seconds": self.mean_seconds,
            "mean_bare_seconds": self.mean_passes,
            "evaluations": self.evaluations,
            "public_tdm": {"evaluations": self.tdm_evaluations, "bare_seconds": self.tdm_seconds},
            "steps": steps,
        }


def bench_trainer(recipe: Recipe, device: torch.device, *, untrained: bool) -> Trainer:
    """Return a trainer of a recipe on a device, which writes nothing.

    Args:
        recipe: the recipe.
        device: the device to measure.
        untrained: whether to use random weights in the architecture of the recipe's teacher, and random encodings.

    Raises:
        RMDError: the teacher cannot be loaded, or its architecture is unknown.
    """
    if untrained:
        backbone, architecture = training.untrained(recipe, device=device, dtype=DTYPES[recipe.train.dtype])
        backbone.computes_on(device)
        return EncodedTrainer(recipe, backbone, architecture)
    backbone = load_teacher(recipe)
    backbone.pipe.to(device)
    backbone.computes_on(device)
    return Trainer(recipe, backbone, Path("unused"))


def training_costs(trainer: Trainer, *, untrained: bool, repeats: int, progress: Progress) -> TrainingCosts:
    """Time real training iterations of every step, and on a GPU measure their memory; the trainer's weights change.

    Args:
        trainer: the trainer (`bench_trainer`).
        untrained: whether its weights are random.
        repeats: number of timed iterations per step after one to warm up; 0: only the warm-up, to measure memory.
        progress: called with a name, the number of iterations that are done, and their total.
    """
    recipe, plan, method = trainer.recipe, trainer.plan, trainer.method
    advance = _counted(progress, "iterations", len(plan.steps) * (repeats + 1))
    bare: BarePasses | None = None
    if repeats:
        timings, bare = training.time_in_turn(trainer, repeats=repeats, progress=advance)
    else:
        timings = training.time_training(trainer, repeats=0, progress=advance)
    updates, guidance = recipe.method.fake_updates, recipe.method.guidance != 1.0
    shares = draw_shares(plan, recipe.method)
    student = sum(share * step.index for share, step in zip(shares, plan.steps, strict=True))
    device = trainer.backbone.device
    return TrainingCosts(
        recipe=recipe,
        device=_name_of(device),
        untrained=untrained,
        sizes=tuple(plan.stage_of(timing.step).size for timing in timings),
        timings=tuple(timings),
        passes=None if bare is None else tuple(
            bare.of_iteration(plan.steps, t.step, fake_updates=updates, scored=method.score_stage(t.step).index)
            for t in timings
        ),
        shares=tuple(shares),
        evaluations=training.evaluations(student, fake_updates=updates, guidance=guidance),
        tdm_evaluations=training.public_tdm_evaluations(len(plan.steps), fake_updates=updates, guidance=guidance),
        tdm_seconds=None if bare is None else bare.of_public_tdm(len(plan.steps), fake_updates=updates),
    )  # fmt: skip


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _counted(progress: Progress, name: str, total: int) -> Callable[[], None]:
    """Return a function that reports one more unit of work each time it is called."""
    numbers = count(1)
    return lambda: progress(name, next(numbers), total)
