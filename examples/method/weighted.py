"""A method: RMD whose loss weighs more where the sample is far from the teacher's prediction.

method: {name: weighted, guidance: 3.0, strength: 0.5}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from rmd.core.plan import Step
from rmd.methods import RMD, Batch, Rollout
from rmd.recipes.methods import CascadeConfig


class WeightedConfig(CascadeConfig):
    """The settings of cascades, and how much distance counts."""

    name: Literal["weighted"]
    strength: Annotated[float, Field(ge=0, le=1e3)] = 0.5
    """How much the loss grows with the mean squared distance between sample and prediction; 0 is RMD itself."""


class Weighted(RMD):
    """RMD's losses, the student's scaled by distance."""

    Config = WeightedConfig
    config: WeightedConfig

    def student_loss(self, batch: Batch, step: Step) -> tuple[Tensor, Rollout]:
        """Return RMD's loss (Eq. 8), scaled, and the sample that they were computed on."""
        loss, rollout = super().student_loss(batch, step)
        # The roll-out is detached, so the factor is a constant and only scales the gradient.
        distance = (rollout.y - rollout.f_real).square().mean()
        return loss * (1 + self.config.strength * distance), rollout
