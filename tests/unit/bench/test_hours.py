"""Hours of runs on other cards: the FLOPs of an iteration, and how they become hours."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import TINY
from torch.utils.flop_counter import FlopCounterMode

from rmd.bench import hours as module
from rmd.bench.cards import CARDS, SIZES, smallest_card, usable_bytes
from rmd.bench.hours import Hours, iteration_flops, run_hours
from rmd.bench.memory import blank_batch, meta_networks
from rmd.cli.hours import hours_text
from rmd.recipes.schema import Recipe, load_recipe


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    TINY["sd3"]().pipe.save_pretrained(folder)
    return folder


def tiny(teacher: Path, *changes: str) -> Recipe:
    settings = [f"teacher={teacher}", "plan.sides=[16, 32]", "plan.multiple=4", "roles.rank=4", "train.batch_size=4"]
    return load_recipe("sd35", [*settings, *changes])


def test_flops_of_an_iteration_are_those_of_its_networks(teacher: Path) -> None:
    recipe = tiny(teacher)
    networks = meta_networks(recipe)
    batch, step = blank_batch(networks, 1), networks.plan.steps[0]  # before which nothing is rolled out
    with FlopCounterMode(display=False) as counter, module.gpu_attention():
        loss, rollout = networks.method.student_loss(batch, step)
        networks.roles.backward("student", loss)
        networks.roles.zero_grad()
        networks.roles.backward("fake", networks.method.fake_loss(batch, rollout))
    assert iteration_flops(recipe, step.index) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_later_steps_guidance_and_updates_of_the_fake_score_cost_more(teacher: Path) -> None:
    usual = iteration_flops(tiny(teacher))
    assert iteration_flops(tiny(teacher), 1) < usual < iteration_flops(tiny(teacher), 4)
    assert iteration_flops(tiny(teacher, "method.guidance=1.0")) < usual
    assert iteration_flops(tiny(teacher, "method.fake_updates=2")) > usual
    assert iteration_flops(tiny(teacher, "train.gradient_checkpointing=true")) > usual


def test_hours_are_flops_over_the_rates_of_the_same_family(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(teacher, "train.iterations=900")
    monkeypatch.setattr(module, "iteration_flops", lambda recipe: 1e12)
    monkeypatch.setattr(module, "measured_rates", lambda: {"sd3": [1e12, 4e12], "wan": [9e12]})
    h200, half = CARDS[-1], CARDS[-1].__class__("half", 24, CARDS[-1].tflops / 2)
    assert run_hours(recipe, [h200, half]) == [Hours(0.25, 1.0), Hours(0.5, 2.0)]
    monkeypatch.setattr(module, "measured_rates", lambda: {"wan": [1e12], "sdxl": [2e12]})
    assert run_hours(recipe, [h200]) == [Hours(0.5, 1.0)]


@pytest.mark.parametrize(
    ("least", "most", "text"), [(1.23, 1.23, "1.2"), (0.25, 14.2, "0.25 to 14"), (123.0, 1234.0, "120 to 1,200")]
)
def test_hours_have_two_digits(least: float, most: float, text: str) -> None:
    assert hours_text(Hours(least, most)) == text


def test_the_smallest_card_is_the_first_with_room() -> None:
    assert smallest_card(usable_bytes(24)) == 24 and smallest_card(usable_bytes(24) + 1) == 32
    assert smallest_card(1e15) is None and list(SIZES) == sorted(SIZES)
    assert all(card.gb in SIZES for card in CARDS)
