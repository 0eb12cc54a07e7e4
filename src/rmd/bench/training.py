"""Times training iterations and measures their memory, with a recipe's teacher or with its architecture alone.

Without the teacher's weights, everything but the values is as in a run: the full-size network, the recipe's roles,
plan, losses and optimisers. Random numbers in the shape of encoded prompts take their place, the VAE is a tiny one, and
there are no text encoders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from statistics import median

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from rmd.common.errors import RMDError
from rmd.core.plan import Stage, Step
from rmd.core.randomness import generator
from rmd.models.base import Architecture, Backbone, Conditioning
from rmd.models.cond import Cond
from rmd.models.registry import family_class
from rmd.models.resolve import teacher_source
from rmd.models.roles import Role
from rmd.models.untrained import architecture_of, untrained_backbone
from rmd.recipes.methods import CascadeConfig
from rmd.recipes.schema import FlowNoise, Recipe, VPNoise
from rmd.sample.timing import wait_for
from rmd.train.loop import Trainer
from rmd.train.run import Run, build_run


@dataclass(frozen=True)
class StepTiming:
    """The cost of iterations that train one step of the plan."""

    step: Step
    seconds: float
    """Median seconds of an iteration."""
    peak_bytes: int | None
    """Peak memory that torch allocated on the GPU; None on a CPU."""


@dataclass(frozen=True)
class BarePasses:
    """Seconds of the networks alone for the batch of an iteration, by stage.

    Roll-outs and the teacher need no more than these passes, so what an iteration takes beyond them is overhead.
    """

    forward: Mapping[int, float]
    """A forward pass, without adapters."""
    trained: Mapping[int, float]
    """A forward and a backward pass of the student."""
    guided: Mapping[int, float]
    """A forward pass of both guidance branches, or of one without guidance."""

    def of_iteration(self, steps: Sequence[Step], step: Step, *, fake_updates: int, scored: int) -> float:
        """Return the seconds of the passes of an iteration: roll-out, trained step, both scores, and fake updates.

        Args:
            steps: all steps of the plan.
            step: the step that is trained.
            fake_updates: number of the fake score's updates.
            scored: index of the stage at which teacher and fake score see the step's sample.
        """
        before = sum(self.forward[other.stage] for other in steps if other.index < step.index)
        scores = self.guided[scored] + self.forward[scored] + fake_updates * self.trained[scored]
        return before + self.trained[step.stage] + scores

    def of_own_samples(self, steps: Sequence[Step], shares: Sequence[float]) -> float:
        """Return the mean seconds of the passes of the fake score's own roll-out (`method.order` fake_first).

        Args:
            steps: all steps of the plan.
            shares: the share of the draws that each step has.
        """
        through = accumulate(self.forward[step.stage] for step in steps)
        return sum(share * seconds for share, seconds in zip(shares, through, strict=True))

    def of_public_tdm(self, steps: int, *, fake_updates: int) -> float:
        """Return the seconds of the passes of TDM's public schedule, all at the last stage.

        It rolls out every step in each iteration, and calls the teacher for each fake update.
        """
        last = max(self.forward)
        updates = fake_updates * (self.trained[last] + self.guided[last])
        return steps * self.forward[last] + self.trained[last] + self.guided[last] + self.forward[last] + updates


def evaluations(
    mean_student: float, *, fake_updates: int, branches: int, adversarial: bool = False, fake_first: bool = False
) -> float:
    """Return the network evaluations per sample of an iteration; each branch of guidance counts as one.

    DMD2's adversarial losses evaluate the student's sample once more in every update, and a real one in each update of
    the fake score.

    Args:
        mean_student: the student's evaluations, on average over the steps as they are drawn.
        fake_updates: number of the fake score's updates.
        branches: the teacher's evaluations (`MethodConfig.teacher_branches`).
        adversarial: whether DMD2's adversarial losses are used.
        fake_first: whether the fake score has a roll-out of its own (`method.order`).
    """
    updates = 1 + 3 * fake_updates if adversarial else fake_updates
    return mean_student * (2 if fake_first else 1) + branches + 1 + updates


def public_tdm_evaluations(steps: int, *, fake_updates: int, guidance: bool) -> float:
    """Return `evaluations` for TDM's public schedule.

    It rolls out all `steps` in each iteration, and calls the teacher for each fake update.
    """
    teacher = 2 if guidance else 1
    return steps + 1 + teacher + 1 + fake_updates * (1 + teacher)


class RandomEncoder:
    """Stands in for text encoders: returns random numbers in the shape of encoded prompts."""

    def __init__(self, backbone: Backbone, architecture: Architecture, *, seed: int) -> None:
        self.backbone, self.architecture, self.seed = backbone, architecture, seed
        self._calls = count()

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Return random conditioning for as many prompts, other numbers at every call."""
        return self._drawn(len(prompts))

    def null(self, count: int) -> Cond:
        """Return random conditioning for the unconditional branch."""
        return self._drawn(count)

    def _drawn(self, rows: int) -> Cond:
        g = generator(self.seed, "encoded", next(self._calls))
        shapes = self.backbone.cond_shapes(self.architecture)
        drawn = {name: torch.randn(rows, *shape, generator=g) for name, shape in shapes.items()}
        if "mask" in drawn:
            drawn["mask"] = torch.ones_like(drawn["mask"])
        dtype = next(self.backbone.denoiser.parameters()).dtype
        return Cond(drawn).to(self.backbone.device, dtype)


