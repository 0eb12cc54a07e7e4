"""Cascades whose steps are distilled at their own resolution, without cross-resolution matching.

The teacher judges a low-resolution step at that low resolution. With RMD's plan and crossings this is the naive
cascade of the paper's Tab. 3 ("UP" without "RM"); with a resolution that grows at every step and fresh noise at every
change it is the distribution matching of scale-wise distillation (SwD, Starodubcev et al. 2025; its MMD and adversarial
losses, and its images, are not here).
"""

from __future__ import annotations

from torch import Tensor

from rmd.core.crossing import renoise
from rmd.core.plan import Stage, Step
from rmd.methods.base import Method


class Stagewise(Method):
    """RMD's objective with every stage's own resolution in place of the teacher's."""

    def score_stage(self, step: Step) -> Stage:
        return self.plan.stage_of(step)

    def project(self, x0_hat: Tensor) -> Tensor:
        return x0_hat

    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        if self.config.tau_noise == "fresh":
            return noise
        return renoise(rollout_eps, noise, self.plan.training_crossing)
