"""The estimate of training memory: its counts, its activations, and what `rmd plan --memory` prints."""

from __future__ import annotations

import pytest
from families import TINY
from torch import nn

from rmd.bench.memory import Memory, activation_bytes, adapter_parameters, training_memory
from rmd.cli.app import main
from rmd.models.base import AdaptedLayers
from rmd.models.registry import family_class
from rmd.models.roles import build_roles
from rmd.models.untrained import architecture_of, untrained_backbone
from rmd.recipes.schema import load_recipe


def memory(name: str, *changes: str, layers: AdaptedLayers = "all") -> list[Memory]:
    """Both modes of a packaged recipe's teacher, with adapters of rank 64."""
    recipe = load_recipe(name, list(changes))
    family = family_class(recipe.family)
    architecture = architecture_of(recipe.teacher, family)
    return training_memory(family, architecture, recipe.build_plan(), rank=64, layers=layers, averaged=False)


def test_a_video_fits_one_card_only_if_its_activations_are_recomputed(capsys: pytest.CaptureFixture[str]) -> None:
    lora, _ = memory("wan21-14b", "plan.sides=[480x832]", "plan.thresholds=[]")
    assert lora.per_gpu(1, recompute=True) / 1e9 < 75 < 500 < lora.per_gpu(1) / 1e9
    # 40 inputs of 21 x 30 x 52 tokens of 5120 numbers of two bytes, and the inside of one of 40 equal blocks
    inputs = 40 * 21 * 30 * 52 * 5120 * 2
    kept = lora.activations
    assert inputs + kept.whole / 40 == pytest.approx(kept.recomputed, rel=0.15)
    assert main(["plan", "wan21-14b", "--memory"]) == 0
    assert "(bfloat16, 720x1280, 81 frames, batch size 1)" in capsys.readouterr().out


def test_adapters_are_counted_as_they_are_made() -> None:
    backbone = TINY["sdxl"]()
    targets = backbone.adapted("all")
    expected = adapter_parameters(backbone.denoiser, targets, 4)
    roles = build_roles(backbone.denoiser, mode="lora", targets=targets, rank=4, alpha=4.0)
    assert sum(parameter.numel() for parameter in roles.trainable("student")) == expected > 0


def test_activations_grow_with_the_picture_and_attention_is_restored() -> None:
    usual = nn.functional.scaled_dot_product_attention
    family = family_class("pixart")
    architecture = architecture_of("PixArt-alpha/PixArt-XL-2-1024-MS", family)
    backbone = untrained_backbone(family, architecture)
    low, high = (activation_bytes(backbone, architecture, side, side) for side in (512, 1024))
    assert 3.5 < high.whole / low.whole < 4.1  # four times the tokens; the activations of the text stay the same
    assert high.whole / 1e9 == pytest.approx(6.7, rel=0.02)
    # 28 inputs of 4096 tokens of 1152 numbers of two bytes, and the inside of one of 28 equal blocks
    inputs = 28 * 4096 * 1152 * 2
    assert inputs + high.whole / 28 == pytest.approx(high.recomputed, rel=0.1)
    assert nn.functional.scaled_dot_product_attention is usual


def test_memory_of_both_modes_on_one_gpu_and_on_many() -> None:
    lora, full = memory("sdxl")
    fewer, _ = memory("sdxl", layers="transformers")
    weights = [sum(p.bytes for p in way.parts if p.shared) / 1e9 for way in (fewer, lora, full)]
    assert weights == pytest.approx([10.5, 11.4, 87.3], rel=0.01)
    assert lora.per_gpu(1) / 1e9 < 24 < full.per_gpu(1) / 1e9
    rest = sum(p.bytes for p in full.parts if not p.shared) + full.activations.whole
    assert full.per_gpu(8) == pytest.approx(weights[2] * 1e9 / 8 + rest)


def test_plan_prints_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pixart", "--memory", "--gpus", "4"]) == 0
    out = capsys.readouterr().out
    for words in (
        "training in mode lora, rank 64 (bfloat16,",
        "training in mode full (bfloat16,",
        "activations",
        "with train.gradient_checkpointing=true",
        "on each of 4",
    ):
        assert words in out
