"""The estimate of training memory: what it holds, how it grows, and that it meets what was measured on a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest
from families import TINY

from rmd.bench.cards import smallest_card, usable_bytes
from rmd.bench.measured import Row, measured
from rmd.bench.memory import SLACK, Memory, recipe_memory
from rmd.cli.app import main
from rmd.cli.memory import at_once
from rmd.common.errors import RMDError
from rmd.models.roles import TRAINED, build_roles
from rmd.models.untrained import architecture_of, meta_part
from rmd.recipes.catalog import Entry, catalog
from rmd.recipes.schema import load_recipe

RUNS = Path(__file__).parents[3] / "docs" / "runs.md"
Estimate: TypeAlias = Callable[..., Memory]
"""Estimates a recipe with the given overrides, on a number of `gpus`."""
MOST = 0.10
"""Largest deviation of an estimate from a measurement."""
ROWS = measured().rows


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in a folder."""
    folder = tmp_path_factory.mktemp("teacher")
    TINY["sdxl"]().pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def needed(teacher: Path) -> Estimate:
    """Return a function that estimates a recipe of the tiny SDXL with overrides."""

    @cache
    def estimate(*changes: str, gpus: int = 1) -> Memory:
        settings = [f"teacher={teacher}", "noise.rescale_betas_zero_snr=true", "plan.sides=[16, 32]", "plan.multiple=4"]
        settings += ["train.batch_size=8", "roles.rank=4", *changes]
        return recipe_memory(load_recipe("sdxl", settings), gpus=gpus)

    return estimate


def parts(memory: Memory) -> dict[str, float]:
    return {re.split(r"[:,]", part.name)[0]: part.bytes for part in memory.parts}


# --- against measurements ---------------------------------------------------------------------------------------------


def page_rows() -> list[tuple[float, float, float]]:
    """The seconds, the measured memory and the estimate in the rows of the page."""
    lines = RUNS.read_text(encoding="utf-8").splitlines()
    table = lines[
        next(i for i, line in enumerate(lines) if line.startswith("| `rmd bench train ... --untrained")) + 2 :
    ]
    cells = (map(first_number, line.split("|")[2:5]) for line in table[: table.index("")])
    return [(seconds, measured_gb, estimated_gb) for seconds, measured_gb, estimated_gb in cells]


def first_number(cell: str) -> float:
    match = re.search(r"[\d.]+", cell)
    assert match is not None
    return float(match[0])


def test_the_page_shows_the_measured_rows() -> None:
    assert [row[:2] for row in page_rows()] == [(row.seconds, row.peak_gb) for row in ROWS]


