"""TDM: trajectory distribution matching at one resolution (Luo et al. 2025), the baseline that RMD extends.

A step's deterministic next state, at the lower end of its segment, is diffused up to tau; the teacher and the fake
score meet it there. Written as noise on the clean prediction: x_tau = alpha x0_hat + sigma (rho eps_hat +
sqrt(1 - rho^2) eps), with rho the share of the next state's noise that survives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmd.core.noise import per_sample
from rmd.core.plan import Step, StepPlan
from rmd.methods.base import Method, check_one_resolution
from rmd.models.base import Backbone
from rmd.models.roles import Roles
from rmd.recipes.schema import MethodConfig


class TDM(Method):
    """Per-segment matching on the student's own trajectory, with importance weights for the fake score."""

    def __init__(self, backbone: Backbone, roles: Roles, plan: StepPlan, config: MethodConfig, *, seed: int) -> None:
        """As every method; RMDError if the plan has more than one stage."""
        check_one_resolution("tdm", plan)
        super().__init__(backbone, roles, plan, config, seed=seed)

    def project(self, x0_hat: Tensor) -> Tensor:
        return x0_hat

    def tau_noise(self, rollout_eps: Tensor, noise: Tensor, step: Step, tau: Tensor) -> Tensor:
        schedule = self.backbone.schedule
        # the last step ends at the clean sample: nothing of the predicted noise is left
        sigma_mid = schedule.sigma(step.tau_low) if step.tau_low > 0 else torch.zeros((), dtype=torch.float64)
        ratio = schedule.alpha(tau) / schedule.alpha(step.tau_low)
        rho = per_sample((ratio * sigma_mid / schedule.sigma(tau)).clamp(max=1.0), noise)
        return rho * rollout_eps + (1 - rho**2).sqrt() * noise

    def fake_weight(self, mixed: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        # the mixed noise is not a draw of the diffusion kernel from x0_hat; weigh it by the ratio of their densities
        density = -0.5 * (mixed.square() - noise.square()).flatten(1).mean(1)
        return super().fake_weight(mixed, noise, tau) * density.exp()
