"""Stagewise matching: cascades in which every step is distilled at its own resolution.

Teacher and fake score read a low-resolution step's sample at that low resolution. With RMD's plan and crossings, this
is the naive cascade of the paper's Tab. 3 ("UP" without "RM"). With a resolution that grows at every step, and fresh
noise at every transition, it is the distribution matching of scale-wise distillation (SwD, Starodubcev et al. 2025),
without SwD's MMD and adversarial losses and without its images.
"""

from __future__ import annotations

from rmd.core.plan import Stage, Step
from rmd.methods.base import check_own_resolution
from rmd.methods.rmd import RMD
from rmd.recipes.methods import StagewiseConfig


class Stagewise(RMD):
    """RMD's losses with R_k in place of R_K: nothing is upsampled."""

    Config = StagewiseConfig

    def check_plan(self) -> None:
        """Raise RMDError if the plan asks for matching at another resolution."""
        check_own_resolution("stagewise", self.plan)

    def score_stage(self, step: Step) -> Stage:
        """Return the step's own stage."""
        return self.plan.stage_of(step)
