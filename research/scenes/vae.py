"""The VAEs of still pictures, AutoencoderKLs to 32 x 32 latents of 4 channels, and their two trainings.

The first trains the whole VAE. The second trains the decoder alone, which improves the pictures and leaves the latents,
and so teachers that were trained in them, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from research.scenes.dataset import BatchOrder
from research.scenes.optimisation import train_adamw, train_muon
from rmd.core.crossing import cosine_basis
from rmd.core.randomness import generator
from rmd.worlds.dataset import SceneSet

LATENT_CHANNELS = 4
LATENT_SIDE = 32
MUON_LR = 3e-3
DECODER_SHARE = 2.5
"""Iterations in which only the decoder is trained, as a multiple of those in which the whole VAE was."""


@dataclass(frozen=True)
class VaeSettings:
    """Settings of a VAE and of its trainings.

    Attributes:
        widths: number of channels of each level, multiples of 8.
        iterations: optimiser steps of the whole VAE; `DECODER_SHARE` times as many of the decoder alone follow.
        batch_size: number of crops in each step.
        crop: side of the crops in pixels, at most half of the pictures'.
        smooth: weight of the loss on the latents' detail.
        colours: weight of the loss on mean colours at the start.
        muon: whether Muon trains the kernels, instead of AdamW.
    """

    widths: tuple[int, ...] = (16, 32)
    iterations: int = 1000
    batch_size: int = 64
    crop: int = 32
    smooth: float = 0.0
    colours: float = 0.0
    muon: bool = False


_USUAL = VaeSettings()


def build_vae(widths: Sequence[int] = (16, 32)) -> AutoencoderKL:
    """Return an untrained AutoencoderKL with convolutions only, which downsamples by two after each level but the last.

    A network of this size does not learn the fine textures of the scenes if it downsamples by four.

    Args:
        widths: number of channels of each level, multiples of 8.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=LATENT_SIDE * 2 ** (len(widths) - 1),
        shift_factor=0.0,  # no shift; the pipeline of SD3 requires the field
        mid_block_add_attention=False,
    )


