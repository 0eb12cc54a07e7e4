"""A plan of one stage gives the latents and pictures of the official PixArt pipeline with DDIM, to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny_pixart
from helpers import PROMPTS
from one_stage import SEED, official, one_stage, ours

from research.sampling import sample_images

sizes = pytest.mark.parametrize("size", [(32, 32), (24, 40)])
guidances = pytest.mark.parametrize("guidance", [1.0, 3.0])
kinds = pytest.mark.parametrize(
    "kind",
    [{}, {"told_size": True}, {"sigma": True}, {"learned": False}],
    ids=["alpha", "alpha-1024", "sigma", "plain"],
)


@kinds
@guidances
@sizes
def test_latents_equal_the_official_pipelines(kind: dict[str, Any], guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_pixart(**kind)
    expected = official(backbone, size, guidance)
    scale = float(expected.abs().max())  # x0 is large: the prediction of a random network is divided by a small alpha
    torch.testing.assert_close(ours(backbone, size, guidance) / scale, expected / scale, rtol=0, atol=1e-5)
    assert not torch.equal(expected[0], expected[1])


@guidances
def test_pictures_equal_the_official_pipelines(guidance: float) -> None:
    backbone, size = tiny_pixart(), (24, 32)
    plan = one_stage(backbone, size)
    pictures = sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=SEED, guidance=guidance, batch_size=3)
    expected = official(backbone, size, guidance, output_type="pt")
    torch.testing.assert_close(pictures / 2 + 0.5, expected, rtol=0, atol=1e-5)


def test_the_comparison_notices_another_guidance() -> None:
    backbone, size = tiny_pixart(), (32, 32)
    expected = official(backbone, size, 3.0)
    assert (ours(backbone, size, 3.1) - expected).abs().max() > 1e-3 * expected.abs().max()
