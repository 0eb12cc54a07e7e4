"""The teacher's power spectrum: that of the latents it samples or encodes, in any number of batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import TINY
from helpers import PROMPTS, tiny_sdxl
from PIL import Image

from rmd.common.errors import RMDError
from rmd.core.fit import power_spectrum
from rmd.core.plan import Stage, build_plan
from rmd.data.images import ImageFolder
from rmd.models.generate import latent_batches
from rmd.sample import spectrum
from rmd.sample.spectrum import image_spectrum, teacher_spectrum


def test_the_spectrum_is_that_of_the_sampled_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "TEACHER_STEPS", 2)
    monkeypatch.setattr(spectrum, "BATCH", 3)
    backbone = tiny_sdxl()
    done: list[int] = []
    power = teacher_spectrum(backbone, (16, 24), PROMPTS[:4], seed=5, guidance=2.0, progress=done.append)
    assert done == [3, 4]
    plan = build_plan(backbone.schedule, steps=2, sides=[(16, 24)], thresholds=[])
    batches = latent_batches(backbone, backbone.denoiser, plan, PROMPTS[:4], seed=5, guidance=2.0, batch_size=3)
    latents = torch.cat(list(batches))
    assert torch.equal(power, power_spectrum(latents)) and power.shape == latents.shape[-2:]


def test_the_spectrum_of_pictures_is_that_of_their_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "BATCH", 2)
    backbone = tiny_sdxl()
    for i in range(4):
        noise = torch.randint(256, (20, 30, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
    done: list[tuple[int, int]] = []
    power = image_spectrum(backbone, (16, 24), tmp_path, 3, progress=lambda *numbers: done.append(numbers))
    assert done == [(2, 3), (3, 3)]
    pixels = ImageFolder.read(tmp_path, captions=False).pixels(torch.arange(3), Stage(1, 16, 24))
    latents = backbone.encode_images(pixels)
    torch.testing.assert_close(power, power_spectrum(latents))
    assert power.shape == latents.shape[-2:]


def test_pictures_say_nothing_about_a_teacher_of_videos(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match="--images is for teachers of pictures, and wan makes videos: leave it out"):
        image_spectrum(TINY["wan"](), (16, 16), tmp_path, 2)
