"""A plan of one stage gives the latents and videos of the official Wan pipeline on the plan's sigmas, to 1e-5."""

from __future__ import annotations

import pytest
import torch
from families import FRAMES, tiny_wan
from helpers import PROMPTS
from one_stage import SEED, official, one_stage, ours

from research.sampling import sample_images

sizes = pytest.mark.parametrize("size", [(32, 32), (32, 48)])
guidances = pytest.mark.parametrize("guidance", [1.0, 5.0])


@guidances
@sizes
def test_latents_equal_the_official_pipelines(guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_wan()
    expected = official(backbone, size, guidance)
    assert expected.shape == (len(PROMPTS), 4, 3, size[0] // 2, size[1] // 2)
    torch.testing.assert_close(ours(backbone, size, guidance), expected, rtol=0, atol=1e-5)
    assert not torch.equal(expected[0], expected[1])


@guidances
def test_videos_equal_the_official_pipelines(guidance: float) -> None:
    backbone, size = tiny_wan(), (16, 32)
    plan = one_stage(backbone, size)
    videos = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=SEED, guidance=guidance, batch_size=3)
    assert videos.shape == (len(PROMPTS), 3, FRAMES, *size)
    expected = official(backbone, size, guidance, output_type="pt")
    torch.testing.assert_close(videos.transpose(1, 2) / 2 + 0.5, expected, rtol=0, atol=1e-5)


def test_the_comparison_notices_another_guidance() -> None:
    backbone, size = tiny_wan(), (32, 32)
    assert (ours(backbone, size, 5.1) - official(backbone, size, 5.0)).abs().max() > 1e-3