@pytest.mark.parametrize(
    ("index", "row"),
    [pytest.param(i, row, marks=[pytest.mark.slow] if i > 1 else [], id=f"row-{i + 1}") for i, row in enumerate(ROWS)],
)
def test_estimates_meet_what_was_measured(index: int, row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = measured().recipe_of(row)
    step = None if row.step is None else recipe.build_plan().steps[row.step - 1]
    estimate = recipe_memory(recipe, step=step, loaded=False).allocated / 1e9
    deviation = estimate / row.peak_gb - 1
    with capsys.disabled():
        print(f"\n{row.recipe} {' '.join(row.settings)}, step {row.step}: measured {row.peak_gb} GB, ", end="")
        print(f"estimated {estimate:.1f} GB ({100 * deviation:+.1f} %)")
    assert abs(deviation) <= MOST
    assert page_rows()[index][2] == pytest.approx(estimate, abs=0.06)


BIG = [entry for entry in catalog() if entry.cards]


@pytest.mark.parametrize("entry", [pytest.param(e, marks=pytest.mark.slow, id=e.name) for e in BIG])
def test_a_recipe_names_the_smallest_card_that_it_fits(entry: Entry) -> None:
    total = recipe_memory(load_recipe(entry.name, entry.settings), gpus=entry.cards).total
    assert total <= usable_bytes(entry.gb) and smallest_card(total) == entry.gb


def test_the_recipe_of_the_readme_fits_the_card_that_it_names() -> None:
    test_a_recipe_names_the_smallest_card_that_it_fits(next(entry for entry in BIG if entry.name == "pixart-lora"))


@pytest.mark.parametrize("entry", [entry for entry in catalog() if entry.name in ("scenes", "vistas")], ids=str)
def test_recipes_of_packaged_teachers_need_no_gpu(entry: Entry) -> None:
    assert not entry.cards and recipe_memory(load_recipe(entry.name)).allocated < 4e9


# --- what is counted --------------------------------------------------------------------------------------------------


def test_weights_masters_and_moments_are_those_of_the_run(needed: Estimate, teacher: Path) -> None:
    backbone = TINY["sdxl"]()
    network = backbone.denoiser
    whole = sum(p.numel() for p in network.parameters())
    adapted = build_roles(network, mode="lora", targets=backbone.adapted("all"), rank=4, alpha=4.0)
    trained = sum(p.numel() for role in TRAINED for p in adapted.trainable(role))
    lora, full = parts(needed()), parts(needed("roles.mode=full", "optim.ema=0.9"))
    assert lora["frozen base"] == 2 * whole and lora["adapters"] == 2 * trained
    assert lora["float32 masters of the adapters"] == 4 * trained and lora["AdamW's two moments"] == 8 * trained
    assert full["teacher's network"] == 2 * whole and full["student and fake score"] == 4 * whole
    assert full["AdamW's two moments"] == 16 * whole and full["moving average of the student"] == 4 * whole
    vae = sum(p.numel() for p in backbone.pipe.vae.parameters())
    assert lora["VAE"] == 2 * vae
    assert lora["text encoders"] == 2 * sum(p.numel() for part in backbone.text_encoders for p in part.parameters())


def test_activations_grow_with_the_samples_at_once_and_shrink_with_checkpointing(needed: Estimate) -> None:
    eight, two = needed(), needed("train.gradient_accumulation_steps=4")
    assert (eight.samples, two.samples) == (8, 2)
    assert 3 < eight.peak.bytes / two.peak.bytes < 4.1
    assert needed("train.gradient_checkpointing=true").peak.bytes < eight.peak.bytes
    assert eight.total == eight.allocated + SLACK


def test_gradients_of_an_earlier_micro_batch_are_held(needed: Estimate) -> None:
    at_once = ["roles.mode=full", "train.batch_size=2"]
    alone = needed(*at_once)
    later = needed("roles.mode=full", "train.batch_size=4", "train.gradient_accumulation_steps=2")
    weights = parts(alone)["teacher's network"] / 2
    assert later.peak.bytes == pytest.approx(alone.peak.bytes + 4 * weights, rel=0.1)


def test_many_gpus_share_weights_and_the_batch(needed: Estimate) -> None:
    one, four = needed("roles.mode=full"), needed("roles.mode=full", gpus=4)
    assert (four.samples, one.samples) == (2, 8)
    assert parts(four)["teacher's network"] == parts(one)["teacher's network"] / 4
    pairs = needed("roles.mode=full", "parallel.dp_replicate=2", gpus=4)
    assert parts(pairs)["teacher's network"] == parts(one)["teacher's network"] / 2
    assert four.total < pairs.total < one.total
    with pytest.raises(RMDError, match=r"^a batch of 8 cannot be divided among 3 GPUs: change train\.batch_size"):
        needed(gpus=3)


def test_text_encoders_are_on_the_gpu_always_while_they_encode_or_never(needed: Estimate) -> None:
    always, sometimes, never = needed(), needed("data.offload=true"), needed("data.cache=somewhere")
    encoders = parts(always)["text encoders"]
    assert "text encoders" not in parts(sometimes) and "text encoders" not in parts(never)
    assert {phase.name: phase.bytes for phase in sometimes.phases}["encoding of prompts"] == encoders
    assert "encoding of prompts" not in {phase.name for phase in never.phases}


def test_other_methods_are_counted_too(needed: Estimate) -> None:
    one_stage = ["plan.steps=2", "plan.thresholds=[]", "plan.sides=[32]", "crossing.within=fresh", "method.name=dmd2"]
    alone = needed(*one_stage)
    judged = needed(*one_stage, "method.adversarial=0.1", "data.images=scenes")
    assert judged.peak.bytes > alone.peak.bytes > 0


def test_encoders_have_their_published_sizes() -> None:
    import torch

    from rmd.models.registry import family_class

    sizes = {"text_encoder": 0.123, "text_encoder_2": 0.695, "text_encoder_3": 4.762, "vae": 0.0838}
    architecture = architecture_of("stabilityai/stable-diffusion-3.5-medium", family_class("sd3"))
    for name, billions in sizes.items():
        part = meta_part(architecture, name, torch.bfloat16)
        assert part is not None
        assert sum(p.numel() for p in part.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert meta_part(architecture, "image_encoder", torch.bfloat16) is None


def test_plan_prints_the_estimate(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"teacher={teacher}", "noise.rescale_betas_zero_snr=true", "plan.sides=[16, 32]", "plan.multiple=4"]
    words = ["plan", "sdxl", *(word for change in changes for word in ("--set", change)), "--memory", "--gpus", "4"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Memory for training on each of 4 GPUs, with 8 samples at once in bfloat16:" in out
    assert re.search(r"\d\.\d\d GB  frozen base, which is the teacher\n", out)
    assert re.search(r"\d\.\d\d GB  in total\n  At other moments, less is needed: update of the ", out)


def test_samples_at_once_in_words() -> None:
    assert [at_once(n) for n in (4.0, 1, 0.25)] == ["4 samples at once", "1 sample at once", "1/4 of a sample at once"]
