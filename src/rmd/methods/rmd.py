"""RMD: cross-resolution distribution matching (Sec. 3.2, 3.3; Eq. 5 to 10; Alg. 1).

A low-resolution step's prediction is upsampled to the teacher's resolution and compared with the teacher there, at
teacher times of the step's own segment, where the noise hides what upsampling blurs.
"""

from __future__ import annotations

from torch import Tensor

from rmd.core.crossing import renoise, upsample
from rmd.core.plan import Step
from rmd.methods.base import Method


class RMD(Method):
    """Eq. 8 with the upsampling transformation of Eq. 4 and the noise mixture of Eq. 10."""

    def project(self, x0_hat: Tensor) -> Tensor:
        height, width = self.latent_shape(1, self.final)[-2:]
        return upsample(x0_hat, (height, width), self.plan.training_crossing.upsample)

    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        if self.config.tau_noise == "fresh":
            return noise
        return renoise(rollout_eps, noise, self.plan.training_crossing)