class EncodedTrainer(Trainer):
    """A trainer whose prompts are random numbers in the shape of encoded ones; it writes nothing."""

    def __init__(self, recipe: Recipe, backbone: Backbone, architecture: Architecture) -> None:
        """Build the run of a recipe with the backbone that `untrained` returned for it."""
        encoder = RandomEncoder(backbone, architecture, seed=recipe.train.seed)
        super().__init__(build_run(recipe, backbone, folder=Path("unused"), encoder=encoder))


def untrained(recipe: Recipe, *, device: torch.device, dtype: torch.dtype) -> tuple[Backbone, Architecture]:
    """Return a backbone of a recipe's architecture with random weights, a tiny VAE and no text encoders.

    Raises:
        RMDError: RMD does not know the architecture of the recipe's teacher, or the recipe leaves its noise schedule to
            the teacher.
    """
    family = family_class(recipe.family)
    architecture = architecture_of(teacher_source(recipe.teacher), family)
    conditioning = Conditioning(**recipe.conditioning.model_dump())
    backbone = untrained_backbone(
        family, architecture, scheduler=scheduler_of(recipe), device=device, dtype=dtype, conditioning=conditioning
    )
    return backbone, architecture


def scheduler_of(recipe: Recipe) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """Return diffusers' scheduler for the noise that a recipe spells out; raise RMDError if it does not."""
    if isinstance(recipe.noise, FlowNoise):
        return FlowMatchEulerDiscreteScheduler(**recipe.noise.model_dump(exclude={"kind", "token_frames"}))
    if isinstance(recipe.noise, VPNoise):
        # With zero terminal SNR, only v-prediction determines the clean sample at the first step.
        prediction = "v_prediction" if recipe.noise.rescale_betas_zero_snr else "epsilon"
        return DDIMScheduler(**recipe.noise.model_dump(exclude={"kind"}), prediction_type=prediction)
    raise RMDError("without a teacher its noise schedule is unknown: spell out the recipe's noise")


def time_training(trainer: Trainer, *, repeats: int, progress: Callable[[], None] | None = None) -> list[StepTiming]:
    """Run real iterations, `repeats` and one to warm up for every step of the plan, and measure them.

    The trainer's weights change. If `repeats` is 0, the seconds are those of the warm-up, which takes longer.

    Args:
        trainer: the trainer.
        repeats: number of timed iterations per step.
        progress: called after every iteration.
    """
    device = trainer.backbone.device
    timings = []
    for step in trainer.plan.steps:
        seconds = []
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
        timings.append(StepTiming(step, median(seconds[1:] or seconds), peak))
    return timings


