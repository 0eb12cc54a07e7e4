"""Measures what sampling and training cost, for `rmd bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmd.bench import training
from rmd.bench.training import BarePasses, EncodedTrainer, StepTiming
from rmd.core.plan import build_plan
from rmd.methods.base import draw_shares
from rmd.models import Backbone
from rmd.models.teacher import DTYPES, load_teacher
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress, running_total
from rmd.sample.timing import Timing, time_sampling
from rmd.train.loop import Trainer
from rmd.worlds.registry import world_of_kind


def time_samplers(
    backbone: Backbone, recipe: Recipe, *, batch: int, repeats: int, teacher_steps: int, progress: Progress
) -> list[Timing]:
    """Time a recipe's guided teacher, as many full-resolution steps as its cascade has, and the cascade.

    Args:
        backbone: the recipe's teacher, on the device to measure.
        recipe: the recipe.
        batch: number of pictures that are sampled at once.
        repeats: number of timed repeats after one to warm up.
        teacher_steps: the teacher's sampling steps.
        progress: called with the name of a row, the number of repeats that are done, and their total.
    """
    cascade, full = recipe.build_plan(), recipe.build_plan().stages[-1]
    steps = len(cascade.steps)

    def plain(number: int) -> Any:
        return build_plan(backbone.schedule, steps=number, sides=[(full.height, full.width)], thresholds=[])

    rows = (
        (f"teacher, {teacher_steps} steps", plain(teacher_steps), recipe.method.guidance),
        (f"{steps} full-resolution steps", plain(steps), 1.0),
        ("RMD cascade", cascade, 1.0),
    )
    prompts = world_of_kind(moving=False).captions(batch, seed=0, training=False)
    return [
        time_sampling(
            name, backbone, backbone.denoiser, plan, prompts, repeats=repeats, guidance=guidance,
            progress=running_total(progress, name, repeats + 1),
        )
        for name, plan, guidance in rows
    ]  # fmt: skip


@dataclass(frozen=True)
class StepCost:
    """The cost of an iteration that trains a step of a stage of a given size.

    Attributes:
        timing: its seconds, and on a GPU its memory.
        size: the size of the step's stage.
        share: the share of all iterations that train this step.
        passes: the seconds of its bare forward and backward passes; None if these were not timed.
    """

    timing: StepTiming
    size: str
    share: float
    passes: float | None


@dataclass(frozen=True)
class TrainingCosts:
    """The cost of a recipe's iterations on one device, also compared with TDM's public schedule.

    Attributes:
        facts: the recipe's name, the device, whether the weights are random, and the batch size.
        steps: the costs of each step of the plan.
        evaluations: network evaluations per student update.
        tdm_evaluations: those of TDM's public schedule.
        tdm_seconds: the seconds of the bare passes of TDM's public schedule; None if these were not timed.
    """

    facts: dict[str, Any]
    steps: Sequence[StepCost]
    evaluations: float
    tdm_evaluations: float
    tdm_seconds: float | None

    @property
    def mean_seconds(self) -> float:
        """Mean seconds of an iteration over the steps as they are drawn."""
        return sum(step.share * step.timing.seconds for step in self.steps)

    @property
    def mean_passes(self) -> float:
        """Mean seconds of the bare passes of an iteration over the steps as they are drawn."""
        return sum(step.share * (step.passes or 0.0) for step in self.steps)

    def values(self) -> dict[str, Any]:
        """Return the costs as JSON values."""
        rows = [
            {
                "step": step.timing.step.index,
                "seconds": step.timing.seconds,
                **({} if step.passes is None else {"bare_seconds": step.passes}),
                "peak_bytes": step.timing.peak_bytes,
            }
            for step in self.steps
        ]
        if self.tdm_seconds is None:
            return {**self.facts, "steps": rows}
        means = {"mean_seconds": self.mean_seconds, "mean_bare_seconds": self.mean_passes}
        reference = {"evaluations": self.tdm_evaluations, "bare_seconds": self.tdm_seconds}
        return {**self.facts, **means, "evaluations": self.evaluations, "public_tdm": reference, "steps": rows}


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


def training_costs(trainer: Trainer, *, repeats: int, progress: Progress) -> TrainingCosts:
    """Time real training iterations of every step, and on a GPU measure their memory; the trainer's weights change.

    Args:
        trainer: the trainer (`bench_trainer`).
        repeats: number of timed iterations per step after one to warm up; 0: only the warm-up, to measure memory.
        progress: called with a name, the number of iterations that are done, and their total.
    """
    recipe, steps, method = trainer.recipe, trainer.plan.steps, trainer.method
    updates, guidance = recipe.method.fake_updates, recipe.method.guidance != 1.0
    shares, fake_first = draw_shares(trainer.plan, recipe.method), recipe.method.order == "fake_first"
    advance = running_total(progress, "iterations", len(steps) * (repeats + 1))
    bare: BarePasses | None = None
    if repeats:
        timings, bare = training.time_in_turn(trainer, repeats=repeats, progress=advance)
    else:
        timings = training.time_training(trainer, repeats=0, progress=advance)

    def passes(timing: StepTiming) -> float | None:
        if bare is None:
            return None
        own = bare.of_own_samples(steps, shares) if fake_first else 0.0
        return own + sum(
            share * bare.of_iteration(steps, timing.step, fake_updates=updates, scored=stage.index)
            for stage, share in method.score_stages(timing.step).items()
        )

    device = trainer.backbone.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    untrained = isinstance(trainer, EncodedTrainer)
    student = sum(share * step.index for share, step in zip(shares, steps, strict=True))
    return TrainingCosts(
        facts={"recipe": recipe.name, "device": name, "untrained": untrained, "batch": recipe.train.batch_size},
        steps=[
            StepCost(timing, trainer.plan.stage_of(timing.step).size, share, passes(timing))
            for timing, share in zip(timings, shares, strict=True)
        ],
        evaluations=training.evaluations(
            student, fake_updates=updates, branches=recipe.method.teacher_branches, fake_first=fake_first
        ),
        tdm_evaluations=training.public_tdm_evaluations(len(steps), fake_updates=updates, guidance=guidance),
        tdm_seconds=None if bare is None else bare.of_public_tdm(len(steps), fake_updates=updates),
    )
