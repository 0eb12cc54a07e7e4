"""A plan of one stage gives the latents and pictures of the official SD3 pipeline on the plan's sigmas, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny_sd3
from helpers import PROMPTS
from one_stage import SEED, official, one_stage, ours

from research.sampling import sample_images

sizes = pytest.mark.parametrize("size", [(32, 32), (24, 40)])
guidances = pytest.mark.parametrize("guidance", [1.0, 3.0])
kinds = pytest.mark.parametrize("kind", [{}, {"t5": False}, {"dual": False}], ids=["3.5", "without-t5", "3"])


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
