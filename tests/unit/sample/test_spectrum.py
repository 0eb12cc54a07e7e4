"""The teacher's power spectrum: that of the latents it samples, in any number of batches."""

from __future__ import annotations

import pytest
import torch
from helpers import PROMPTS, tiny_sdxl

from rmd.core.fit import power_spectrum
from rmd.core.plan import build_plan
from rmd.models.generate import latent_batches
from rmd.sample import spectrum
from rmd.sample.spectrum import teacher_spectrum


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
