"""RMD: cross-resolution distribution matching distillation (the paper's Alg. 1; Sec. 3.2 and 3.3).

The student samples in stages of rising resolution R_1 < ... < R_K. The paper's premise is that the teacher's
distribution is right at R_K only, so the clean prediction of a step at a lower resolution R_k is upsampled to R_K and
noised to a time tau, where the noise hides what upsampling blurs. There the teacher and the fake score, which follows
the student's own distribution, predict the clean sample. The difference of their predictions moves the student.

`method.matching` chooses the resolution R_m at which this happens: R_K (`teacher`, the paper's), the step's own R_k
(`own`, where nothing is upsampled), or by iteration either of them (`mixed`).

Every iteration draws a step (`draw_step`, Eq. 6), then computes `student_loss` and updates the student, then computes
`fake_loss` and updates the fake score; `method.order` can change this.

Symbols: x_t is the state before step i, which is in stage k; x0_hat and eps_hat are the student's prediction from it; y
is x0_hat at R_m; beta is the weight of the predicted noise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import upsample
from rmd.core.losses import fake_score_loss, generator_loss, sample_weight
from rmd.core.plan import Stage, Step
from rmd.core.randomness import generator
from rmd.methods.base import Batch, Method, Rollout, Sample, check_own_resolution
from rmd.methods.common import (
    diffuse,
    draw_tau,
    fake_prediction,
    fake_weight,
    real_prediction,
    roll_out,
    stage_weight,
    student_prediction,
)
from rmd.recipes.methods import RMDConfig


class RMD(Method):
    """Cross-resolution distribution matching."""

    Config: ClassVar[type[RMDConfig]] = RMDConfig
    config: RMDConfig

    def check_plan(self) -> None:
        """Raise RMDError if the settings contradict the plan or each other."""
        if self.config.matching == "own":
            check_own_resolution("rmd with method.matching=own", self.plan)
        if self.config.stage_guidance and self.config.guidance == 1.0:
            raise RMDError("method.guidance=1 turns guidance off, so method.stage_guidance has no effect: drop one")

    def sample(self, batch: Batch, step: Step) -> Sample:
        """Roll the student out to a step, take the step, and project its prediction into the space of the scores."""
        crossing = self.plan.training_crossing
        stage = self.draw_score_stage(batch.iteration, step)  # R_m
        height, width = self.latent_shape(1, stage)[-2:]
        x_t = roll_out(self, batch, step)  # Alg. 2 with the beta of training; without gradient
        x0_hat, eps_hat = student_prediction(self, batch, step, x_t)  # at R_k
        y = upsample(x0_hat, (height, width), crossing.upsample, crossing.taps)  # Eq. 4: Up(x0_hat), at R_m
        return Sample(step, stage, y, eps_hat)

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the generator's loss at one step, and the sample that it was computed on (Alg. 1, Eq. 8)."""
        config = self.config
        sample = self.sample(batch, step)  # with gradient
        stage, y, eps_hat = sample.stage, sample.y, sample.eps_hat

        # Diffuse the sample to a time of the step's range.
        tau = draw_tau(self, batch, step, "tau-student")  # Eq. 6: expectation over the segment
        with torch.no_grad():
            x_tau = diffuse(self, batch, step, y.detach(), eps_hat, tau, "student").x_tau  # Eq. 4 and 10

            # Both scores predict the clean sample at R_m.
            f_real = real_prediction(self, batch, sample, x_tau, tau)  # Eq. 7: the real score, guided
            f_fake = fake_prediction(self, batch, x_tau, tau, stage)  # Eq. 7: the fake score

        # The gradient with respect to y is w (f_fake - f_real), up to the metric.
        w = sample_weight(y, f_real, config.weight_floor) if config.weight == "sample" else None  # Eq. 6: the weight
        loss = generator_loss(y, f_real, f_fake, weight=w, metric=config.metric)  # Eq. 8, pseudo-Huber (App. B)
        loss = loss * stage_weight(config, step)  # Eq. 6: the stage's weight
        return loss, Rollout(step, stage, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, sample: Sample, update: int = 0) -> Tensor:
        """Return the fake score's denoising loss on the student's sample, noised anew (Alg. 1, Eq. 9)."""
        config, schedule = self.config, self.backbone.schedule
        tau = draw_tau(self, batch, sample.step, f"tau-fake-{update}")
        noisy = diffuse(self, batch, sample.step, sample.y, sample.eps_hat, tau, f"fake-{update}")  # Eq. 4 and 10
        f_fake = fake_prediction(self, batch, noisy.x_tau, tau, sample.stage)
        weight = fake_weight(config, schedule, tau) * noisy.weight
        return fake_score_loss(f_fake, noisy.target, weight)  # Eq. 9: w(SNR) |f_fake - y|^2

    def draw_score_stage(self, iteration: int, step: Step) -> Stage:
        """Return the resolution at which the scores read a step's sample in an iteration; all processes agree on it."""
        stages = self.score_stages(step)
        own, shared = self.plan.stage_of(step), generator(self.seed, "matching", iteration)
        if len(stages) == 1:
            return next(iter(stages))
        return own if float(torch.rand((), generator=shared)) < stages[own] else self.plan.match_stage

    def score_stages(self, step: Step) -> dict[Stage, float]:
        """Return the resolutions at which the scores read the samples of a step, each with its share of the draws."""
        own, last = self.plan.stage_of(step), self.plan.match_stage
        share = {"teacher": 0.0, "own": 1.0, "mixed": self.config.own_share}[self.config.matching]
        stages = {own: share, last: 1.0 - share} if own != last else {last: 1.0}
        return {stage: part for stage, part in stages.items() if part > 0.0}
