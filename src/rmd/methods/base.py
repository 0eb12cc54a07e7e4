"""The interface of distillation methods, and how often each step of a plan is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.plan import Stage, Step, StepPlan
from rmd.core.randomness import NoiseSource, choice_in_turn
from rmd.models.base import Backbone
from rmd.models.cond import Cond
from rmd.models.roles import Role, Roles
from rmd.recipes.methods import CascadeConfig, MatchingConfig, MethodConfig


@dataclass(frozen=True)
class Real:
    """Real images of one iteration, for methods that need them."""

    x0: Tensor
    """Clean latents (B, C, h, w) at the resolution at which the scores read samples."""
    cond: Cond
    """The encoded captions of these images."""


@dataclass(frozen=True)
class Batch:
    """The encoded prompts of one iteration, and its noise."""

    iteration: int
    cond: Cond
    null: Cond
    """Conditioning of the teacher's unconditional branch, for as many samples."""
    noise: NoiseSource
    real: Real | None = None
    """Real images, if the method needs them."""


@dataclass(frozen=True)
class Sample:
    """A prediction of the student at one step, before it is diffused for the scores."""

    step: Step
    stage: Stage
    """The resolution at which the scores read the sample."""
    y: Tensor
    """The predicted clean sample at the resolution at which it is matched."""
    eps_hat: Tensor
    """The predicted noise at the step's own resolution."""


@dataclass(frozen=True)
class Rollout(Sample):
    """A student's sample at the trained step, as teacher and fake score read it; all tensors are detached."""

    tau: Tensor
    """Teacher times (B,) in 0..1000, float64 on the CPU."""
    x_tau: Tensor
    """`y`, noised to `tau`."""
    f_real: Tensor
    """The teacher's guided prediction of the clean sample from `x_tau`."""
    f_fake: Tensor
    """The fake score's prediction of the clean sample from `x_tau`."""


