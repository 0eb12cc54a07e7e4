"""Wan: the time dimension of its latents, channel statistics, parts kept in float32, and refused pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from families import FRAMES, tiny_wan
from helpers import PROMPTS

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule
from rmd.core.plan import Stage
from rmd.models import load_backbone

FULL = Stage(1, 32, 48)


def test_only_height_and_width_of_the_latents_follow_the_stage() -> None:
    backbone = tiny_wan()
    assert backbone.latent_shape(2, 32, 48, FRAMES) == (2, 4, 3, 16, 24)
    assert backbone.latent_shape(2, 16, 32, FRAMES) == (2, 4, 3, 8, 16)
    assert backbone.latent_shape(1, 16, 16, 1)[2] == 1
    assert backbone.size_multiple == 16


def test_a_video_has_one_frame_and_a_multiple_of_the_step() -> None:
    backbone = tiny_wan()
    for frames in (1, 3, 5, 81):
        backbone.check_frames(frames)
    with pytest.raises(RMDError, match=r"^wan makes clips of 1 \+ 2 n frames, not of 80: use 79 or 81$"):
        backbone.check_frames(80)


def test_decoding_undoes_the_statistics_of_every_channel() -> None:
    backbone = tiny_wan()
    vae = backbone.pipe.vae
    latents = torch.randn(backbone.latent_shape(2, 16, 16, FRAMES), generator=torch.Generator().manual_seed(0))
    plain = torch.stack([latents[:, c] * vae.config.latents_std[c] + vae.config.latents_mean[c] for c in range(4)], 1)
    with torch.no_grad():
        expected = vae.decode(plain).sample
        torch.testing.assert_close(backbone.decode(latents), expected, rtol=0, atol=1e-5)
    assert expected.shape == (2, 3, FRAMES, 16, 16)


def test_the_schedulers_of_wan_are_read_as_flow() -> None:
    # the schedulers of the published repositories
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    backbone = tiny_wan(scheduler=scheduler)
    assert isinstance(backbone.schedule, FlowSchedule) and backbone.schedule.shift == 5.0
    assert backbone.prediction == "flow"


def test_parts_kept_in_float32_stay_so_in_half_precision(tmp_path: Path) -> None:
    tiny_wan().pipe.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in backbone.denoiser.named_parameters()}
    kept = [name for name in dtypes if "time_embedder" in name or "scale_shift_table" in name or ".norm2" in name]
    assert len(kept) > 5 and {dtypes[name] for name in kept} == {torch.float32}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    x = torch.randn(backbone.latent_shape(2, 32, 48, FRAMES), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kwargs = backbone.stage_cond(backbone.encode(PROMPTS[:2]), FULL, FULL)
        x0, eps = backbone.predict(backbone.denoiser, x, 500.0, kwargs)
        exact = tiny_wan()
        truth, _ = exact.predict(exact.denoiser, x, 500.0, exact.stage_cond(exact.encode(PROMPTS[:2]), FULL, FULL))
    assert x0.dtype == eps.dtype == torch.float32
    assert float((x0 - truth).norm() / truth.norm()) < 0.02


def test_the_null_prompt_is_the_empty_one() -> None:
    backbone = tiny_wan()
    null = backbone.null(3).tensors["embeds"]
    assert torch.equal(null[2:], backbone.encode([""]).tensors["embeds"]) and len(null) == 3
    filled = backbone.encode(PROMPTS[:1]).tensors["embeds"]
    assert filled.shape[1] == backbone.pipe.tokenizer.model_max_length
    assert not filled[0, -1].any()  # padded with zeros, as in the official pipeline


def test_wan22_is_refused() -> None:
    with pytest.raises(RMDError, match=r"^this is a Wan2\.2 pipeline with two experts, .*: give a Wan2\.1"):
        tiny_wan(transformer_2=tiny_wan().denoiser, boundary_ratio=0.875)
    with pytest.raises(RMDError, match=r"^this is a Wan2\.2 pipeline with two experts"):
        tiny_wan(boundary_ratio=0.9)
    with pytest.raises(RMDError, match=r"^this Wan2\.2 pipeline gives each token its own time"):
        tiny_wan(expand_timesteps=True)
