"""Samplers side by side: what is counted, what is shared between them, and what is measured."""

from __future__ import annotations

import pytest
import torch

from rmd.core.metrics import high_frequency
from rmd.core.plan import Stage, build_plan
from rmd.evaluate.protocol import SAMPLES_PER_PROMPT, Contender, full_plan, measure, run_contender
from rmd.worlds.references import References
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.judge import Judge
from tests.helpers import PROMPTS, tiny_sdxl

SIZE = Stage(2, 32, 32)


def test_full_plan_is_the_teachers_grid() -> None:
    plan = full_plan(tiny_sdxl(), SIZE, 4)
    assert [step.model_time for step in plan.steps] == [1000, 750, 500, 250]
    assert len(plan.stages) == 1


def test_evaluations_count_both_branches_of_guidance() -> None:
    backbone = tiny_sdxl()
    for guidance, expected in ((1.0, 3), (2.0, 6)):
        contender = Contender("a", "a", "teacher", full_plan(backbone, SIZE, 3), guidance)
        found = run_contender(backbone, backbone.denoiser, contender, PROMPTS, seed=0, size=SIZE, batch_size=3)
        assert found.evaluations == expected * len(PROMPTS)
        assert found.images.shape == (len(PROMPTS), 3, 32, 32)
        assert found.total_seconds >= found.loop_seconds >= found.denoiser_seconds > 0


def test_samples_do_not_depend_on_the_batch() -> None:
    backbone = tiny_sdxl()
    plan = build_plan(backbone.schedule, steps=4, sides=[(16, 16), (32, 32)], thresholds=[-2.5])
    contender = Contender("rmd", "rmd", "student", plan)
    runs = [
        run_contender(backbone, backbone.denoiser, contender, PROMPTS, seed=3, size=SIZE, batch_size=size).images
        for size in (1, 4)
    ]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=0)


def test_a_low_resolution_row_is_enlarged_and_told_the_final_size() -> None:
    backbone = tiny_sdxl()
    told = []
    ours = backbone.stage_cond
    backbone.stage_cond = lambda cond, stage, final: told.append((stage.size, final.size)) or ours(cond, stage, final)  # type: ignore[func-returns-value, method-assign]
    contender = Contender("low", "low", "teacher", full_plan(backbone, Stage(1, 16, 16), 2))
    found = run_contender(backbone, backbone.denoiser, contender, PROMPTS, seed=0, size=SIZE)
    assert found.images.shape[-2:] == (32, 32)
    assert told == [("16x16", "32x32")]


@pytest.fixture(scope="module")
def judged() -> tuple[Judge, References]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge().eval()
    scenes = make_scenes(24, seed=5, training=False)
    pixels = scenes.pixels(torch.arange(24))
    _, features = judge.assess(pixels, scenes.attributes)
    return judge, References(features, features.flip(0), high_frequency(pixels))


def test_measure_of_the_renders_themselves(judged: tuple[Judge, References]) -> None:
    judge, references = judged
    backbone = tiny_sdxl()
    scenes = make_scenes(24, seed=5, training=False)
    prompts = [text for text in scenes.captions[:12] for _ in range(SAMPLES_PER_PROMPT)]
    contender = Contender("renders", "renders", "teacher", full_plan(backbone, SIZE, 1))
    samples = run_contender(backbone, backbone.denoiser, contender, prompts, seed=0, size=SIZE)
    pixels = scenes.pixels(torch.arange(24))
    found = type(samples)(pixels, 2.4, 2.5, 3.0, 240)
    row = measure(contender, found, prompts, judge=judge, references=references, teacher_seconds=1.0)
    assert row.high_frequency == pytest.approx(1.0)
    assert row.nfe == 10
    assert row.seconds_per_image == pytest.approx(0.1)
    assert row.speedup == pytest.approx(10.0)
    assert row.seconds_end_to_end == pytest.approx(0.125)
    assert row.frechet_distance == pytest.approx(0.0, abs=1e-3)
    assert found.overhead == pytest.approx(2.5 / 2.4 - 1)
    assert 0 <= row.attributes <= 1
