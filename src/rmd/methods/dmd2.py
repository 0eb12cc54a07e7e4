"""DMD2: improved distribution matching distillation (Yin et al. 2024), the few-step baseline, data-free.

Every step's clean prediction is matched as a finished sample: it is noised with fresh noise to any time in [0.02,
0.98], and between steps the student renews the noise. Its training input is the student's own (backward simulation),
which is the roll-out of every method here.
"""

from __future__ import annotations

from torch import Tensor

from rmd.backbones.base import Backbone
from rmd.config import MethodConfig
from rmd.errors import RMDError
from rmd.methods.base import Method, check_one_resolution
from rmd.plan import Step, StepPlan
from rmd.roles import Roles


class DMD2(Method):
    """Stochastic steps and whole-range matching at one resolution."""

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: MethodConfig, *, seed: int) -> None:
        """As every method; RMDError if the plan has several stages, or steps that keep their noise."""
        check_one_resolution("dmd2", plan)
        if plan.training_crossing.within != "fresh":
            raise RMDError(
                "method dmd2 renews the noise at every step: set crossing.within to fresh, or use method tdm"
            )
        super().__init__(backbone, roles, plan, config, seed=seed)

    def project(self, x0_hat: Tensor) -> Tensor:
        return x0_hat

    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        return noise
