"""The gates of a world: each measure in closed form, and all of them on the packaged world and on an untrained one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from research.scenes import gates
from research.scenes.families import build_sdxl
from research.scenes.gates import (
    Bench,
    Gate,
    coarse,
    finish,
    finished_gate,
    gates_markdown,
    hidden_gate,
    measure_gates,
    open_bench,
    share_gate,
    slope_gate,
    spectral_slope,
    unnamed_detail,
)
from research.scenes.kits import SCENES, VISTAS
from research.scenes.record import seeded
from research.scenes.vae import build_vae, encode
from rmd.core.fit import power_spectrum
from rmd.core.metrics import Z95
from rmd.worlds.assets import assets_folder, teacher_folder
from rmd.worlds.picture import PictureWorld


@pytest.fixture(scope="module")
def packaged() -> Bench:
    return open_bench(SCENES, teacher_folder(), assets_folder(), samples=8, steps=6, guidance=3.0, seed=41)


def noise_of_slope(exponent: float, side: int = 128) -> torch.Tensor:
    """Return pictures (16, 3, side, side) whose power falls with the frequency as f^exponent."""
    white = torch.randn(16, 1, side, side, generator=torch.Generator().manual_seed(0))
    radius = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    radius[0, 0] = torch.inf
    return torch.fft.irfft2(torch.fft.rfft2(white) * radius ** (exponent / 2)).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("exponent", [-1.0, -2.0, -3.0])
def test_the_slope_of_a_known_spectrum(exponent: float) -> None:
    assert spectral_slope(noise_of_slope(exponent)) == pytest.approx(exponent, abs=0.15)


def test_only_natural_slopes_pass() -> None:
    assert [slope_gate(noise_of_slope(exponent)).passed for exponent in (-1.0, -2.0, -3.5)] == [False, True, False]


@pytest.mark.parametrize(("world", "size"), [(SCENES.world, 64), (VISTAS.world, 128)])
def test_detail_that_captions_do_not_name_is_what_random_fields_contribute(world: PictureWorld, size: int) -> None:
    detail = unnamed_detail(world, 24, seed=3, size=size)
    assert detail.shape == (24, 3, size, size)
    whole = world.renders(24, seed=3, size=size).pixels(torch.arange(24))
    assert float(detail.std()) < 0.5 * float(whole.std())


def test_the_fields_of_vistas_fall_with_the_square_of_the_frequency() -> None:
    detail = unnamed_detail(VISTAS.world, 48, seed=3, size=128)
    assert spectral_slope(detail) == pytest.approx(-2, abs=0.15) and slope_gate(detail).passed
    whole = VISTAS.world.renders(48, seed=3, size=128).pixels(torch.arange(48))
    assert spectral_slope(whole) < -3  # edges fall faster


def test_shares_and_their_limits() -> None:
    right = torch.tensor([True] * 90 + [False] * 10)
    half = Z95 * math.sqrt(0.9 * 0.1 / 100)
    text = f"90.0% [{90 - 100 * half:.1f}, {90 + 100 * half:.1f}]"
    assert share_gate("a", right, least=0.9) == Gate("a", "at least 90%", text, True)
    assert share_gate("a", right, most=0.8) == Gate("a", "at most 80%", text, False)


def test_attributes_that_a_quarter_of_the_size_shows() -> None:
    right = torch.ones(100, 3, dtype=torch.bool)
    right[:6, 0], right[:5, 1] = False, False
    assert coarse(right).tolist() == [False, True, True]


def test_hidden_power_in_closed_form(packaged: Bench) -> None:
    """A mode beyond the low resolution with a power of 2 counts at an SNR of 1/4, and a constant picture does not."""
    schedule = packaged.backbone.schedule
    time = float(schedule.time(math.log(0.25)))
    latents = torch.zeros(2, 4, 32, 32)
    rows = torch.cos(math.pi * (torch.arange(32) + 0.5) * 20 / 32)
    latents += math.sqrt(2.0) * rows[:, None] / rows.square().sum().sqrt() / math.sqrt(32)  # power 2 in mode (20, 0)
    assert float(power_spectrum(latents)[20, 0]) == pytest.approx(2, rel=1e-5)
    gate = hidden_gate(packaged, latents, time)
    assert gate.measured == "0.500" and not gate.passed
    low = torch.full((2, 4, 32, 32), 5.0)
    assert hidden_gate(packaged, low, time).measured == "0.000"


def test_finishing_from_little_noise_returns_the_picture(packaged: Bench) -> None:
    latents = encode(packaged.backbone.pipe.vae, packaged.pixels[:2])
    few = replace(packaged, captions=packaged.captions[:2])
    made, decoded = finish(few, latents, 20.0), packaged.backbone.decode(latents).clamp(-1, 1)
    assert float((made - decoded).detach().abs().mean()) < 0.02
    other = finish(few, latents, 900.0)
    assert float((other - decoded).detach().abs().mean()) > 0.05


def test_nothing_is_lost_if_there_is_nothing_to_lose(packaged: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "finish", lambda bench, latents, crossing: bench.pixels)
    gate = finished_gate(packaged, torch.zeros(8, 4, 32, 32), 500.0)
    assert gate.passed and gate.measured == "0.0% [0.0, 0.0]"
    blurred = F.interpolate(F.avg_pool2d(packaged.pixels, 16), scale_factor=16)
    pictures = iter([packaged.pixels, blurred])
    monkeypatch.setattr(gates, "finish", lambda *_: next(pictures))
    assert not finished_gate(packaged, torch.zeros(8, 4, 32, 32), 500.0).passed


def test_all_gates_of_the_scenes(packaged: Bench) -> None:
    """Their textures need the detail that a crossing in the middle loses, and their low resolution is right."""
    results = measure_gates(packaged, crossing=500.0, log=lambda _: None)
    assert len(results) == 7
    hidden, low = results[2], results[4]
    assert hidden.name == "largest power times SNR beyond the low resolution at time 500" and not hidden.passed
    assert low.name.startswith("right at the low resolution in every attribute but ") and "texture_a" in low.name
    text = gates_markdown(results).splitlines()
    assert len(text) == 9 and text[4].endswith("| **miss** |")


def test_an_untrained_teacher_of_vistas_fails() -> None:
    with seeded(0):
        backbone, judge = build_sdxl(build_vae(VISTAS.vae.widths), VISTAS.words), VISTAS.world.untrained_judge()
    scenes = VISTAS.world.renders(4, seed=1, size=128)
    bench = Bench(
        VISTAS, backbone, judge.eval(), scenes.captions, scenes.attributes, scenes.pixels(torch.arange(4)), 3.0, 5, 0
    )
    assert bench.sample(bench.low, 2).shape == (4, 3, 64, 64)
    results = measure_gates(bench, crossing=500.0, log=lambda _: None)
    assert not results[0].passed and not results[5].passed
