"""The moving scenes' small AutoencoderKLWan: 9 frames of 64 px to 5 x 16 x 16 latents of 8 channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from research.scenes.dataset import BatchOrder
from research.scenes.fitting import fit_matrices
from research.scenes.moving.dataset import ClipSet
from rmd.core.randomness import generator

CLIP_CHANNELS = 8
CLIP_LATENT_SIDE = 16
WINDOW = 5
"""Frames that training sees in a row."""


def build_clip_vae() -> AutoencoderKLWan:
    """An untrained stock AutoencoderKLWan that divides sides by four and time, but for the first frame, by two.

    It starts as an image VAE does, frame by frame: kernels look at the present frame alone, of two frames that become
    one the later stays, and one that becomes two is shown twice.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=CLIP_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * CLIP_CHANNELS,
        latents_std=[1.0] * CLIP_CHANNELS,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and module.kernel_size[0] > 1:
                module.weight[:, :, :-1] = 0.0
                module.weight *= module.kernel_size[0] ** 0.5  # what they saw of the past was part of their sum
        for name, parameter in vae.named_parameters():
            if name.endswith("time_conv.weight"):
                out, channels = parameter.shape[:2]
                parameter.zero_()
                parameter[:, :, -1, 0, 0] = torch.eye(channels).repeat(out // channels, 1)
            elif name.endswith("time_conv.bias"):
                parameter.zero_()
    return vae


def train_clip_vae(
    vae: AutoencoderKLWan, clips: ClipSet, *, iterations: int, batch_size: int = 8, lr: float = 8e-3,
    stills: float = 0.45, moves: float = 5 / 17, seed: int = 0, checkpoint: Path | None = None, every: int = 250,
    log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train on half-size crops at both scales, then set the statistics of its latent channels.

    First on single frames, of twice as many clips: most of what there is to learn is in space, and a frame costs
    least. Then on five frames in a row, which hold all that there is of time: a first frame, and pairs. A pair's
    earlier frame is then drawn halfway between its neighbours, which is right for what is slow; so the last
    iterations, with a rise and fall of the rate of their own, see crops around the object, half of them at double
    speed.

    The loss is L1 on pixels and on their differences in space and time, a light KL term, and, on a quarter of the
    batch, reconstruction of the spatially averaged clip from the averaged latents (see `research.scenes.vae`).

    Args:
        moves: share of the iterations that see what moves.
        stills: share of the others that see single frames.
        checkpoint: file that a killed run goes on from, kept after every `every` iterations.

    Returns:
        Seconds the training took, those before a kill included.
    """
    vae.train()
    last = round(moves * iterations)
    still = round(stills * (iterations - last))
    frames = BatchOrder(len(clips), 2 * batch_size, seed=seed)
    whole = BatchOrder(len(clips), batch_size, seed=seed)
    moving = BatchOrder(len(clips), batch_size, seed=seed + 1)

    def loss(step: int) -> Tensor:
        g = generator(seed, "clip-vae", step)
        if step < still:
            videos = clips.pixels(frames.at(step))
            time = torch.randint(0, videos.shape[2], (len(videos),), generator=g)
            return _loss(vae, _crops(videos[torch.arange(len(videos)), :, time].unsqueeze(2), g), g)
        videos = clips.pixels(whole.at(step))
        begin = int(torch.randint(0, videos.shape[2] - WINDOW + 1, (), generator=g))
        return _loss(vae, _crops(videos[:, :, begin : begin + WINDOW], g), g)

    def moving_loss(step: int) -> Tensor:
        g = generator(seed, "clip-vae-moving", step)
        return _loss(vae, moving_windows(clips, moving.at(step), g), g)

    seconds = fit_matrices(
        vae, loss, name="vae", iterations=iterations - last, lr=lr, checkpoint=checkpoint, every=every, log=log,
        log_every=50,
    )  # fmt: skip
    kept = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-moving{checkpoint.suffix}")
    seconds += fit_matrices(
        vae, moving_loss, name="vae-moving", iterations=last, lr=0.75 * lr, decay=0.6, checkpoint=kept, every=every,
        log=log, log_every=50,
    )  # fmt: skip
    if kept is not None:
        kept.unlink(missing_ok=True)
    vae.eval()
    found = encode_clips(vae, clips.pixels(torch.arange(min(128, len(clips)))))
    vae.register_to_config(
        latents_mean=found.mean((0, 2, 3, 4)).tolist(), latents_std=found.transpose(0, 1).flatten(1).std(1).tolist()
    )
    return seconds


def clip_reconstruction_loss(decoded: Tensor, videos: Tensor) -> Tensor:
    """Mean absolute error of the pixels and of their differences along height, width and, in clips, time."""
    error = decoded - videos
    return error.abs().mean() + sum(
        (error.diff(dim=d).abs().mean() for d in (-1, -2, -3) if error.shape[d] > 1), torch.zeros(())
    )


def moving_windows(clips: ClipSet, index: Tensor, g: torch.Generator) -> Tensor:
    """Five frames each, all of them in a row or every second, of a 32 px window with the object in it."""
    videos = clips.pixels(index)
    stride = 1 + int(torch.randint(0, 2, (), generator=g))
    span = stride * (WINDOW - 1) + 1
    begin = int(torch.randint(0, videos.shape[2] - span + 1, (), generator=g))
    time = torch.arange(begin, begin + span, stride)
    centre = clips.path.centre[index][:, time].mean(1)
    centre = centre + 16 * torch.rand(centre.shape, generator=g) - 8
    corners = (centre - 16).round().long().clamp(0, videos.shape[-1] - 32).tolist()
    return torch.stack([video[:, time, y : y + 32, x : x + 32] for video, (x, y) in zip(videos, corners, strict=True)])


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, videos: Tensor, *, chunk: int = 8) -> Tensor:
    """Posterior means of (n, 3, T, H, W) videos in [-1, 1], with the statistics of the VAE's config undone."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return torch.cat([(vae.encode(part).latent_dist.mean - mean) / std for part in videos.split(chunk)])


def _loss(vae: AutoencoderKLWan, videos: Tensor, g: torch.Generator) -> Tensor:
    quarter = max(1, len(videos) // 4)
    posterior = vae.encode(videos).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    small = vae.decode(_halve(latents[:quarter])).sample
    sharp = clip_reconstruction_loss(vae.decode(latents).sample, videos)
    light: Tensor = 1e-6 * posterior.kl().mean() / latents[0].numel() * 1000
    return sharp + 0.15 * clip_reconstruction_loss(small, _halve(videos[:quarter])) + light


def _crops(videos: Tensor, g: torch.Generator) -> Tensor:
    """One random 32 px window for the batch; for a quarter of it the whole clip at 32 px instead."""
    top, left = (int(v) for v in torch.randint(0, videos.shape[-1] - 31, (2,), generator=g))
    quarter = videos.shape[0] // 4
    whole = F.avg_pool3d(videos[:quarter], (1, videos.shape[-1] // 32, videos.shape[-1] // 32))
    return torch.cat([whole, videos[quarter:, :, :, top : top + 32, left : left + 32]])


def _halve(videos: Tensor) -> Tensor:
    return F.avg_pool3d(videos, (1, 2, 2))
