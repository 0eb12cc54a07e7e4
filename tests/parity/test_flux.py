"""A plan of one stage gives the latents of the official FLUX pipeline, with its dynamic shift and embedded guidance."""

from __future__ import annotations

import pytest
import torch
from families import tiny_flux
from one_stage import official, ours

from rmd.models.base import Conditioning


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_latents_equal_the_official_pipelines(embedded: bool, guidance: float, size: tuple[int, int]) -> None:
    backbone = tiny_flux(embedded=embedded)
    expected, made = official(backbone, size, guidance), ours(tiny_flux(embedded=embedded), size, guidance)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.equal(expected[0], expected[1])


def test_the_embedded_scale_is_that_of_the_recipe() -> None:
    results = []
    for scale in (3.5, 7.0):
        backbone = tiny_flux()
        backbone.conditioning = Conditioning(embedded_guidance=scale)
        results.append(ours(backbone, (32, 32), 1.0))
        other = tiny_flux()
        other.conditioning = backbone.conditioning
        expected = official(other, (32, 32), 1.0)
        torch.testing.assert_close(results[-1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(*results)
