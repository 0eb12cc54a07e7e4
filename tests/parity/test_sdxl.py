"""A one-stage plan is the official SDXL pipeline with DDIM: same noise, same pictures, to 1e-5."""

from __future__ import annotations

import pytest
import torch
from helpers import PROMPTS, tiny_sdxl
from torch import Tensor

from rmd.backbones import Backbone
from rmd.generate import sample_images, sample_latents
from rmd.noise import Prediction
from rmd.plan import StepPlan, build_plan
from rmd.randomness import CounterNoise

SEED, FIRST = 3, 5
sizes = pytest.mark.parametrize("size", [(32, 32), (24, 40)])
guidances = pytest.mark.parametrize("guidance", [1.0, 3.0])
# epsilon with SDXL's own betas, which keep some signal at t = 1000; v-prediction with zero terminal SNR
predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])


def one_stage(backbone: Backbone, steps: int, size: tuple[int, int]) -> StepPlan:
    return build_plan(backbone.schedule, steps=steps, sides=[size], thresholds=[], multiple=backbone.size_multiple)


def official(
    backbone: Backbone, steps: int, size: tuple[int, int], guidance: float, output_type: str = "latent"
) -> Tensor:
    """The stock pipeline on the noise that `sample_images` draws."""
    shape = backbone.latent_shape(len(PROMPTS), *size)
    start = CounterNoise(SEED, range(FIRST, FIRST + len(PROMPTS))).normal(shape, "start")
    result: Tensor = backbone.pipe(
        prompt=PROMPTS,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=start,
        output_type=output_type,
    ).images
    return result


def ours(backbone: Backbone, steps: int, size: tuple[int, int], guidance: float) -> Tensor:
    noise = CounterNoise(SEED, range(FIRST, FIRST + len(PROMPTS)))
    null = backbone.null(len(PROMPTS)) if guidance != 1.0 else None
    return sample_latents(
        backbone,
        backbone.denoiser,
        one_stage(backbone, steps, size),
        backbone.encode(PROMPTS),
        noise,
        null=null,
        guidance=guidance,
    )


@predictions
@guidances
@sizes
@pytest.mark.parametrize("steps", [1, 4])
def test_latents_equal_the_official_pipelines(
    prediction: Prediction, guidance: float, size: tuple[int, int], steps: int
) -> None:
    backbone = tiny_sdxl(prediction=prediction)
    expected = official(backbone, steps, size, guidance)
    scale = float(expected.abs().max())  # epsilon divides by a small alpha: a random network's x0 is large
    torch.testing.assert_close(ours(backbone, steps, size, guidance) / scale, expected / scale, rtol=0, atol=1e-5)
    assert not torch.equal(expected[0], expected[1])


@guidances
def test_two_encoders_and_the_empty_prompt_equal_the_official_pipeline_too(guidance: float) -> None:
    backbone = tiny_sdxl(two_encoders=True, zero_prompt=False)
    torch.testing.assert_close(
        ours(backbone, 5, (32, 24), guidance), official(backbone, 5, (32, 24), guidance), rtol=0, atol=1e-5
    )


@guidances
def test_pictures_equal_the_official_pipelines(guidance: float) -> None:
    backbone, size = tiny_sdxl(), (24, 32)
    plan = one_stage(backbone, 4, size)
    pictures = sample_images(
        backbone, backbone.denoiser, plan, PROMPTS, seed=SEED, first=FIRST, guidance=guidance, batch_size=3
    )
    expected = official(backbone, 4, size, guidance, output_type="pt")
    torch.testing.assert_close(pictures / 2 + 0.5, expected, rtol=0, atol=1e-5)


def test_the_comparison_notices_another_guidance_and_another_time() -> None:
    backbone, size = tiny_sdxl(), (32, 32)
    expected = official(backbone, 4, size, 3.0)
    assert (ours(backbone, 4, size, 3.1) - expected).abs().max() > 1e-3
    assert (ours(backbone, 5, size, 3.0) - expected).abs().max() > 1e-3
