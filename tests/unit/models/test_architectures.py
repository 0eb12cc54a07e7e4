"""Full-size networks on the meta device: parameters, FLOPs and memory against published and closed-form figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import TINY
from torch import nn

from rmd.bench.memory import training_memory
from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.models.architectures import (
    PUBLIC,
    activation_bytes,
    adapter_parameters,
    architecture_of,
    forward_flops,
    parameters,
)
from rmd.models.registry import family_class
from rmd.models.roles import build_roles
from rmd.recipes.schema import load_recipe

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
# billions of parameters, TFLOP of one pass at 512 and 1024 px: an operation counter of its own on the same networks
FIGURES = {
    SDXL: (2.567, 1.589, 6.761),
    "PixArt-alpha/PixArt-XL-2-1024-MS": (0.611, 1.236, 6.510),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (0.611, 1.289, 6.634),
    "stabilityai/stable-diffusion-3.5-medium": (2.243, 2.443, 11.250),
}


@pytest.mark.parametrize("name", FIGURES)
def test_parameters_and_flops_of_the_public_architectures(name: str) -> None:
    architecture = PUBLIC[name]
    network = architecture.build()
    assert {p.device.type for p in network.parameters()} == {"meta"}
    found = [parameters(network) / 1e9, *(forward_flops(architecture, network, s, s) / 1e12 for s in (512, 1024))]
    assert found == pytest.approx(FIGURES[name], rel=0.01)


# billions of parameters, TFLOP of one pass at 480p and 720p, 81 frames
VIDEO = {
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (14.288, 1678.4, 6523.4),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (1.419, 283.0, 1249.8),
}


@pytest.mark.parametrize("name", VIDEO)
def test_parameters_and_flops_of_the_public_video_architectures(name: str) -> None:
    architecture = PUBLIC[name]
    network = architecture.build()
    flops = [forward_flops(architecture, network, *size, 81) / 1e12 for size in ((480, 832), (720, 1280))]
    assert [parameters(network) / 1e9, *flops] == pytest.approx(VIDEO[name], rel=0.01)


def test_a_video_fits_one_card_only_when_its_activations_are_computed_anew(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("wan21-14b", ["plan.sides=[480x832]", "plan.thresholds=[]"])
    lora, _ = training_memory(
        architecture_of(recipe.teacher, "wan"), recipe.build_plan(), family=family_class("wan"), rank=64, averaged=False
    )
    assert lora.per_gpu(1, recompute=True) / 1e9 < 75 < 500 < lora.per_gpu(1) / 1e9
    # 40 inputs of 21 x 30 x 52 tokens of 5120 numbers of two bytes, and the inside of one block of 40 alike
    inputs = 40 * 21 * 30 * 52 * 5120 * 2
    kept = lora.activations
    assert inputs + kept.whole / 40 == pytest.approx(kept.recomputed, rel=0.15)
    assert main(["plan", "wan21-14b", "--memory"]) == 0
    assert "(bfloat16, 720x1280, 81 frames, batch 1)" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*FIGURES, *VIDEO])
def test_shard_units_hold_nearly_all_weights_and_do_not_overlap(name: str) -> None:
    network = PUBLIC[name].build()
    units = family_class(PUBLIC[name].family).shard_units(network)
    inside = sum(parameters(unit) for unit in units)
    whole = {id(p) for unit in units for p in unit.parameters()}
    assert len(whole) == sum(len(list(unit.parameters())) for unit in units)
    assert inside > 0.9 * parameters(network)
    assert max(parameters(unit) for unit in units) < 0.05 * parameters(network)


def test_flops_of_a_network_that_can_be_counted_by_hand(tmp_path: Path) -> None:
    backbone = TINY["sd3"]()
    backbone.pipe.save_pretrained(tmp_path)
    architecture = architecture_of(tmp_path, "sd3")
    network = architecture.build()
    assert parameters(network) == parameters(backbone.denoiser)
    real = network.__class__(**architecture.config)
    linear: list[int] = []
    for module in real.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, i, o: linear.append(2 * m.out_features * i[0].numel()))
    with torch.no_grad():
        real(**{k: torch.zeros(v.shape) for k, v in architecture.inputs(32, 32).items()})
    width, picture, text = 16, 8 * 8, architecture.text_length
    patches = 2 * (4 * 2 * 2) * width * picture
    attention = 4 * width * (2 * (picture + text) ** 2 + picture**2)  # two layers, and the first one's second
    assert forward_flops(architecture, network, 32, 32) == sum(linear) + patches + attention


def test_adapters_are_counted_as_they_are_made() -> None:
    backbone = TINY["sdxl"]()
    targets = backbone.adapted("all")
    expected = adapter_parameters(backbone.denoiser, targets, 4)
    roles = build_roles(backbone.denoiser, mode="lora", targets=targets, rank=4, alpha=4.0)
    assert sum(parameter.numel() for parameter in roles.trainable("student")) == expected > 0


def test_activations_grow_with_the_picture_and_leave_attention_as_it_was() -> None:
    usual = nn.functional.scaled_dot_product_attention
    architecture = PUBLIC["PixArt-alpha/PixArt-XL-2-1024-MS"]
    network = architecture.build()
    units = family_class("pixart").shard_units(network)
    low, high = (activation_bytes(architecture, network, units, side, side) for side in (512, 1024))
    assert 3.5 < high.whole / low.whole < 4.1  # tokens grow fourfold; what belongs to the text stays
    assert high.whole / 1e9 == pytest.approx(6.7, rel=0.02)
    # 28 inputs of 4096 tokens of 1152 numbers of two bytes, and the inside of one block of 28 alike
    inputs = 28 * 4096 * 1152 * 2
    assert inputs + high.whole / 28 == pytest.approx(high.recomputed, rel=0.1)
    assert nn.functional.scaled_dot_product_attention is usual


def test_memory_of_both_modes_on_one_gpu_and_on_many() -> None:
    plan = load_recipe("sdxl").build_plan()
    lora, full = training_memory(PUBLIC[SDXL], plan, family=family_class("sdxl"), rank=64, averaged=False)
    fewer, _ = training_memory(
        PUBLIC[SDXL], plan, family=family_class("sdxl"), rank=64, layers="transformers", averaged=False
    )
    weights = [sum(p.bytes for p in way.parts if p.shared) / 1e9 for way in (fewer, lora, full)]
    assert weights == pytest.approx([10.5, 11.4, 87.3], rel=0.01)
    assert lora.per_gpu(1) / 1e9 < 24 < full.per_gpu(1) / 1e9
    rest = sum(p.bytes for p in full.parts if not p.shared) + full.activations.whole
    assert full.per_gpu(8) == pytest.approx(weights[2] * 1e9 / 8 + rest)


def test_plan_prints_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pixart", "--memory", "--gpus", "4"]) == 0
    out = capsys.readouterr().out
    for words in (
        "training memory, lora, rank 64",
        "training memory, full",
        "activations",
        "with train.gradient_checkpointing=true",
        "on each of 4",
    ):
        assert words in out


def test_a_teacher_of_unknown_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        RMDError, match=r"^nothing is known of the size of .*: give the folder of an sdxl, pixart, sd3, wan pipeline"
    ):
        architecture_of(tmp_path, "sdxl")
    with pytest.raises(RMDError, match=r"^unknown family 'sdlx' \(did you mean 'sdxl'\?\)"):
        family_class("sdlx")
