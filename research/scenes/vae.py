"""The VAE of the still scenes, an AutoencoderKL from 64 px to 32 x 32 latents of 4 channels, and its two trainings.

The first trains the whole VAE. The second trains the decoder alone, which improves the pictures and leaves the latents,
and so teachers that were trained in them, as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from research.scenes.dataset import BatchOrder
from research.scenes.optimisation import train_adamw
from rmd.core.randomness import generator
from rmd.worlds.still.dataset import SceneSet

LATENT_CHANNELS = 4
LATENT_SIDE = 32


def build_vae() -> AutoencoderKL:
    """Return an untrained AutoencoderKL that downsamples by two, with convolutions only.

    A network of this size does not learn the fine textures if it downsamples by four.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        shift_factor=0.0,  # no shift; the pipeline of SD3 requires the field
        mid_block_add_attention=False,
    )


def train_vae(
    vae: AutoencoderKL, scenes: SceneSet, *, iterations: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the whole VAE on random crops of half the size, at two scales, and set its scaling factor.

    The loss has three terms: L1 on pixels and on their differences, because edges matter in fine textures; a small KL
    term; and, on half of the batch, the reconstruction of the averaged picture from the averaged latent. The last one
    makes the latent space commute with a change of scale, as that of large VAEs roughly does, and as a cascade that
    upsamples latents needs it.

    Args:
        vae: the VAE to train.
        scenes: the training data.
        iterations, batch_size, lr, seed: as in `train_adamw`; the seed is that of the training.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives progress messages.

    Returns:
        Seconds of training, including those before an interruption.
    """
    vae.train()
    order = BatchOrder(len(scenes), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        g = generator(seed, "vae", step)
        images = _crops(scenes.pixels(order.at(step)), g)
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        kl: Tensor = 1e-6 * posterior.kl().mean() / latents[0].numel() * 1000
        return _loss_at_two_scales(vae, latents, images) + kl

    seconds = train_adamw(
        vae, loss, name="vae", iterations=iterations, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, rise=0.05,
        checkpoint=checkpoint, every=every, log=log,
    )  # fmt: skip
    vae.eval()
    latents = encode(vae, scenes.pixels(torch.arange(min(512, len(scenes)))), scale=False)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return seconds


def train_decoder(
    vae: AutoencoderKL, scenes: SceneSet, *, iterations: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the decoder alone, with the crops and losses of `train_vae`; the latents do not change.

    Arguments and result are those of `train_vae`.
    """
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    vae.requires_grad_(False)
    trained.requires_grad_(True)
    order = BatchOrder(len(scenes), batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        g = generator(seed, "decoder", step)
        images = _crops(scenes.pixels(order.at(step)), g)
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        return _loss_at_two_scales(vae, latents, images)

    seconds = train_adamw(
        trained, loss, name="decoder", iterations=iterations, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, rise=0.05,
        checkpoint=checkpoint, every=every, log=log,
    )  # fmt: skip
    trained.requires_grad_(False)
    return seconds


def _loss_at_two_scales(vae: AutoencoderKL, latents: Tensor, images: Tensor) -> Tensor:
    """Return the reconstruction loss, plus a small one of half of the images at half the size from averaged latents."""
    half = len(images) // 2
    small = vae.decode(F.avg_pool2d(latents[half:], 2)).sample
    loss = reconstruction_loss(vae.decode(latents).sample, images)
    return loss + 0.15 * reconstruction_loss(small, F.avg_pool2d(images[half:], 2))


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the mean absolute error of the pixels plus those of their horizontal and vertical differences."""
    error = decoded - images
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _crops(images: Tensor, g: torch.Generator) -> Tensor:
    """Return random 32 px crops at one position for the batch, of which a quarter is scaled to 32 px instead."""
    top, left = (int(v) for v in torch.randint(0, images.shape[-1] - 31, (2,), generator=g))
    quarter = images.shape[0] // 4
    whole = F.avg_pool2d(images[:quarter], images.shape[-1] // 32)
    return torch.cat([whole, images[quarter:, :, top : top + 32, left : left + 32]])


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, *, scale: bool = True, chunk: int = 128) -> Tensor:
    """Return the posterior means (n, 4, H/2, W/2) of images (n, 3, H, W) in [-1, 1], times the scaling factor."""
    factor = vae.config.scaling_factor if scale else 1.0
    return torch.cat([vae.encode(part).latent_dist.mean * factor for part in pixels.split(chunk)])
