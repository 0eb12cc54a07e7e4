"""The untrained teacher of moving scenes: heads that attend to neighbours, and the layer that gets hints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from research.scenes.hints import hidden_layer
from research.scenes.moving.teacher import NEIGHBOURS, build_wan
from research.scenes.moving.vae import CLIP_CHANNELS, build_clip_vae
from research.scenes.teacher import HIGH, LOW
from rmd.models import Backbone

FRAMES = 5
"""Number of frames of the latents."""


@pytest.fixture(scope="module")
def untrained() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_wan(build_clip_vae().eval().requires_grad_(False))


def latents(side: int) -> Tensor:
    return torch.randn(1, CLIP_CHANNELS, FRAMES, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("side", [8, 4], ids=["high", "low"])
def test_heads_attend_to_their_neighbours(untrained: Backbone, side: int) -> None:
    net = untrained.denoiser
    noisy = latents(2 * side)
    tokens = net.patch_embedding(noisy).flatten(2).transpose(1, 2)
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    cosines, sines = (part[0, :, 0, ::2] for part in net.rope(noisy))  # (tokens, channel pairs of a head)

    def turned(states: Tensor, heads: int) -> Tensor:
        x, y = states.unflatten(-1, (heads, -1, 2)).unbind(-1)
        real = torch.stack([x * cosines[:, None] - y * sines[:, None], x * sines[:, None] + y * cosines[:, None]], -1)
        return real.flatten(-2).transpose(1, 2)

    frame, row, column = 2, side // 2, side // 2 - 1
    for number, block in enumerate(net.blocks):
        layer = block.attn1
        query = turned(layer.norm_q(layer.to_q(tokens)), layer.heads)
        key = turned(layer.norm_k(layer.to_k(tokens)), layer.heads)
        score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = score.softmax(-1).unflatten(-1, (FRAMES, side, side))[0, :, (frame * side + row) * side + column]
        offsets = NEIGHBOURS[number % 3]
        for head, (later, down, right) in enumerate(offsets):
            result = weights[head]
            assert float(result[frame + later, row + down, column + right]) == float(result.max()) > 0.35
        for result in weights[len(offsets) :]:
            assert float(result.max()) < 0.1  # the other heads attend everywhere


@torch.no_grad()
@pytest.mark.parametrize("stage", [LOW, HIGH], ids=["low", "high"])
def test_the_layer_with_hints_has_half_the_resolution_of_the_latents(untrained: Backbone, stage: object) -> None:
    layer, width = hidden_layer(untrained)
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, out: seen.append(out))
    side = 8 if stage is LOW else 16
    cond = untrained.encode(["a red star spins fast, on sand"])
    untrained.forward(untrained.denoiser, latents(side), torch.tensor([500.0]), untrained.stage_cond(cond, LOW, HIGH))
    hook.remove()
    assert seen[0].shape == (1, FRAMES * (side // 2) ** 2, width)
