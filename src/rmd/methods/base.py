"""What every distillation method shares: roll-out, teacher and fake predictions, and the two losses' skeleton."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.core.losses import fake_score_loss, generator_loss, sample_weight, snr_weight
from rmd.core.plan import Stage, Step, StepPlan
from rmd.core.randomness import NoiseSource, choice_in_turn
from rmd.core.sampling import run_cascade
from rmd.models.base import Backbone, Cond
from rmd.models.generate import predictor
from rmd.models.roles import Role, Roles
from rmd.recipes.schema import MethodConfig

TAU_MARGIN = 20.0
"""Teacher times for the scores keep this distance from 0 and 1000, where x0 or the noise is not determined (DMD)."""


@dataclass(frozen=True)
class Real:
    """Real images of an iteration: clean latents at the teacher's resolution, and their own captions, encoded."""

    x0: Tensor
    cond: Cond


@dataclass(frozen=True)
class Batch:
    """The prompts of one iteration, encoded, and its noise; `null` is what the unconditional branch gets.

    `real` is there where the method asks for images.
    """

    iteration: int
    cond: Cond
    null: Cond
    noise: NoiseSource
    real: Real | None = None


@dataclass(frozen=True)
class Rollout:
    """A student's sample at the step being trained, as the scores see it, all detached.

    y: clean sample where the scores look at it. eps_hat: the step's predicted noise at its own. f_real, f_fake: what
    teacher and fake score read in x_tau, y noised to the teacher times tau (B,), which stay on the CPU.
    """

    step: Step
    y: Tensor
    eps_hat: Tensor
    tau: Tensor
    x_tau: Tensor
    f_real: Tensor
    f_fake: Tensor


