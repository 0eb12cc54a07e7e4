"""Full-size networks on the meta device: parameters and FLOPs against published and closed-form figures."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY
from helpers import LinearBackbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rmd.bench.memory import parameters
from rmd.common.errors import RMDError
from rmd.models.base import Architecture, Backbone
from rmd.models.registry import MODELS, family_class
from rmd.models.untrained import architecture_of, blank_pass, meta_part, untrained_backbone

# Billions of parameters, and TFLOPs of one pass at 512 and 1024 px, by a separate operation counter.
PICTURES = {
    # 2 x 339.0 GMACs of linear and convolution layers at 512 px (BK-SDM, Tab. 1), and the attention
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (0.860, 0.803, 4.674),
    "stabilityai/stable-diffusion-2-1": (0.866, 0.804, 4.675),
    "stabilityai/stable-diffusion-xl-base-1.0": (2.567, 1.589, 6.761),
    "PixArt-alpha/PixArt-XL-2-1024-MS": (0.611, 1.236, 6.510),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (0.611, 1.289, 6.634),
    "stabilityai/stable-diffusion-3.5-medium": (2.243, 2.443, 11.250),
    # 57 blocks of 24 width^2 FLOPs a token, and their attention over pictures and 512 tokens of text
    "black-forest-labs/FLUX.1-dev": (11.901, 21.50, 74.38),
}
# Billions of parameters, and TFLOPs of one pass at 480p and 720p with 81 frames.
VIDEOS = {
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (14.288, 1678.4, 6523.4),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (1.419, 283.0, 1249.8),
}


def quickest(names: Iterable[str], slow: str) -> list[Any]:
    """Return test parameters, of which one is among the slow tests: another model of its family remains."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name == slow else []) for name in names]


@cache
def published(name: str) -> tuple[Backbone, Architecture]:
    """The untrained backbone of a published teacher."""
    family = next(f for f in map(family_class, MODELS.names()) if name in f.architectures)
    architecture = architecture_of(name, family)
    return untrained_backbone(family, architecture), architecture


def flops(backbone: Backbone, architecture: Architecture, height: int, width: int, frames: int = 1) -> int:
    """FLOPs of one forward pass: twice the multiply-accumulates."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        blank_pass(backbone, architecture, height, width, frames)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", quickest(PICTURES, "PixArt-alpha/PixArt-XL-2-1024-MS"))
def test_parameters_and_flops_of_the_published_teachers(name: str) -> None:
    backbone, architecture = published(name)
    assert {p.device.type for p in backbone.denoiser.parameters()} == {"meta"}
    counts = [parameters(backbone.denoiser) / 1e9, *(flops(backbone, architecture, s, s) / 1e12 for s in (512, 1024))]
    assert counts == pytest.approx(PICTURES[name], rel=0.01)


@pytest.mark.parametrize("name", quickest(VIDEOS, "Wan-AI/Wan2.1-T2V-14B-Diffusers"))
def test_parameters_and_flops_of_the_published_video_teachers(name: str) -> None:
    backbone, architecture = published(name)
    counts = [flops(backbone, architecture, *size, 81) / 1e12 for size in ((480, 832), (720, 1280))]
    assert [parameters(backbone.denoiser) / 1e9, *counts] == pytest.approx(VIDEOS[name], rel=0.01)


@pytest.mark.parametrize("name", [*PICTURES, *VIDEOS])
def test_shard_units_hold_nearly_all_weights_and_do_not_overlap(name: str) -> None:
    backbone, _ = published(name)
    network = backbone.denoiser
    units = backbone.shard_units(network)
    inside = sum(parameters(unit) for unit in units)
    whole = {id(p) for unit in units for p in unit.parameters()}
    assert len(whole) == sum(len(list(unit.parameters())) for unit in units)
    assert inside > 0.9 * parameters(network)
    assert max(parameters(unit) for unit in units) < 0.06 * parameters(network)


def test_flops_of_a_network_that_can_be_counted_by_hand(tmp_path: Path) -> None:
    backbone = TINY["sd3"]()
    backbone.pipe.save_pretrained(tmp_path)
    architecture = architecture_of(tmp_path, type(backbone))
    untrained = untrained_backbone(type(backbone), architecture)
    assert parameters(untrained.denoiser) == parameters(backbone.denoiser)
    real = untrained_backbone(type(backbone), architecture, device=torch.device("cpu"), dtype=torch.float32)
    linear: list[int] = []
    for module in real.denoiser.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, i, o: linear.append(2 * m.out_features * i[0].numel()))
    with torch.no_grad():
        assert blank_pass(real, architecture, 32, 32).isfinite().all()
    width, picture, text = 16, 8 * 8, architecture.text_length
    patches = 2 * (4 * 2 * 2) * width * picture
    attention = 4 * width * (2 * (picture + text) ** 2 + picture**2)  # two layers, and the first one's second
    assert flops(untrained, architecture, 32, 32) == sum(linear) + patches + attention


def test_a_teacher_of_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"^the size of the teacher .* is unknown: give the folder of a pipeline of the"):
        architecture_of(tmp_path, family_class("sdxl"))


def test_a_vae_without_scale_factors_is_refused(tmp_path: Path) -> None:
    backbone = TINY["wan"]()
    backbone.pipe.save_pretrained(tmp_path)
    (tmp_path / "vae" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RMDError, match=r"vae/config\.json does not say by what factor the VAE downsamples"):
        architecture_of(tmp_path, type(backbone))


def test_a_configuration_that_builds_no_denoiser_is_refused() -> None:
    with pytest.raises(RMDError, match="no sd3 denoiser can be built from this configuration"):
        untrained_backbone(family_class("sd3"), Architecture({"no_such_key": 1}))


def test_a_family_that_does_not_state_its_sizes_is_refused() -> None:
    class Mine(LinearBackbone):
        family = "mine"
        pipeline_classes = ("StableDiffusionPipeline",)
        denoiser_name = "unet"

    architecture = Architecture({"in_channels": 4})
    with pytest.raises(RMDError, match=r"^the family mine does not name its denoiser's class in diffusers"):
        untrained_backbone(Mine, architecture)
    with pytest.raises(RMDError, match=r"^the family mine does not declare the sizes of its encoded prompts"):
        Mine.cond_shapes(architecture)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"num_layers": 10**9},
            r"^the configuration of the transformer has num_layers = 1000000000, and no network has",
        ),
        ({"num_attention_heads": 0, "attention_head_dim": 0}, r"^no sd3 denoiser can be built from this configuration"),
    ],
)
def test_nonsense_in_a_configuration_is_refused_at_once(config: dict[str, int], sentence: str) -> None:
    with pytest.raises(RMDError, match=sentence):
        untrained_backbone(family_class("sd3"), Architecture(config))


def test_a_part_that_cannot_be_built_is_refused() -> None:
    parts = {
        "vae": ("AutoencoderKL", {"layers_per_block": 10**6}),
        "text_encoder": ("T5EncoderModel", {"d_model": "x"}),
    }
    architecture = Architecture({}, parts=parts)
    with pytest.raises(RMDError, match=r"^the configuration of the vae has layers_per_block = 1000000, and no network"):
        meta_part(architecture, "vae", torch.bfloat16)
    with pytest.raises(RMDError, match=r"^no T5EncoderModel can be built from the configuration of the text_encoder"):
        meta_part(architecture, "text_encoder", torch.bfloat16)
