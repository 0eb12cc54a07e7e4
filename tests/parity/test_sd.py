"""A plan of one stage gives the latents of the official Stable Diffusion pipeline with DDIM, to five digits."""

from __future__ import annotations

import pytest
import torch
from families import tiny_sd
from one_stage import official, ours


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_latents_equal_the_official_pipelines(prediction: str, guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_sd(prediction=prediction)
    expected = official(backbone, size, guidance)
    # With guidance not to the last bit: RMD encodes the empty prompt once, the pipeline once per sample.
    torch.testing.assert_close(
        ours(backbone, size, guidance), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert not torch.equal(expected[0], expected[1])
