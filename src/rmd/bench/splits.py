"""What the choice of a split rests on, measured: the teacher's spectrum, and what a step costs at each resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rmd.backbones.base import Backbone
from rmd.bench.sampling import time_sampling
from rmd.fit import Side, power_spectrum, split_thresholds
from rmd.generate import latent_batches
from rmd.plan import build_plan

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


def side_seconds(
    backbone: Backbone, sides: Sequence[Side], prompts: Sequence[str], *, repeats: int, frames: int = 1,
    network: nn.Module | None = None, progress: Callable[[], None] | None = None,
) -> dict[Side, float]:  # fmt: skip
    """Seconds a picture of one network call without guidance at each side, the median of `repeats`.

    The sides take turns, so that a machine that slows down or hurries does so for all of them.

    Args:
        network: the backbone's denoiser, by default.
    """
    network = backbone.denoiser if network is None else network
    thresholds = split_thresholds(backbone.schedule, (1,) * len(sides))
    plan = build_plan(backbone.schedule, steps=len(sides), sides=sides, thresholds=thresholds, frames=frames)
    timing = time_sampling("", backbone, network, plan, prompts, repeats=repeats, progress=progress)
    return {side: seconds / len(prompts) for side, seconds in zip(sides, timing.by_stage, strict=True)}
