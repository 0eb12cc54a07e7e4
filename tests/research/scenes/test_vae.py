"""The VAE: its shapes, crops and losses, and trainings that resume bit for bit."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from research.scenes.checkpoint import read_whole
from research.scenes.kits import VISTAS
from research.scenes.record import seeded
from research.scenes.vae import (
    LATENT_CHANNELS,
    LATENT_SIDE,
    VaeSettings,
    _crops,
    build_vae,
    detail_share,
    encode,
    reconstruction_loss,
    train_decoder,
    train_vae,
)
from rmd.worlds.dataset import SceneSet
from rmd.worlds.still.dataset import make_scenes


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return make_scenes(64, seed=5, training=True)


def seeded_vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_vae()


def trained(
    scenes: SceneSet, iterations: int, *, checkpoint: Path | None = None, **changes: Any
) -> tuple[AutoencoderKL, list[str]]:
    vae, lines = seeded_vae(), list[str]()
    settings = VaeSettings(iterations=iterations, batch_size=8, **changes)
    train_vae(vae, scenes, settings, checkpoint=checkpoint, log=lines.append)
    return vae, lines


FOUR = VaeSettings(iterations=4, batch_size=8)


@pytest.fixture(scope="module")
def vae_and_lines(scenes: SceneSet) -> tuple[AutoencoderKL, list[str]]:
    return trained(scenes, 20)


def test_the_vae_downsamples_by_two(scenes: SceneSet) -> None:
    vae = seeded_vae()
    for side in (32, 64):
        images = torch.zeros(2, 3, side, side)
        latents = encode(vae, images)
        assert latents.shape == (2, LATENT_CHANNELS, side // 2, side // 2)
        assert vae.decode(latents).sample.shape == images.shape


def test_three_levels_downsample_by_four() -> None:
    with seeded(0):
        vae = build_vae(VISTAS.vae.widths)
    images = torch.zeros(2, 3, 128, 128)
    assert encode(vae, images).shape == (2, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE) and vae.config.sample_size == 128
    assert vae.decode(encode(vae, images)).sample.shape == images.shape


def test_the_share_of_detail_in_closed_form() -> None:
    wave = torch.cos(math.pi * (torch.arange(8) + 0.5) / 8)  # the lowest mode but the mean
    fine = torch.tensor([1.0, -1.0]).repeat(4)
    assert float(detail_share(wave.expand(2, 4, 8, 8))) == pytest.approx(0, abs=1e-6)
    assert float(detail_share(fine.expand(2, 4, 8, 8) + 7)) > 0.9  # a constant does not count
    both = wave.expand(2, 4, 8, 8) + 0.5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert 0.2 < float(detail_share(both)) < 0.4  # three quarters of a quarter, over a half and a quarter


def test_smooth_latents_are_learned_if_they_are_asked_for(scenes: SceneSet) -> None:
    pixels = scenes.pixels(torch.arange(16))
    shares = [float(detail_share(encode(trained(scenes, 20, smooth=weight)[0], pixels))) for weight in (0.0, 3.0)]
    assert shares[1] < 0.8 * shares[0]


def test_colours_are_learned_early_if_they_are_asked_for(scenes: SceneSet) -> None:
    """A linear map then reads the mean colours off the latents, with less error than without the term."""
    pixels = scenes.pixels(torch.arange(32))
    means = torch.nn.functional.avg_pool2d(pixels, 2)
    means = means - means.mean(1, keepdim=True)  # brightness is learned early in any case

    def error(weight: float) -> float:
        vae, _ = trained(scenes, 24, colours=weight, muon=True)
        latents = encode(vae, pixels).movedim(1, -1).flatten(0, -2)
        design = torch.cat([latents, torch.ones(len(latents), 1)], 1)
        wanted = means.movedim(1, -1).flatten(0, -2)
        return float((design @ torch.linalg.lstsq(design, wanted).solution - wanted).square().mean())

    assert error(3.0) < 0.9 * error(0.0)


def test_the_vae_is_convolutional() -> None:
    # The inside of a larger picture is encoded like the smaller picture.
    names = {type(module).__name__ for module in seeded_vae().modules()}
    assert not any("Attention" in name or name == "Linear" for name in names)


def test_encoding_in_chunks_and_with_the_factor(scenes: SceneSet) -> None:
    vae = seeded_vae()
    vae.register_to_config(scaling_factor=0.5)
    pixels = scenes.pixels(torch.arange(5))
    whole = encode(vae, pixels, scale=False)
    assert torch.allclose(encode(vae, pixels, scale=False, chunk=2), whole, atol=1e-5)
    assert torch.allclose(encode(vae, pixels), 0.5 * whole)


def test_reconstruction_loss_in_closed_form() -> None:
    images = torch.zeros(1, 1, 4, 4)
    assert float(reconstruction_loss(images, images)) == 0
    assert float(reconstruction_loss(images + 0.3, images)) == pytest.approx(0.3)  # a constant error has no edges
    stripes = torch.tensor([1.0, -1.0]).repeat(2).expand(1, 1, 4, 4)
    assert float(reconstruction_loss(stripes, images)) == pytest.approx(1 + 2)  # differences are 2 across and 0 down


def test_crops_are_windows_and_small_pictures() -> None:
    ramp = torch.arange(64.0 * 64).reshape(1, 1, 64, 64).expand(8, 3, 64, 64)
    result = _crops(ramp, torch.Generator().manual_seed(0), 32)
    assert result.shape == (8, 3, 32, 32)
    assert torch.equal(result[:2], torch.nn.functional.avg_pool2d(ramp[:2], 2))
    top, left = divmod(int(result[2, 0, 0, 0]), 64)
    assert torch.equal(result[2:], ramp[2:, :, top : top + 32, left : left + 32])
    other = _crops(ramp, torch.Generator().manual_seed(1), 32)
    assert not torch.equal(other[2:], result[2:])
    small = _crops(ramp, torch.Generator().manual_seed(0), 16)
    top, left = divmod(int(small[2, 0, 0, 0]), 64)
    assert torch.equal(small[2:], ramp[2:, :, top : top + 16, left : left + 16])
    first = divmod(int(small[0, 0, 0, 0] - 32.5), 64)  # a mean of 2x2 numbers of the ramp is 32.5 above the first
    wide = ramp[:2, :, first[0] : first[0] + 32, first[1] : first[1] + 32]
    assert torch.equal(small[:2], torch.nn.functional.avg_pool2d(wide, 2))


def test_training_lowers_the_error_and_scales_the_latents(
    scenes: SceneSet, vae_and_lines: tuple[AutoencoderKL, list[str]]
) -> None:
    pixels = scenes.pixels(torch.arange(16))

    @torch.no_grad()
    def error(vae: AutoencoderKL) -> float:
        decoded: Tensor = vae.decode(encode(vae, pixels, scale=False)).sample
        return float(reconstruction_loss(decoded, pixels))

    vae, lines = vae_and_lines
    assert error(vae) < 0.8 * error(seeded_vae())
    assert float(encode(vae, scenes.pixels(torch.arange(64))).std()) == pytest.approx(1, abs=1e-3)
    assert not vae.training
    assert lines[0].startswith("vae step 0/20 loss ") and lines[-1].startswith("vae step 19/20 loss ")


def test_a_resumed_training_is_the_same_to_the_last_bit(scenes: SceneSet, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("vae step 3/"):
            raise Killed

    whole, _ = trained(scenes, 4)
    path = tmp_path / "vae.pt"
    with pytest.raises(Killed):
        train_vae(seeded_vae(), scenes, FOUR, checkpoint=path, every=2, log=kill)
    assert read_whole(path)["step"] == 2
    resumed, _ = trained(scenes, 4, checkpoint=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert resumed.config.scaling_factor == whole.config.scaling_factor


def test_the_second_phase_improves_the_decoder_and_keeps_the_latents(
    scenes: SceneSet, vae_and_lines: tuple[AutoencoderKL, list[str]]
) -> None:
    pixels = scenes.pixels(torch.arange(16))
    vae, lines = deepcopy(vae_and_lines)
    latents, factor = encode(vae, pixels), vae.config.scaling_factor
    before = float(reconstruction_loss(vae.decode(latents / factor).sample.detach(), pixels))
    seconds = train_decoder(vae, scenes, replace(FOUR, iterations=8), log=lines.append)
    assert seconds > 0 and lines[-1].startswith("decoder step 19/20 loss ")
    assert torch.equal(encode(vae, pixels), latents) and vae.config.scaling_factor == factor
    assert float(reconstruction_loss(vae.decode(latents / factor).sample.detach(), pixels)) < before
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())


def test_a_resumed_second_phase_is_the_same_to_the_last_bit(scenes: SceneSet, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("decoder step 3/"):
            raise Killed

    def go_on(**changes: Any) -> AutoencoderKL:
        vae, _ = trained(scenes, 2)
        train_decoder(vae, scenes, FOUR, iterations=4, **changes)
        return vae

    path = tmp_path / "decoder.pt"
    with pytest.raises(Killed):
        go_on(checkpoint=path, every=2, log=kill)
    assert read_whole(path)["step"] == 2
    whole = go_on()
    for name, value in go_on(checkpoint=path).state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
