"""RMD: cross-resolution distribution matching distillation (the paper's Alg. 1; Sec. 3.2 and 3.3).

The student samples in stages of rising resolution R_1 < ... < R_K. The teacher's distribution is known at R_K only, so
the clean prediction of a step at a lower resolution R_k is upsampled to R_K and noised to a time tau of the step's own
segment, where the noise hides what upsampling blurs. There the teacher and the fake score, which follows the student's
own distribution, predict the clean sample. The difference of their predictions moves the student.

Every iteration draws a step (`draw_step`, Eq. 6), then computes `student_loss` and updates the student, then computes
`fake_loss` and updates the fake score.

Symbols: x_t is the state before step i, which is in stage k; x0_hat and eps_hat are the student's prediction from it; y
is x0_hat at R_K; eps is fresh noise; beta is the weight of the predicted noise.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rmd.core.crossing import renoise, upsample
from rmd.core.losses import fake_score_loss, generator_loss, sample_weight
from rmd.core.plan import Step
from rmd.methods.base import Batch, Method, Rollout
from rmd.methods.common import (
    draw_tau,
    fake_prediction,
    fake_weight,
    roll_out,
    student_prediction,
    teacher_prediction,
)
from rmd.recipes.methods import CascadeConfig, RMDConfig


class RMD(Method):
    """Cross-resolution distribution matching."""

    Config: ClassVar[type[CascadeConfig]] = RMDConfig
    config: CascadeConfig

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the generator's loss at one step, and the sample that it was computed on (Alg. 1, Eq. 8)."""
        config, schedule, crossing = self.config, self.backbone.schedule, self.plan.training_crossing
        stage_K = self.plan.match_stage
        height, width = self.latent_shape(1, stage_K)[-2:]

        # Roll the student out to the step, without gradient; then take the step, with gradient.
        x_t = roll_out(self, batch, step)  # Alg. 2 with the beta of training
        x0_hat, eps_hat = student_prediction(self, batch, step, x_t)  # at R_k

        # Project the prediction into the teacher's space, and diffuse it to a time of the step's segment.
        y = upsample(x0_hat, (height, width), crossing.upsample)  # Eq. 4: Up(x0_hat), at R_K
        tau = draw_tau(config, batch, step, "tau-student")  # Eq. 6: expectation over the segment
        eps = batch.noise.normal(y.shape, "noise-student")
        with torch.no_grad():
            mixed = self.mix(eps_hat, eps)  # Eq. 10
            x_tau = schedule.add_noise(y.detach(), mixed, tau)  # Eq. 4 and 10: alpha_tau y + sigma_tau mixed

            # Both scores predict the clean sample at R_K.
            f_real = teacher_prediction(self, batch, x_tau, tau, stage_K)  # Eq. 7: the real score, guided
            f_fake = fake_prediction(self, batch, x_tau, tau, stage_K)  # Eq. 7: the fake score

        # The gradient with respect to y is w (f_fake - f_real), up to the metric.
        w = sample_weight(y, f_real) if config.weight == "sample" else None  # Eq. 6: the weight
        loss = generator_loss(y, f_real, f_fake, weight=w, metric=config.metric)  # Eq. 8, pseudo-Huber (App. B)
        return loss, Rollout(step, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, rollout: Rollout, update: int = 0) -> Tensor:
        """Return the fake score's denoising loss on the student's sample, noised anew (Alg. 1, Eq. 9)."""
        config, schedule, y = self.config, self.backbone.schedule, rollout.y
        tau = draw_tau(config, batch, rollout.step, f"tau-fake-{update}")
        eps = batch.noise.normal(y.shape, f"noise-fake-{update}")
        mixed = self.mix(rollout.eps_hat, eps)  # Eq. 10
        x_tau = schedule.add_noise(y, mixed, tau)  # Eq. 4 and 10
        f_fake = fake_prediction(self, batch, x_tau, tau, self.plan.match_stage)
        return fake_score_loss(f_fake, y, fake_weight(config, schedule, tau))  # Eq. 9: w(SNR) |f_fake - y|^2

    def mix(self, eps_hat: Tensor, eps: Tensor) -> Tensor:
        """Return the noise that takes y to tau: beta Up(eps_hat) + sqrt(1 - beta^2) eps, or eps alone (Eq. 10)."""
        return eps if self.config.tau_noise == "fresh" else renoise(eps_hat, eps, self.plan.training_crossing)