def time_passes(run: Run, *, repeats: int) -> BarePasses:
    """Time the bare passes of a run's iterations; gradients are dropped.

    Roll-outs are timed with the teacher's network, so that the cost of adapters in them shows as overhead.

    Args:
        run: the run.
        repeats: number of timed passes, after one to warm up; if it is 0, the warm-up itself is timed.
    """
    guided = run.method.config.guidance != 1.0
    batches = run.batches(0)

    def seconds_of(role: Role, stage: Stage, *, train: bool, both: bool = False) -> float:
        seconds = []
        for _ in range(repeats + 1):
            run.roles.zero_grad()
            conds = [Cond.cat([batch.cond, batch.null]) if both else batch.cond for batch in batches]
            seconds.append(sum(_pass_seconds(run, role, stage, cond, train=train) for cond in conds))
        run.roles.zero_grad()
        return median(seconds[1:] or seconds)

    stages = run.plan.stages
    return BarePasses(
        forward={stage.index: seconds_of("teacher", stage, train=False) for stage in stages},
        trained={stage.index: seconds_of("student", stage, train=True) for stage in stages},
        guided={stage.index: seconds_of("teacher", stage, train=False, both=guided) for stage in stages},
    )


def _pass_seconds(run: Run, role: Role, stage: Stage, cond: Cond, *, train: bool) -> float:
    """Time one pass of a role's network on random latents of a stage, with a backward pass if it is trained."""
    backbone = run.backbone
    shape = run.method.latent_shape(len(cond), stage)
    x = torch.randn(shape, generator=generator(0, "bare")).to(backbone.device)
    t = torch.full((len(cond),), 500.0, device=backbone.device)
    kwargs = backbone.stage_cond(cond, stage, run.plan.match_stage)
    wait_for(backbone.device)
    began = time.perf_counter()
    with run.roles.use(role) as network, torch.set_grad_enabled(train):
        output = backbone.forward(network, x, t, kwargs)
        if train:
            output.float().square().mean().backward()
    wait_for(backbone.device)
    return time.perf_counter() - began


def time_in_turn(
    trainer: Trainer, *, repeats: int, progress: Callable[[], None] | None = None
) -> tuple[list[StepTiming], BarePasses]:
    """Time iterations and bare passes in turn, so that a machine that slows down does so for both.

    Args:
        trainer: the trainer, whose weights change.
        repeats: number of rounds, after one to warm up.
        progress: called after every iteration.

    Returns:
        The medians over the rounds, and the largest of the peak memories.
    """
    rounds = [
        (time_training(trainer, repeats=0, progress=progress), time_passes(trainer, repeats=0))
        for _ in range(repeats + 1)
    ]
    steps = zip(*(of_round for of_round, _ in rounds), strict=True)
    timings = [
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

    return timings, BarePasses(middle("forward"), middle("trained"), middle("guided"))


def mean_seconds(timings: Sequence[StepTiming], shares: Sequence[float]) -> float:
    """Return the mean seconds of an iteration over the steps as they are drawn (`rmd.methods.base.draw_shares`)."""
    return sum(share * timing.seconds for share, timing in zip(shares, timings, strict=True))


def _iterations(trainer: Trainer, step: Step, count: int) -> list[int]:
    """Return the first `count` iterations after the method's warm-up that draw a step."""
    iterations: list[int] = []
    method = trainer.recipe.method
    iteration = method.warmup_steps if isinstance(method, CascadeConfig) else 0
    while len(iterations) < count:
        if trainer.method.draw_step(iteration) == step:
            iterations.append(iteration)
        iteration += 1
    return iterations
