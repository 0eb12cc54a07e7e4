"""What the choice of a split rests on, measured: the teacher's spectrum, and what steps cost at each resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rmd.backbones.base import Backbone
from rmd.bench.sampling import time_sampling
from rmd.fit import Side, power_spectrum, split_thresholds
from rmd.generate import latent_batches
from rmd.plan import StepPlan, build_plan

BATCH = 8
TEACHER_STEPS = 25
TIMED, REPEATS = 64, 5
"""Samples of the batch by which plans are timed, and how often."""


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


def plan_seconds(
    backbone: Backbone, plans: Sequence[StepPlan], prompts: Sequence[str], *, network: nn.Module | None = None
) -> list[float]:
    """Denoiser seconds a picture of the sampling by each plan, without guidance.

    One call is timed at every side that the plans use, and these take turns: what was measured while each was sampled
    is of another moment, or of a machine that did other things as well.

    Args:
        plans: of one backbone, with equally many frames.
        prompts: the first `TIMED` are used.
        network: the backbone's denoiser, by default.
    """
    used = [[(stage.height, stage.width) for stage in map(plan.stage_of, plan.steps)] for plan in plans]
    sides = sorted({side for its in used for side in its})
    call = side_seconds(backbone, sides, prompts[:TIMED], repeats=REPEATS, frames=plans[0].frames, network=network)
    return [sum(call[side] for side in its) for its in used]
