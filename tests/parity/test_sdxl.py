"""A plan of one stage gives the latents of the official SDXL pipeline with DDIM, to the last bit."""

from __future__ import annotations

import pytest
import torch
from helpers import PROMPTS, tiny_sdxl
from one_stage import SEED, official, one_stage, ours

from research.sampling import sample_images
from rmd.core.noise import Prediction

sizes = pytest.mark.parametrize("size", [(32, 32), (24, 40)])
guidances = pytest.mark.parametrize("guidance", [1.0, 3.0])
# epsilon with SDXL's own betas, which keep some signal at t = 1000; v-prediction with zero terminal SNR
predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])


@predictions
@guidances
@sizes
@pytest.mark.parametrize("steps", [1, 4])
def test_latents_equal_the_official_pipelines(
    prediction: Prediction, guidance: float, size: tuple[int, int], steps: int
) -> None:
    backbone = tiny_sdxl(prediction=prediction)
    expected = official(backbone, size, guidance, steps=steps)
    assert torch.equal(ours(backbone, size, guidance, steps=steps), expected)
    assert not torch.equal(expected[0], expected[1])


@guidances
@sizes
def test_the_parts_and_zeros_of_sdxl_itself_equal_the_official_pipeline(guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_sdxl(two_encoders=True)
    assert torch.equal(ours(backbone, size, guidance), official(backbone, size, guidance))


@guidances
def test_the_empty_prompt_equals_the_official_pipelines_too(guidance: float) -> None:
    backbone = tiny_sdxl(two_encoders=True, zero_prompt=False)
    # With guidance not to the last bit: RMD encodes the empty prompt once, the pipeline once per sample.
    torch.testing.assert_close(
        ours(backbone, (32, 24), guidance), official(backbone, (32, 24), guidance), rtol=0, atol=1e-5
    )


@guidances
def test_pictures_equal_the_official_pipelines(guidance: float) -> None:
    backbone, size = tiny_sdxl(), (24, 32)
    plan = one_stage(backbone, size)
    pictures = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=SEED, guidance=guidance, batch_size=3)
    expected = official(backbone, size, guidance, output_type="pt")
    torch.testing.assert_close(pictures / 2 + 0.5, expected, rtol=0, atol=1e-5)  # the VAE runs on other batches


def test_the_comparison_notices_another_guidance_and_another_time() -> None:
    backbone, size = tiny_sdxl(), (32, 32)
    expected = official(backbone, size, 3.0)
    assert (ours(backbone, size, 3.1) - expected).abs().max() > 1e-3
    assert (ours(backbone, size, 3.0, steps=5) - expected).abs().max() > 1e-3