class Method(ABC):
    """Losses of one distillation method over a backbone, its roles and a plan.

    `evaluations` counts the network calls (batches) by role, roll-outs included.
    """

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: MethodConfig, *, seed: int) -> None:
        self.backbone, self.roles, self.plan, self.config, self.seed = backbone, roles, plan, config, seed
        self.final = plan.stages[-1] if config.scored is None else Stage(len(plan.stages), *config.scored)
        self.evaluations: Counter[Role] = Counter()
        self.stage_draws = stage_draws(plan, config)

    def score_stage(self, step: Step) -> Stage:
        """Where teacher and fake score look at a step's sample: the teacher's own resolution."""
        return self.final

    @abstractmethod
    def project(self, x0_hat: Tensor) -> Tensor:
        """The step's clean prediction where the scores look at it; differentiable."""

    @abstractmethod
    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        """The noise that takes the projected sample to tau, from the predicted and fresh unit noise."""

    def fake_weight(self, mixed: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        """Weight (B,) of the fake score's error in x0 (Eq. 9): min(SNR, cap), plus one for v-prediction's own.

        SNR alone makes it the error in the predicted noise.
        """
        schedule = self.backbone.schedule
        cap = math.inf if self.config.fake_weight == "noise" else self.config.snr_cap
        snr = snr_weight(schedule.alpha(tau), schedule.sigma(tau), cap)
        return snr + 1.0 if self.config.fake_weight == "snr_plus_one" else snr

    def draw_step(self, iteration: int) -> Step:
        """The step this iteration trains: a stage, then one of its steps, uniformly; stage 1 alone in the warm-up.

        Stages are drawn as often as `method.stage_draws` says, in shuffled rounds: every stage comes so often in each,
        so that even a short run trains all steps as it should. Independently where steps share the times of the scores:
        the fake score would meet each step when it has just learned all the others. Keyed by the iteration, so every
        rank draws the same (shapes differ between steps).
        """
        rounds = self.config.tau == "segment"
        stage, visit, after = self.plan.stages[0], iteration, iteration - self.config.warmup_steps
        if after >= 0:
            round_ = [(stage, turn) for stage in self.plan.stages for turn in range(self.stage_draws[stage.index - 1])]
            stage, turn = round_[self._choice(len(round_), after, "stage", rounds=rounds)]
            visit = after // len(round_) * self.stage_draws[stage.index - 1] + turn if rounds else iteration
        steps = [step for step in self.plan.steps if step.stage == stage.index]
        return steps[self._choice(len(steps), visit, f"step of stage {stage.index}", rounds=rounds)]

    def _choice(self, n: int, count: int, purpose: str, *, rounds: bool) -> int:
        """One of 0..n-1: the next of its round, or the first of a round of its own, which no other draw knows of."""
        return choice_in_turn(n, seed=self.seed, count=count if rounds else count * n, purpose=purpose)

    def latent_shape(self, batch: int, stage: Stage) -> tuple[int, ...]:
        return self.backbone.latent_shape(batch, stage.height, stage.width, self.plan.frames)

    def predict(
        self, role: Role, module: nn.Module, x: Tensor, t: Tensor | float, cond: Cond, stage: Stage,
        guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One network call as (x0, eps), counted."""
        self.evaluations[role] += 1
        kwargs = self.backbone.stage_cond(cond, stage, self.final)
        return self.backbone.predict(module, x, t, kwargs, guidance=guidance)

    @torch.no_grad()
    def state_before(self, batch: Batch, step: Step) -> Tensor:
        """The student's state entering `step`: the sampler's own loop, no further than needed (Alg. 1)."""
        self.evaluations["student"] += step.index - 1
        # merging adapters pays where the network is called at all
        with (self.roles.fused if step.index > 1 else self.roles.use)("student") as student:
            return run_cascade(
                predictor(self.backbone, student, self.plan, batch.cond, final=self.final),
                self.plan,
                self.backbone.schedule,
                lambda stage: self.latent_shape(len(batch.cond), stage),
                batch.noise,
                crossing=self.plan.training_crossing,
                until=step.index,
            )

    @torch.no_grad()
    def teacher_x0(self, x_tau: Tensor, tau: Tensor, batch: Batch, stage: Stage) -> Tensor:
        """f_real: the teacher's guided prediction at a stage, both branches in one call."""
        guidance = self.config.guidance
        with self.roles.use("teacher") as teacher:
            if guidance == 1.0:
                return self.predict("teacher", teacher, x_tau, tau, batch.cond, stage)[0]
            both = Cond.cat([batch.cond, batch.null])
            return self.predict("teacher", teacher, x_tau, tau, both, stage, guidance)[0]

    def draw_tau(self, batch: Batch, step: Step, purpose: str) -> Tensor:
        """Teacher times (B,) for the scores, float64 on the CPU; uniform in the step's segment, from its lower end, or
        in all."""
        high = step.tau_high if self.config.tau == "segment" else 1000.0
        low = 0.0 if self.config.tau == "all" else step.tau_low
        low = min(max(low, TAU_MARGIN), 1000.0 - 2 * TAU_MARGIN)
        high = max(min(high, 1000.0 - TAU_MARGIN), low)
        drawn = batch.noise.uniform((len(batch.cond),), purpose).double()
        return low + (high - low) * drawn

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Generator loss (Eq. 7, 8) of one step, and the sample it was computed on."""
        x_t = self.state_before(batch, step)
        with self.roles.use("student") as student:
            x0_hat, eps_hat = self.predict(
                "student", student, x_t, step.model_time, batch.cond, self.plan.stage_of(step)
            )
        y = self.project(x0_hat)
        tau = self.draw_tau(batch, step, "tau-student")
        fresh = batch.noise.normal(y.shape, "noise-student")
        with torch.no_grad():
            mixed = self.tau_noise(eps_hat, fresh, step, tau)
            x_tau = self.backbone.schedule.add_noise(y.detach(), mixed, tau)
            f_real = self.teacher_x0(x_tau, tau, batch, self.score_stage(step))
            with self.roles.use("fake") as fake:
                f_fake, _ = self.predict("fake", fake, x_tau, tau, batch.cond, self.score_stage(step))
        weight = sample_weight(y, f_real) if self.config.weight == "sample" else None
        loss = generator_loss(y, f_real, f_fake, weight=weight, metric=self.config.metric)
        loss = loss + self.more_of_student(y, batch)
        return loss, Rollout(step, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, rollout: Rollout, update: int = 0) -> Tensor:
        """Fake-score loss (Eq. 9) on the student's sample, noised anew for every update."""
        tau = self.draw_tau(batch, rollout.step, f"tau-fake-{update}")
        fresh = batch.noise.normal(rollout.y.shape, f"noise-fake-{update}")
        mixed = self.tau_noise(rollout.eps_hat, fresh, rollout.step, tau)
        x_tau = self.backbone.schedule.add_noise(rollout.y, mixed, tau)
        with self.roles.use("fake") as fake:
            x0, _ = self.predict("fake", fake, x_tau, tau, batch.cond, self.score_stage(rollout.step))
        loss = fake_score_loss(x0, rollout.y, self.fake_weight(mixed, fresh, tau))
        return loss + self.more_of_fake(batch, rollout, update)

    def more_of_student(self, y: Tensor, batch: Batch) -> Tensor:
        """What a method adds to the student's loss, of its sample with gradient."""
        return y.new_zeros(())

    def more_of_fake(self, batch: Batch, rollout: Rollout, update: int) -> Tensor:
        """What a method adds to the fake score's loss."""
        return rollout.y.new_zeros(())


def stage_draws(plan: StepPlan, config: MethodConfig) -> tuple[int, ...]:
    """How often each stage is trained in a round; RMDError where the recipe's numbers are not those of its stages."""
    draws = config.stage_draws or (1,) * len(plan.stages)
    if len(draws) != len(plan.stages):
        raise RMDError(
            f"method.stage_draws has {len(draws)} numbers, but the plan {len(plan.stages)} stages: give one for each"
        )
    return draws


def draw_shares(plan: StepPlan, config: MethodConfig) -> tuple[float, ...]:
    """Share of the iterations after the warm-up that trains each step."""
    draws = stage_draws(plan, config)
    sizes = Counter(step.stage for step in plan.steps)
    return tuple(draws[step.stage - 1] / sum(draws) / sizes[step.stage] for step in plan.steps)


def check_one_resolution(name: str, plan: StepPlan) -> None:
    """RMDError if a method that knows one resolution is given a plan of several."""
    if len(plan.stages) > 1:
        raise RMDError(
            f"method {name} works at one resolution, but the plan has {len(plan.stages)} stages: "
            "give one side and no threshold, or use method rmd"
        )
