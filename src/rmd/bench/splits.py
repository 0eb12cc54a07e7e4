"""What the choice of a split rests on, measured: the teacher's spectrum, and what steps cost at each resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmd.core.fit import Side, power_spectrum
from rmd.core.plan import build_plan
from rmd.models.base import Backbone
from rmd.models.generate import latent_batches

BATCH = 8
TEACHER_STEPS = 25


def teacher_spectrum(
    backbone: Backbone, side: Side, prompts: Sequence[str], *, seed: int, guidance: float, frames: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Mean power (H, W) of clean latents that the teacher makes of prompts, in 25 steps with its guidance."""
    plan = build_plan(backbone.schedule, steps=TEACHER_STEPS, sides=[side], thresholds=[], frames=frames)
    made: list[Tensor] = []
    for latents in latent_batches(
        backbone, backbone.denoiser, plan, prompts, seed=seed, guidance=guidance, batch_size=BATCH
    ):
        made.append(latents.cpu())
        if progress is not None:
            progress(sum(map(len, made)))
    return power_spectrum(torch.cat(made))
