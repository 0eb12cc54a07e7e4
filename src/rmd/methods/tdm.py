"""TDM: trajectory distribution matching at one resolution (Luo et al. 2025), the baseline that RMD extends.

The student's trajectory is deterministic. A step's next state on it, x_mid at the lower end of the step's segment, is
diffused up to a time tau of that segment, where teacher and fake score predict the clean sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmd.core.losses import fake_score_loss, generator_loss, sample_weight
from rmd.core.noise import NoiseSchedule, per_sample
from rmd.core.plan import Step
from rmd.methods.base import Batch, Method, Rollout, Sample, check_one_resolution
from rmd.methods.common import (
    draw_tau,
    fake_prediction,
    fake_weight,
    roll_out,
    student_prediction,
    teacher_prediction,
    trajectory_share,
)
from rmd.recipes.methods import TDMConfig


class TDM(Method):
    """Matching in every step's own segment, on the student's trajectory, with importance weights for the fake score."""

    Config = TDMConfig
    config: TDMConfig

    def check_plan(self) -> None:
        """Raise RMDError if the plan has more than one resolution."""
        check_one_resolution("tdm", self.plan)

    def sample(self, batch: Batch, step: Step) -> Sample:
        """Roll the student out to a step, without gradient, and return its prediction there."""
        x_t = roll_out(self, batch, step)
        return Sample(step, self.plan.match_stage, *student_prediction(self, batch, step, x_t))

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return the student's loss at one step, and the sample that it was computed on."""
        config, schedule, stage = self.config, self.backbone.schedule, self.plan.match_stage

        sample = self.sample(batch, step)
        y, eps_hat = sample.y, sample.eps_hat

        tau = draw_tau(self, batch, step, "tau-student")
        eps = batch.noise.normal(y.shape, "noise-student")
        with torch.no_grad():
            mixed = trajectory_noise(schedule, step, tau, eps_hat, eps)
            x_tau = schedule.add_noise(y.detach(), mixed, tau)  # x_mid, diffused up to tau
            f_real = teacher_prediction(self, batch, x_tau, tau, stage)
            f_fake = fake_prediction(self, batch, x_tau, tau, stage)

        w = sample_weight(y, f_real, config.weight_floor) if config.weight == "sample" else None
        loss = generator_loss(y, f_real, f_fake, weight=w, metric=config.metric)
        return loss, Rollout(step, stage, y.detach(), eps_hat.detach(), tau, x_tau, f_real, f_fake)

    def fake_loss(self, batch: Batch, sample: Sample, update: int = 0) -> Tensor:
        """Return the fake score's denoising loss on the student's sample, weighted by SNR and importance."""
        config, schedule, y = self.config, self.backbone.schedule, sample.y
        tau = draw_tau(self, batch, sample.step, f"tau-fake-{update}")
        eps = batch.noise.normal(y.shape, f"noise-fake-{update}")
        mixed = trajectory_noise(schedule, sample.step, tau, sample.eps_hat, eps)
        x_tau = schedule.add_noise(y, mixed, tau)
        f_fake = fake_prediction(self, batch, x_tau, tau, self.plan.match_stage)
        return fake_score_loss(f_fake, y, fake_weight(config, schedule, tau) * importance(mixed, eps))


def trajectory_noise(schedule: NoiseSchedule, step: Step, tau: Tensor, eps_hat: Tensor, eps: Tensor) -> Tensor:
    """Return the noise that takes x0_hat to the next state of the trajectory, diffused up to tau.

    Diffusing x_mid = alpha_mid x0_hat + sigma_mid eps_hat up to tau gives alpha_tau x0_hat + sigma_tau mixed, with
    mixed = rho eps_hat + sqrt(1 - rho^2) eps (`rmd.methods.common.trajectory_share`).
    """
    rho = per_sample(trajectory_share(schedule, step, tau), eps)
    return rho * eps_hat + (1 - rho**2).sqrt() * eps


def importance(mixed: Tensor, eps: Tensor) -> Tensor:
    """Return the importance weight (B,) of each sample of the fake score's loss.

    The mixed noise is not a draw of the diffusion kernel around x0_hat, so the loss is weighted by the ratio of the
    Gaussian densities of `mixed` and `eps`, in the mean over dimensions.
    """
    return (-0.5 * (mixed.square() - eps.square()).flatten(1).mean(1)).exp()