def train_vae(
    vae: AutoencoderKL, scenes: SceneSet, settings: VaeSettings = _USUAL, *, seed: int = 0,
    checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the whole VAE on random crops, at two scales, and set its scaling factor.

    The loss has up to five terms: L1 on pixels and on their differences, because edges matter in fine textures; a small
    KL term; on half of the batch, the reconstruction of the averaged picture from the averaged latent; and the share of
    the latents' power that lies beyond half their resolution. The third makes the latent space commute with a change of
    scale, as that of large VAEs roughly does, and as a cascade that upsamples latents needs it. The fourth keeps detail
    small beside structure, as it is in natural pictures (compare Skorokhodov et al. 2025, arXiv 2502.14831). The last
    one, which is gone after a third of the training, is the error of the mean colours of each latent pixel that a
    linear map reads off the latents; without it, colours are learned long after brightness.

    Args:
        vae: the VAE to train.
        scenes: the training data.
        settings: number of steps and weights of the terms.
        seed: seed of the training.
        checkpoint: file from which an interrupted training resumes; written every `every` iterations.
        log: receives progress messages.

    Returns:
        Seconds of training, including those before an interruption.
    """
    vae.train()
    order = BatchOrder(len(scenes), settings.batch_size, seed=seed)
    colours = _colour_reader(seed)
    trained = nn.ModuleList([vae, colours]) if settings.colours else vae

    def loss(step: int) -> Tensor:
        g = generator(seed, "vae", step)
        images = _crops(scenes.pixels(order.at(step)), g, settings.crop)
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        kl: Tensor = 1e-6 * posterior.kl().mean() / latents[0].numel() * 1000
        value = _loss_at_two_scales(vae, latents, images) + kl
        if settings.smooth:
            value = value + settings.smooth * detail_share(posterior.mean)
        weight = settings.colours * max(0.0, 1 - 3 * step / settings.iterations)
        return value + weight * _colour_error(colours(latents), images) if weight else value

    seconds = _train(trained, loss, settings, settings.iterations, "vae", checkpoint, every, log)
    vae.eval()
    latents = encode(vae, scenes.pixels(torch.arange(min(512, len(scenes)))), scale=False)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return seconds


def train_decoder(
    vae: AutoencoderKL, scenes: SceneSet, settings: VaeSettings = _USUAL, *, iterations: int | None = None,
    seed: int = 0, checkpoint: Path | None = None, every: int = 500, log: Callable[[str], None] = print,
) -> float:  # fmt: skip
    """Train the decoder alone, with the crops and losses of `train_vae`; the latents do not change.

    Arguments and result are those of `train_vae`; `iterations` is by default `DECODER_SHARE` times the settings'.
    """
    count = round(DECODER_SHARE * settings.iterations) if iterations is None else iterations
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    vae.requires_grad_(False)
    trained.requires_grad_(True)
    order = BatchOrder(len(scenes), settings.batch_size, seed=seed)

    def loss(step: int) -> Tensor:
        g = generator(seed, "decoder", step)
        images = _crops(scenes.pixels(order.at(step)), g, settings.crop)
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        return _loss_at_two_scales(vae, latents, images)

    seconds = _train(trained, loss, settings, count, "decoder", checkpoint, every, log)
    trained.requires_grad_(False)
    return seconds


def _train(
    trained: nn.Module, loss: Callable[[int], Tensor], settings: VaeSettings, iterations: int, name: str,
    checkpoint: Path | None, every: int, log: Callable[[str], None],
) -> float:  # fmt: skip
    """Minimise a loss with the settings' optimiser; the other arguments and the result are those of `train_adamw`."""
    if settings.muon:
        return train_muon(
            trained, loss, name=name, iterations=iterations, lr=MUON_LR, checkpoint=checkpoint, every=every, log=log
        )
    return train_adamw(
        trained, loss, name=name, iterations=iterations, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4, rise=0.05,
        checkpoint=checkpoint, every=every, log=log,
    )  # fmt: skip


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


def _colour_reader(seed: int) -> nn.Module:
    """Return an untrained linear map from latents to colours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(LATENT_CHANNELS, 3, 1)


def _colour_error(read: Tensor, images: Tensor) -> Tensor:
    """Return the mean absolute error of the mean colours that are read for each latent pixel."""
    return (read - F.avg_pool2d(images, images.shape[-1] // read.shape[-1])).abs().mean()


def detail_share(latents: Tensor) -> Tensor:
    """Return the share of the variance of latents (n, c, h, w) that lies beyond half of their resolution."""
    rows, columns = (cosine_basis(side).to(latents.dtype) for side in latents.shape[-2:])
    power = (rows @ (latents - latents.mean((0, 2, 3), keepdim=True)) @ columns.T).square()
    held = power[..., : latents.shape[-2] // 2, : latents.shape[-1] // 2].sum()
    return 1 - held / power.sum()


def _crops(images: Tensor, g: torch.Generator, side: int) -> Tensor:
    """Return random crops at one position for the batch; for a quarter of it they are twice as large, and scaled."""
    free = images.shape[-1] - side
    top, left = (int(v) for v in torch.randint(0, free + 1, (2,), generator=g))
    quarter = images.shape[0] // 4
    whole_top, whole_left = (v * (free - side) // free for v in (top, left))
    wide = images[:quarter, :, whole_top : whole_top + 2 * side, whole_left : whole_left + 2 * side]
    return torch.cat([F.avg_pool2d(wide, 2), images[quarter:, :, top : top + side, left : left + side]])


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, *, scale: bool = True, chunk: int = 128) -> Tensor:
    """Return the posterior means (n, 4, h, w) of images (n, 3, H, W) in [-1, 1], times the scaling factor."""
    factor = vae.config.scaling_factor if scale else 1.0
    return torch.cat([vae.encode(part).latent_dist.mean * factor for part in pixels.split(chunk)])
