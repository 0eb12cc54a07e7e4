"""Stagewise matching: cascades in which every step is distilled at its own resolution.

Teacher and fake score read a low-resolution step's sample at that low resolution. With RMD's plan and crossings, this
is the naive cascade of the paper's Tab. 3 ("UP" without "RM"). With a resolution that grows at every step, and fresh
noise at every transition, it is the distribution matching of scale-wise distillation (SwD, Starodubcev et al. 2025),
without SwD's MMD and adversarial losses and without its images.

The losses are those of `rmd.methods.rmd`, with R_k in place of R_K; so nothing is upsampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmd.core.crossing import renoise
from rmd.core.losses import fake_score_loss, generator_loss, sample_weight
from rmd.core.plan import Stage, Step
from rmd.methods.base import Batch, Method, Rollout, check_own_resolution
from rmd.methods.common import (
    draw_tau,
    fake_prediction,
    fake_weight,
    roll_out,
    student_prediction,
    teacher_prediction,
)
from rmd.recipes.methods import StagewiseConfig


class Stagewise(Method):
    """Distribution matching at every stage's own resolution."""

    Config = StagewiseConfig
    config: StagewiseConfig

    def check_plan(self) -> None:
        """Raise RMDError if the plan asks for matching at another resolution."""
        check_own_resolution("stagewise", self.plan)

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the student's loss at one step, and the sample that it was computed on."""
        config, schedule, stage_k = self.config, self.backbone.schedule, self.plan.stage_of(step)

        x_t = roll_out(self, batch, step)
        x0_hat, eps_hat = student_prediction(self, batch, step, x_t)

        y = x0_hat  # stays at R_k
        tau = draw_tau(config, batch, step, "tau-student")
        eps = batch.noise.normal(y.shape, "noise-student")
        with torch.no_grad():
            mixed = self.mix(eps_hat, eps)  # Eq. 10, at one resolution
            x_tau = schedule.add_noise(y.detach(), mixed, tau)
            f_real = teacher_prediction(self, batch, x_tau, tau, stage_k)
            f_fake = fake_prediction(self, batch, x_tau, tau, stage_k)

        w = sample_weight(y, f_real) if config.weight == "sample" else None
        loss = generator_loss(y, f_real, f_fake, weight=w, metric=config.metric)  # Eq. 8, at R_k
        return loss, Rollout(step, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, rollout: Rollout, update: int = 0) -> Tensor:
        """Return the fake score's denoising loss on the student's sample, noised anew."""
        config, schedule, y = self.config, self.backbone.schedule, rollout.y
        tau = draw_tau(config, batch, rollout.step, f"tau-fake-{update}")
        eps = batch.noise.normal(y.shape, f"noise-fake-{update}")
        mixed = self.mix(rollout.eps_hat, eps)
        x_tau = schedule.add_noise(y, mixed, tau)
        f_fake = fake_prediction(self, batch, x_tau, tau, self.plan.stage_of(rollout.step))
        return fake_score_loss(f_fake, y, fake_weight(config, schedule, tau))  # Eq. 9, at R_k

    def mix(self, eps_hat: Tensor, eps: Tensor) -> Tensor:
        """Return the noise that takes y to tau: beta eps_hat + sqrt(1 - beta^2) eps, or eps alone (Eq. 10)."""
        return eps if self.config.tau_noise == "fresh" else renoise(eps_hat, eps, self.plan.training_crossing)

    def score_stage(self, step: Step) -> Stage:
        """Return the step's own stage."""
        return self.plan.stage_of(step)
