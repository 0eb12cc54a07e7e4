"""The power spectrum of a teacher's latents, from which `rmd plan --fit` predicts what a split of the steps lacks.

`rmd.core.fit` explains how the spectrum is used; `rmd.sample.timing` measures the other side, the cost of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmd.core.fit import Side, power_spectrum
from rmd.core.plan import build_plan
from rmd.models.base import Backbone
from rmd.models.generate import latent_batches

BATCH = 8
"""Number of samples to generate at once."""
TEACHER_STEPS = 25
"""Sampling steps of the teacher."""


def teacher_spectrum(
    backbone: Backbone, side: Side, prompts: Sequence[str], *, seed: int, guidance: float, frames: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean power of each mode of clean latents that the teacher generates.

    Args:
        backbone: the teacher.
        side: (height, width) of the samples in pixels.
        prompts: one prompt per sample.
        seed: seed of the initial noise.
        guidance: the teacher's guidance scale; it samples in `TEACHER_STEPS` steps.
        frames: number of frames of a video; 1 for pictures.
        progress: called after each batch with the number of samples so far.

    Returns:
        (H, W) in latent pixels; float64 (`rmd.core.fit.power_spectrum`).
    """
    plan = build_plan(backbone.schedule, steps=TEACHER_STEPS, sides=[side], thresholds=[], frames=frames)
    batches: list[Tensor] = []
    for latents in latent_batches(
        backbone, backbone.denoiser, plan, prompts, seed=seed, guidance=guidance, batch_size=BATCH
    ):
        batches.append(latents.cpu())
        if progress is not None:
            progress(sum(map(len, batches)))
    return power_spectrum(torch.cat(batches))
