"""Samples pictures of prompts with any backbone, for the builds of the packaged weights and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rmd.core.finite import check_pictures
from rmd.core.plan import StepPlan
from rmd.core.randomness import CounterNoise
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents


@torch.no_grad()
def sample_images(
    backbone: Backbone, module: nn.Module, plan: StepPlan, prompts: Sequence[str], *, seed: int, guidance: float = 1.0,
    batch_size: int = 64, first: int = 0, progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Return images (n, 3, H, W) or videos (n, 3, T, H, W) in [-1, 1].

    The noise of sample i depends only on (seed, first + i). `progress` is called with the size of each finished batch.

    Raises:
        RMDError: latents or images are not finite.
    """
    images = []
    for start in range(0, len(prompts), batch_size):
        part = list(prompts[start : start + batch_size])
        noise = CounterNoise(seed, range(first + start, first + start + len(part)), device=backbone.device)
        null = backbone.null(len(part)) if guidance != 1.0 else None
        latents = sample_latents(backbone, module, plan, backbone.encode(part), noise, null=null, guidance=guidance)
        decoded = backbone.decode(latents)
        check_pictures(decoded)
        images.append(decoded.clamp(-1, 1))
        if progress is not None:
            progress(len(latents))
    return torch.cat(images)
