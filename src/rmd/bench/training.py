"""Times training iterations and measures their memory: on a recipe's teacher, or on its architecture without weights.

Without weights everything but the numbers is as in a run: the full-size network, the recipe's roles, plan, losses and
optimisers. Prompts are random numbers in the shape of encoded ones, and the VAE and text encoders stay out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from rmd.common.errors import RMDError
from rmd.core.plan import Stage, Step
from rmd.core.randomness import generator
from rmd.models.base import Architecture, Backbone, Cond, Conditioning
from rmd.models.registry import family_class
from rmd.models.resolve import teacher_source
from rmd.models.roles import Role
from rmd.models.untrained import architecture_of, untrained_backbone
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise
from rmd.sample.timing import wait_for
from rmd.train.loop import Trainer


@dataclass(frozen=True)
class StepTiming:
    """Iterations that train one step of the plan: the median of their seconds, and their memory."""

    step: Step
    seconds: float
    peak_bytes: int | None
    """The most that torch held on the GPU; None on a CPU."""


@dataclass(frozen=True)
class BarePasses:
    """Seconds of the networks alone, for the batch of an iteration: forward, and forward with backward, by stage.

    `guided` is the forward pass of both guidance branches, or of one where there is no guidance. Without adapters,
    roll-outs and teacher need nothing else; what an iteration takes beyond these passes is overhead.
    """

    forward: Mapping[int, float]
    trained: Mapping[int, float]
    guided: Mapping[int, float]

    def of_iteration(self, steps: Sequence[Step], step: Step, *, fake_updates: int, scored: int) -> float:
        """An iteration that trains a step: the steps before it, that step, teacher and fake score, and the updates.

        Args:
            scored: the stage at which teacher and fake score look at the step's sample.
        """
        before = sum(self.forward[other.stage] for other in steps if other.index < step.index)
        scores = self.guided[scored] + self.forward[scored] + fake_updates * self.trained[scored]
        return before + self.trained[step.stage] + scores

    def of_public_tdm(self, steps: int, *, fake_updates: int) -> float:
        """TDM's public schedule at the last stage: every step rolled out, and the teacher asked for each update."""
        last = max(self.forward)
        updates = fake_updates * (self.trained[last] + self.guided[last])
        return steps * self.forward[last] + self.trained[last] + self.guided[last] + self.forward[last] + updates


def evaluations(mean_student: float, *, fake_updates: int, guidance: bool, adversarial: bool = False) -> float:
    """Network evaluations of a sample in an iteration, the branches of guidance counted one by one.

    DMD2's adversarial losses look at the student's sample once more in every update, and at a real one in the fake
    score's.
    """
    updates = 1 + 3 * fake_updates if adversarial else fake_updates
    return mean_student + (2 if guidance else 1) + 1 + updates


def public_tdm_evaluations(steps: int, *, fake_updates: int, guidance: bool) -> float:
    """As `evaluations`, of TDM's public schedule: a whole roll-out, and a teacher's reading for every fake update."""
    teacher = 2 if guidance else 1
    return steps + 1 + teacher + 1 + fake_updates * (1 + teacher)


class EncodedTrainer(Trainer):
    """A run whose prompts are random numbers in the shape of encoded ones."""

    def __init__(self, recipe: Recipe, backbone: Backbone, architecture: Architecture) -> None:
        super().__init__(recipe, backbone, Path("unused"))
        self.architecture = architecture

    def encoded(self, texts: Sequence[str], iteration: int) -> tuple[Cond, Cond]:
        cond, null = (self._cond(len(texts), iteration, purpose) for purpose in ("cond", "null"))
        return cond, null

    def _cond(self, count: int, iteration: int, purpose: str) -> Cond:
        g = generator(self.recipe.train.seed, "encoded", purpose, iteration)
        shapes = self.backbone.cond_shapes(self.architecture)
        drawn = {name: torch.randn(count, *shape, generator=g) for name, shape in shapes.items()}
        if "mask" in drawn:
            drawn["mask"] = torch.ones_like(drawn["mask"])
        dtype = next(self.backbone.denoiser.parameters()).dtype
        return Cond(drawn).to(self.backbone.device, dtype)


def untrained(recipe: Recipe, *, device: torch.device, dtype: torch.dtype) -> tuple[Backbone, Architecture]:
    """A backbone of a recipe's architecture with random weights, and without text encoders.

    Raises:
        RMDError: nothing is known of the architecture of the recipe's teacher.
    """
    family = family_class(recipe.family)
    architecture = architecture_of(teacher_source(recipe.teacher), family)
    conditioning = Conditioning(**recipe.conditioning.model_dump())
    backbone = untrained_backbone(
        family, architecture, scheduler=_scheduler(recipe), device=device, dtype=dtype, conditioning=conditioning
    )
    return backbone, architecture


