"""The VAE of moving scenes: its initialisation, its loss, and the three parts of its training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from research.scenes.moving.dataset import make_clips
from research.scenes.moving.vae import (
    CLIP_CHANNELS,
    WINDOW,
    build_clip_vae,
    clip_reconstruction_loss,
    moving_windows,
    train_clip_vae,
)
from rmd.core.randomness import generator


@torch.no_grad()
def test_the_untrained_vae_processes_frames_alone() -> None:
    vae = build_clip_vae().eval()
    frames = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    alone = [vae.encode(frames[:, :, t : t + 1]).latent_dist.mean for t in (0, 2, 4, 6, 8)]
    latents = vae.encode(frames).latent_dist.mean
    assert latents.shape == (2, CLIP_CHANNELS, 5, 8, 8)
    torch.testing.assert_close(latents, torch.cat(alone, 2), rtol=0, atol=1e-5)
    shown = torch.cat([vae.decode(latent).sample for latent in alone], 2)
    twice = shown[:, :, [0, 1, 1, 2, 2, 3, 3, 4, 4]]
    torch.testing.assert_close(vae.decode(latents).sample, twice, rtol=0, atol=1e-5)


def test_the_loss_in_closed_form() -> None:
    videos = torch.zeros(2, 3, 9, 8, 8)
    assert clip_reconstruction_loss(videos + 0.25, videos) == pytest.approx(0.25)
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand_as(videos)
    assert clip_reconstruction_loss(videos + ramp, videos) == pytest.approx(
        4.0 + 1.0
    )  # mean of 0 to 8, plus one per frame
    assert clip_reconstruction_loss(videos[:, :, :1] + 0.5, videos[:, :, :1]) == pytest.approx(0.5)


def test_training_uses_frames_then_clips_then_moving_crops() -> None:
    clips = make_clips(8, seed=3, training=True)
    vae = build_clip_vae()
    past: dict[tuple[str, str], Tensor] = {}

    def watch(line: str) -> None:
        kernel = vae.encoder.mid_block.resnets[0].conv1.weight
        name, _, step = line.split()[:3]
        past[name, step] = kernel[:, :, :-1].detach().abs().max()

    train_clip_vae(vae, clips, iterations=6, batch_size=2, stills=0.5, moves=1 / 3, log=watch)
    assert past["vae", "0/4"] == 0.0  # temporal kernels learn nothing from single frames
    assert past["vae", "3/4"] > 0.0
    assert ("vae-moving", "1/2") in past
    std = torch.tensor(vae.config.latents_std)
    assert std.shape == (CLIP_CHANNELS,) and not torch.equal(std, torch.ones(CLIP_CHANNELS))


def test_moving_crops_contain_the_object() -> None:
    clips = make_clips(8, seed=3, training=True)
    index = torch.arange(8)
    seen = torch.stack([moving_windows(clips, index, generator(0, "window", step)) for step in range(4)])
    assert seen.shape == (4, 8, 3, WINDOW, 32, 32)
    whole = clips.pixels(index)
    for window, video in zip(seen[0, :3], whole, strict=False):
        parts = video.unfold(2, 32, 1).unfold(3, 32, 1)  # (3, T, 33, 33, 32, 32)
        assert (parts == window[:, :1, None, None]).all(-1).all(-1).all(0).any()  # an unchanged part of its own clip
    changes = seen.diff(dim=3).abs().amax(2) > 0.2
    assert bool(changes.flatten(2).any(2).all())  # only the object moves
