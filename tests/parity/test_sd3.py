"""A one-stage plan is the official SD3 pipeline on the plan's own sigmas: same latents and pictures, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny_sd3
from helpers import PROMPTS
from torch import Tensor

from rmd.backbones import Backbone
from rmd.generate import sample_images, sample_latents
from rmd.plan import StepPlan, build_plan
from rmd.randomness import CounterNoise

SEED = 3
sizes = pytest.mark.parametrize("size", [(32, 32), (24, 40)])
guidances = pytest.mark.parametrize("guidance", [1.0, 3.0])
kinds = pytest.mark.parametrize("kind", [{}, {"t5": False}, {"dual": False}], ids=["3.5", "without-t5", "3"])


def one_stage(backbone: Backbone, size: tuple[int, int]) -> StepPlan:
    return build_plan(backbone.schedule, steps=4, sides=[size], thresholds=[], multiple=backbone.size_multiple)


def official(backbone: Backbone, size: tuple[int, int], guidance: float, output_type: str = "latent") -> Tensor:
    start = CounterNoise(SEED, range(len(PROMPTS))).normal(backbone.latent_shape(len(PROMPTS), *size), "start")
    sigmas = [step.teacher_time / 1000 for step in one_stage(backbone, size).steps]
    backbone.pipe.scheduler.set_shift(1.0)  # the sigmas are shifted already, and would be again
    result: Tensor = backbone.pipe(
        prompt=PROMPTS, height=size[0], width=size[1], num_inference_steps=4, sigmas=sigmas, guidance_scale=guidance,
        latents=start, output_type=output_type,
    ).images  # fmt: skip
    return result


def ours(backbone: Backbone, size: tuple[int, int], guidance: float) -> Tensor:
    null = backbone.null(len(PROMPTS)) if guidance != 1.0 else None
    noise, cond = CounterNoise(SEED, range(len(PROMPTS))), backbone.encode(PROMPTS)
    plan = one_stage(backbone, size)
    return sample_latents(backbone, backbone.denoiser, plan, cond, noise, null=null, guidance=guidance)


@kinds
@guidances
@sizes
def test_latents_equal_the_official_pipelines(kind: dict[str, Any], guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_sd3(**kind)
    expected = official(backbone, size, guidance)
    torch.testing.assert_close(ours(backbone, size, guidance), expected, rtol=0, atol=1e-5)
    assert not torch.equal(expected[0], expected[1])


@guidances
def test_pictures_equal_the_official_pipelines(guidance: float) -> None:
    backbone, size = tiny_sd3(), (24, 32)
    plan = one_stage(backbone, size)
    pictures = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=SEED, guidance=guidance, batch_size=3)
    expected = official(backbone, size, guidance, output_type="pt")
    torch.testing.assert_close(pictures / 2 + 0.5, expected, rtol=0, atol=1e-5)


def test_the_comparison_notices_another_guidance() -> None:
    backbone, size = tiny_sd3(), (32, 32)
    assert (ours(backbone, size, 3.1) - official(backbone, size, 3.0)).abs().max() > 1e-3