class Method(ABC):
    """The losses of one distillation method.

    A method is a subclass with its two losses and its own settings (`Config`). `rmd.methods.common` has the steps that
    most methods share, and `rmd.methods.rmd` is the example to follow.

    Attributes:
        evaluations: number of network calls (batches) by role, including those of roll-outs.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    """Model of the method's settings, by which the group `method` of a recipe is validated."""
    config: MethodConfig

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: MethodConfig, *, seed: int) -> None:
        """Prepare the losses.

        Args:
            backbone: the model family, with the teacher's noise schedule.
            roles: student, teacher and fake score.
            plan: the student's steps.
            config: settings of the class `Config`.
            seed: seed of the choice of steps; all other random numbers come from the batches.

        Raises:
            RMDError: the plan does not suit the method, or the settings do not fit the plan.
        """
        self.backbone, self.roles, self.plan, self.config, self.seed = backbone, roles, plan, config, seed
        self.evaluations: Counter[Role] = Counter()
        self.check_plan()
        self.stage_draws = stage_draws(plan, config)

    def check_plan(self) -> None:  # noqa: B027  # most methods accept every plan
        """Raise RMDError if the method cannot train the plan."""

    @abstractmethod
    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the student's loss (a scalar) at one step, and the sample that it was computed on."""

    @abstractmethod
    def fake_loss(self, batch: Batch, sample: Sample, update: int = 0) -> Tensor:
        """Return the fake score's loss (a scalar) on the student's sample.

        Args:
            batch: the batch of the sample.
            sample: what `student_loss` or `sample` returned.
            update: number of the fake score's update in this iteration; each has noise and times of its own.
        """

    def sample(self, batch: Batch, step: Step) -> Sample:
        """Return the student's sample at one step; the samples of one batch lie on one trajectory.

        With `method.order` fake_first, the fake score is trained on it. A method that needs no scores for its samples
        should override this with the first lines of its `student_loss`.
        """
        return self.student_loss(batch, step)[1]

    def draw_step(self, iteration: int, role: Literal["student", "fake"] = "student") -> Step:
        """Return the step that an iteration trains: draw a stage, then one of its steps, uniformly (Eq. 6).

        During the warm-up only the first stage is trained (Sec. 3.4). After it, stages and steps are drawn in shuffled
        rounds, in each of which every stage occurs `method.stage_draws` times: so even a short run trains all steps in
        the right proportion. If steps share tau ranges, draw them independently; in rounds, the fake score would meet
        each step right after training on all the others. The choice depends on seed and iteration only, so that all
        processes make the same one (shapes differ between steps).

        Args:
            iteration: number of the iteration, from 0.
            role: with `method.order` fake_first, the fake score has draws of its own.
        """
        of = "" if role == "student" else "fake score's "
        in_rounds = not isinstance(self.config, MatchingConfig) or self.config.tau == "segment"
        warmup = self.config.warmup_steps if isinstance(self.config, CascadeConfig) else 0
        stage, visit, after = self.plan.stages[0], iteration, iteration - warmup
        if after >= 0:
            turns = [(stage, turn) for stage in self.plan.stages for turn in range(self.stage_draws[stage.index - 1])]
            stage, turn = turns[self._choice(len(turns), after, f"{of}stage", in_rounds=in_rounds)]
            visit = after // len(turns) * self.stage_draws[stage.index - 1] + turn if in_rounds else iteration
        steps = [step for step in self.plan.steps if step.stage == stage.index]
        return steps[self._choice(len(steps), visit, f"{of}step of stage {stage.index}", in_rounds=in_rounds)]

    def _choice(self, n: int, count: int, purpose: str, *, in_rounds: bool) -> int:
        """Return one of 0..n-1: the next one of a round, or, for independent choices, the first one of a new round."""
        return choice_in_turn(n, seed=self.seed, count=count if in_rounds else count * n, purpose=purpose)

    def score_stages(self, step: Step) -> dict[Stage, float]:
        """Return the resolutions at which the scores read the samples of a step, each with its share of the draws."""
        return {self.plan.match_stage: 1.0}

    def latent_shape(self, batch: int, stage: Stage) -> tuple[int, ...]:
        """Return the shape of a batch of latents at a stage."""
        return self.backbone.latent_shape(batch, stage.height, stage.width, self.plan.frames)

    def predict(
        self, role: Role, module: nn.Module, x: Tensor, t: Tensor | float, cond: Cond, stage: Stage,
        guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Call a network once, count the call, and return its prediction as (x0, eps).

        Args:
            role: the role that the network plays.
            module: the network.
            x: noisy latents at the resolution of `stage`.
            t: time in 0..1000, or one for each sample (B,).
            cond: encoded prompts; with guidance, B prompts followed by B null prompts.
            stage: the resolution on which the network is conditioned.
            guidance: scale of classifier-free guidance; None for none.
        """
        self.evaluations[role] += 1
        kwargs = self.backbone.stage_cond(cond, stage, self.plan.match_stage)
        return self.backbone.predict(module, x, t, kwargs, guidance=guidance)


def stage_draws(plan: StepPlan, config: MethodConfig) -> tuple[int, ...]:
    """Return how often each stage is drawn in a round.

    Raises:
        RMDError: the settings do not have one number for each stage of the plan.
    """
    if not isinstance(config, CascadeConfig):
        return (1,) * len(plan.stages)
    for name in ("stage_draws", "stage_weights", "stage_guidance"):
        count = len(getattr(config, name))
        if count not in (0, len(plan.stages)):
            raise RMDError(
                f"method.{name} has {count} numbers, but the plan has {len(plan.stages)} stages: "
                "give one for each stage"
            )
    return config.stage_draws or (1,) * len(plan.stages)


def draw_shares(plan: StepPlan, config: MethodConfig) -> tuple[float, ...]:
    """Return the share of the iterations after the warm-up that trains each step; the shares sum to 1."""
    draws = stage_draws(plan, config)
    sizes = Counter(step.stage for step in plan.steps)
    return tuple(draws[step.stage - 1] / sum(draws) / sizes[step.stage] for step in plan.steps)


def check_one_resolution(name: str, plan: StepPlan) -> None:
    """Raise RMDError if a plan for a method of a single resolution has several."""
    if len(plan.stages) > 1:
        raise RMDError(
            f"method {name} works at one resolution, but the plan has {len(plan.stages)} stages: "
            "give one side and no threshold, or use method rmd"
        )
    check_own_resolution(name, plan)


def check_own_resolution(name: str, plan: StepPlan) -> None:
    """Raise RMDError if a plan for a method that does not upsample samples asks for matching at a larger size."""
    if plan.match_side is not None:
        raise RMDError(
            f"method {name} matches samples at their own resolution: leave out plan.match_side, or use "
            "method rmd with matching=teacher"
        )