def _scheduler(recipe: Recipe) -> Any:
    """Return a diffusers scheduler with a recipe's noise."""
    if isinstance(recipe.noise, FlowNoise):
        return FlowMatchEulerDiscreteScheduler(**recipe.noise.model_dump(exclude={"kind"}))
    if isinstance(recipe.noise, VPNoise):
        # Where no signal is left at the start, only v-prediction determines a clean sample.
        prediction = "v_prediction" if recipe.noise.rescale_betas_zero_snr else "epsilon"
        return DDIMScheduler(**recipe.noise.model_dump(exclude={"kind"}), prediction_type=prediction)
    raise RMDError("without a teacher at hand its noise is not known: give the recipe's noise")


def time_training(trainer: Trainer, *, repeats: int, progress: Callable[[], None] | None = None) -> list[StepTiming]:
    """Run real iterations, `repeats` and one to warm up for every step of the plan, and measure them.

    The trainer's weights change. Without repeats the seconds are those of the warm-up, which takes longer.
    """
    found = []
    for step in trainer.plan.steps:
        seconds = []
        device = trainer.backbone.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for iteration in _iterations(trainer, step, repeats + 1):
            wait_for(device)
            began = time.perf_counter()
            trainer.iterate(iteration)
            wait_for(device)
            seconds.append(time.perf_counter() - began)
            if progress is not None:
                progress()
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        found.append(StepTiming(step, median(seconds[1:] or seconds), peak))
    return found


def time_passes(trainer: Trainer, *, repeats: int) -> BarePasses:
    """Time the bare passes of a trainer's iterations; gradients are dropped.

    Medians of `repeats` after one to warm up; without repeats, that one.

    Roll-outs are timed with the teacher's network, so that what adapters cost there shows as overhead.
    """
    backbone, method = trainer.backbone, trainer.method
    guided = method.config.guidance != 1.0
    batches = trainer.batches(0)

    def run(role: Role, stage: Stage, *, train: bool, both: bool = False) -> float:
        taken = []
        for _ in range(repeats + 1):
            trainer.roles.zero_grad()
            seconds = 0.0
            for batch in batches:
                cond = Cond.cat([batch.cond, batch.null]) if both else batch.cond
                shape = method.latent_shape(len(cond), stage)
                x = torch.randn(shape, generator=generator(0, "bare")).to(backbone.device)
                t = torch.full((len(cond),), 500.0, device=backbone.device)
                kwargs = backbone.stage_cond(cond, stage, method.final)
                wait_for(backbone.device)
                began = time.perf_counter()
                with trainer.roles.use(role) as network, torch.set_grad_enabled(train):
                    output = backbone.forward(network, x, t, kwargs)
                    if train:
                        output.float().square().mean().backward()
                wait_for(backbone.device)
                seconds += time.perf_counter() - began
            taken.append(seconds)
        trainer.roles.zero_grad()
        return median(taken[1:] or taken)

    stages = trainer.plan.stages
    return BarePasses(
        {stage.index: run("teacher", stage, train=False) for stage in stages},
        {stage.index: run("student", stage, train=True) for stage in stages},
        {stage.index: run("teacher", stage, train=False, both=guided) for stage in stages},
    )


def time_in_turn(
    trainer: Trainer, *, repeats: int, progress: Callable[[], None] | None = None
) -> tuple[list[StepTiming], BarePasses]:
    """Iterations and bare passes in rounds, `repeats` and one to warm up: a machine that slows down does so for both.

    Medians over the rounds; of the memory, the most.
    """
    rounds = [
        (time_training(trainer, repeats=0, progress=progress), time_passes(trainer, repeats=0))
        for _ in range(repeats + 1)
    ]
    steps = zip(*(timings for timings, _ in rounds), strict=True)
    found = [
        StepTiming(
            of_step[0].step,
            median(timing.seconds for timing in of_step[1:]),
            max((timing.peak_bytes for timing in of_step if timing.peak_bytes is not None), default=None),
        )
        for of_step in steps
    ]

    def middle(kind: str) -> dict[int, float]:
        values = [getattr(passes, kind) for _, passes in rounds[1:]]
        return {stage: median(value[stage] for value in values) for stage in values[0]}

    return found, BarePasses(middle("forward"), middle("trained"), middle("guided"))


def mean_seconds(timings: Sequence[StepTiming], shares: Sequence[float]) -> float:
    """Seconds of an iteration on average over the steps as they are drawn (`rmd.methods.base.draw_shares`)."""
    return sum(share * timing.seconds for share, timing in zip(shares, timings, strict=True))


def _iterations(trainer: Trainer, step: Step, count: int) -> list[int]:
    """The first iterations after the warm-up that draw a step."""
    found: list[int] = []
    iteration = trainer.recipe.method.warmup_steps
    while len(found) < count:
        if trainer.method.draw_step(iteration) == step:
            found.append(iteration)
        iteration += 1
    return found
