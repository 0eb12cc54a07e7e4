"""In bfloat16, a plan of one stage is as close to the float32 result as the official pipeline in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import tiny_pixart, tiny_sd, tiny_sd3, tiny_wan
from helpers import tiny_sdxl
from one_stage import official, ours
from torch import Tensor, nn

from rmd.models import Backbone

Sampler = Callable[[Backbone, tuple[int, int], float], Tensor]
# v-prediction for UNets: a random network that predicts the noise has an x0 of thousands.
FAMILIES: dict[str, Callable[[], Backbone]] = {
    "sdxl": lambda: tiny_sdxl(prediction="v_prediction"), "sd": lambda: tiny_sd(prediction="v_prediction"),
    "pixart": tiny_pixart, "sd3": tiny_sd3, "wan": tiny_wan,
}  # fmt: skip


def cast(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """Cast a backbone's networks to a dtype; diffusers' own `to` would warn about modules that these lack."""
    for part in backbone.pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, dtype)
    return backbone


def error(actual: Tensor, truth: Tensor) -> float:
    return float((actual.float() - truth).square().mean().sqrt() / truth.square().mean().sqrt())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_as_near_to_float32_as_the_official_pipeline(family: str, size: tuple[int, int], guidance: float) -> None:
    def run(sample: Sampler, *dtypes: torch.dtype) -> Tensor:
        backbone = FAMILIES[family]()
        for dtype in dtypes:
            backbone = cast(backbone, dtype)
        return sample(backbone, size, guidance).float()

    # The reference has weights rounded to bfloat16, too, so that only the rounding of the computation remains.
    truth = run(official, torch.bfloat16, torch.float32)
    theirs, actual = run(official, torch.bfloat16), run(ours, torch.bfloat16)
    rounding = error(theirs, truth)
    assert 0 < rounding < 0.1
    assert error(actual, truth) < 1.25 * rounding
    assert error(actual, theirs) < 2 * rounding
    assert error(run(ours, torch.bfloat16, torch.float32), truth) < 1e-5
