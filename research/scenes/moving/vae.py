"""The VAE of moving scenes, an AutoencoderKLWan from 9 frames of 64 px to 5 x 16 x 16 latents of 8 channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from research.scenes.dataset import BatchOrder
from research.scenes.moving.dataset import ClipSet
from research.scenes.optimisation import train_muon
from rmd.core.randomness import generator

CLIP_CHANNELS = 8
CLIP_LATENT_SIDE = 16
WINDOW = 5
"""Number of consecutive frames in a training sample."""


def build_clip_vae() -> AutoencoderKLWan:
    """Return an untrained AutoencoderKLWan that divides sides by four, and time except for the first frame by two.

    It is initialised as an image VAE that processes each frame alone: temporal kernels see only the present frame,
    temporal downsampling keeps the later of two frames, and temporal upsampling repeats a frame.
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
                module.weight *= module.kernel_size[0] ** 0.5  # restores the variance of the output
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
    """Train on crops of half the size, at two scales, and set the statistics of the latent channels.

    The training has three parts. The first uses single frames, of twice as many clips, because most of what there is to
    learn is in space, and a frame is cheap. The second uses five consecutive frames. After it, the earlier frame of a
    pair is reconstructed halfway between its neighbours, which is correct for slow motion only. So the third part, with
    a learning-rate cycle of its own, uses crops around the object, half of them at double speed.

    The loss is L1 on pixels and on their differences in space and time, a small KL term, and, on a quarter of the
    batch, the reconstruction of the spatially averaged clip from the averaged latents (see `research.scenes.vae`).

    Args:
        vae: the VAE to train.
        clips: the training data.
        iterations, batch_size, lr, seed: as in `train_muon`; the seed is that of the training.
        stills: fraction of the first two parts' iterations that uses single frames.
        moves: fraction of all iterations in the third part.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives progress messages.

    Returns:
        Seconds of training, including those before an interruption.
    """
    vae.train()
    last = round(moves * iterations)
    still = round(stills * (iterations - last))
    moving_checkpoint = (
        None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}-moving{checkpoint.suffix}")
    )
    seconds = train_muon(
        vae, _still_loss(vae, clips, still, batch_size, seed), name="vae", iterations=iterations - last, lr=lr,
        checkpoint=checkpoint, every=every, log=log, log_every=50,
    )  # fmt: skip
    seconds += train_muon(
        vae, _moving_loss(vae, clips, batch_size, seed), name="vae-moving", iterations=last, lr=0.75 * lr, decay=0.6,
        checkpoint=moving_checkpoint, every=every, log=log, log_every=50,
    )  # fmt: skip
    if moving_checkpoint is not None:
        moving_checkpoint.unlink(missing_ok=True)
    vae.eval()
    _set_statistics(vae, clips)
    return seconds


def _still_loss(
    vae: AutoencoderKLWan, clips: ClipSet, still: int, batch_size: int, seed: int
) -> Callable[[int], Tensor]:  # fmt: skip
    """Return the loss of the first two parts: single frames for `still` steps, and then windows of five frames."""
    frames = BatchOrder(len(clips), 2 * batch_size, seed=seed)
    windows = BatchOrder(len(clips), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        g = generator(seed, "clip-vae", step)
        if step < still:
            videos = clips.pixels(frames.at(step))
            time = torch.randint(0, videos.shape[2], (len(videos),), generator=g)
            return _loss(vae, _crops(videos[torch.arange(len(videos)), :, time].unsqueeze(2), g), g)
        videos = clips.pixels(windows.at(step))
        begin = int(torch.randint(0, videos.shape[2] - WINDOW + 1, (), generator=g))
        return _loss(vae, _crops(videos[:, :, begin : begin + WINDOW], g), g)

    return loss


def _moving_loss(vae: AutoencoderKLWan, clips: ClipSet, batch_size: int, seed: int) -> Callable[[int], Tensor]:
    """Return the loss of the third part, on crops around the moving object."""
    order = BatchOrder(len(clips), batch_size, seed=seed + 1)

    def loss(step: int) -> Tensor:
        g = generator(seed, "clip-vae-moving", step)
        return _loss(vae, moving_windows(clips, order.at(step), g), g)

    return loss


def _set_statistics(vae: AutoencoderKLWan, clips: ClipSet) -> None:
    """Store the mean and standard deviation of every latent channel in the VAE's configuration."""
    latents = encode_clips(vae, clips.pixels(torch.arange(min(128, len(clips)))))
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(),
        latents_std=latents.transpose(0, 1).flatten(1).std(1).tolist(),
    )


def clip_reconstruction_loss(decoded: Tensor, videos: Tensor) -> Tensor:
    """Return the mean absolute error of pixels plus those of their differences along height, width and time."""
    error = decoded - videos
    return error.abs().mean() + sum(
        (error.diff(dim=d).abs().mean() for d in (-1, -2, -3) if error.shape[d] > 1), torch.zeros(())
    )


def moving_windows(clips: ClipSet, index: Tensor, g: torch.Generator) -> Tensor:
    """Return 32 px crops around the objects of five consecutive frames, or of every second frame."""
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
    """Return the posterior means of videos (n, 3, T, H, W) in [-1, 1], normalised by the statistics of the config."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return torch.cat([(vae.encode(part).latent_dist.mean - mean) / std for part in videos.split(chunk)])


def _loss(vae: AutoencoderKLWan, videos: Tensor, g: torch.Generator) -> Tensor:
    """Return the reconstruction loss at both scales plus the KL term."""
    quarter = max(1, len(videos) // 4)
    posterior = vae.encode(videos).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
    small = vae.decode(_halve(latents[:quarter])).sample
    full = clip_reconstruction_loss(vae.decode(latents).sample, videos)
    kl: Tensor = 1e-6 * posterior.kl().mean() / latents[0].numel() * 1000
    return full + 0.15 * clip_reconstruction_loss(small, _halve(videos[:quarter])) + kl


def _crops(videos: Tensor, g: torch.Generator) -> Tensor:
    """Return random 32 px crops at one position for the batch, of which a quarter is scaled to 32 px instead."""
    top, left = (int(v) for v in torch.randint(0, videos.shape[-1] - 31, (2,), generator=g))
    quarter = videos.shape[0] // 4
    whole = F.avg_pool3d(videos[:quarter], (1, videos.shape[-1] // 32, videos.shape[-1] // 32))
    return torch.cat([whole, videos[quarter:, :, :, top : top + 32, left : left + 32]])


def _halve(videos: Tensor) -> Tensor:
    """Halve the height and width of videos by averaging."""
    return F.avg_pool3d(videos, (1, 2, 2))
