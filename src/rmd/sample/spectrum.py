"""The power spectrum of a teacher's latents, from which `rmd plan --fit` predicts what a plan loses.

`rmd.core.fit` explains how the spectrum is used; `rmd.sample.timing` measures the other side, the cost of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.files import user_path
from rmd.core.fit import Side, power_spectrum
from rmd.core.plan import Stage, build_plan
from rmd.data.images import ImageFolder
from rmd.models.base import Backbone
from rmd.models.generate import latent_batches

BATCH = 8
"""Number of samples to generate at once."""
TEACHER_STEPS = 25
"""Sampling steps of the teacher."""


def teacher_spectrum(
    backbone: Backbone, side: Side, prompts: Sequence[str], *, seed: int, guidance: float, frames: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Return the mean power of each mode of clean latents that the teacher generates.

    Args:
        backbone: the teacher.
        side: (height, width) of the samples in pixels.
        prompts: one prompt per sample.
        seed: seed of the initial noise.
        guidance: the teacher's guidance scale; it samples in `TEACHER_STEPS` steps.
        frames: number of frames of a video; 1 for pictures.
        progress: called after each batch with the number of samples so far.

    Returns:
        (H, W) in latent pixels; float64 (`rmd.core.fit.power_spectrum`).
    """
    plan = build_plan(backbone.schedule, steps=TEACHER_STEPS, sides=[side], thresholds=[], frames=frames)
    batches: list[Tensor] = []
    for latents in latent_batches(
        backbone, backbone.denoiser, plan, prompts, seed=seed, guidance=guidance, batch_size=BATCH
    ):
        batches.append(latents.cpu())
        if progress is not None:
            progress(sum(map(len, batches)))
    return power_spectrum(torch.cat(batches))


def image_spectrum(
    backbone: Backbone, side: Side, folder: Path, count: int, *, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Return the mean power of each mode of the latents to which the teacher's VAE encodes real pictures.

    Args:
        backbone: the teacher, one of pictures.
        side: (height, width) in pixels, to which the pictures are scaled and cropped.
        folder: folder of the pictures, which need no captions.
        count: largest number of pictures to use; the first ones by name.
        progress: called after each batch with the number of pictures so far, and their total.

    Returns:
        (H, W) in latent pixels; float64 (`rmd.core.fit.power_spectrum`).

    Raises:
        RMDError: the teacher makes videos, or the folder cannot be read as pictures.
    """
    if backbone.moving:
        raise RMDError(f"--images is for teachers of pictures, and {backbone.family} makes videos: leave it out")
    folder = user_path(str(folder))
    if not folder.is_dir():
        raise RMDError(f"--images: there is no folder {folder}: name an existing one")
    images = ImageFolder.read(folder, captions=False, setting="--images")
    indices, batches = torch.arange(min(count, len(images.paths))), list[Tensor]()
    for index in indices.split(BATCH):
        batches.append(backbone.encode_images(images.pixels(index, Stage(1, *side))).cpu())
        if progress is not None:
            progress(sum(map(len, batches)), len(indices))
    return power_spectrum(torch.cat(batches))
