"""Contenders: what is counted, what they share, and how their samples are brought to one size."""

from __future__ import annotations

import torch

from rmd.core.plan import Stage, build_plan
from rmd.evaluation.protocol import SAMPLES_PER_PROMPT, PlanContender, evaluation_prompts, full_plan
from rmd.worlds.moving.grammar import held_out, parse_clip
from rmd.worlds.registry import WORLDS
from rmd.worlds.still.grammar import has_held_out, parse
from tests.helpers import PROMPTS, tiny_sdxl

SIZE = Stage(2, 32, 32)


def test_full_plan_is_the_teachers_grid() -> None:
    plan = full_plan(tiny_sdxl(), SIZE, 4)
    assert [step.model_time for step in plan.steps] == [1000, 750, 500, 250]
    assert len(plan.stages) == 1


def test_evaluations_count_both_branches_of_guidance() -> None:
    backbone = tiny_sdxl()
    for guidance, expected in ((1.0, 3), (2.0, 6)):
        contender = PlanContender("a", "a", backbone, backbone.denoiser, full_plan(backbone, SIZE, 3), guidance)
        samples = contender.sample(PROMPTS, seed=0, size=SIZE, batch_size=3)
        assert samples.evaluations == expected * len(PROMPTS)
        assert samples.images.shape == (len(PROMPTS), 3, 32, 32)
        assert samples.total_seconds >= samples.loop_seconds >= samples.denoiser_seconds > 0


def test_samples_do_not_depend_on_the_batch() -> None:
    backbone = tiny_sdxl()
    plan = build_plan(backbone.schedule, steps=4, sides=[(16, 16), (32, 32)], thresholds=[-2.5])
    contender = PlanContender("rmd", "rmd", backbone, backbone.denoiser, plan)
    runs = [contender.sample(PROMPTS, seed=3, size=SIZE, batch_size=size).images for size in (1, 4)]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=0)


def test_a_low_resolution_row_is_enlarged_and_told_the_final_size() -> None:
    backbone = tiny_sdxl()
    told = []
    ours = backbone.stage_cond
    backbone.stage_cond = lambda cond, stage, final: told.append((stage.size, final.size)) or ours(cond, stage, final)  # type: ignore[func-returns-value, method-assign]
    contender = PlanContender("low", "low", backbone, backbone.denoiser, full_plan(backbone, Stage(1, 16, 16), 2))
    assert contender.sample(PROMPTS, seed=0, size=SIZE).images.shape[-2:] == (32, 32)
    assert told == [("16x16", "32x32")]


def test_prompts_come_in_pairs_of_the_whole_grammar() -> None:
    for world, count in ((WORLDS.get("scenes"), 400), (WORLDS.get("moving-scenes"), 200)):
        prompts = evaluation_prompts(world, count, seed=0)
        assert len(prompts) == count
        assert prompts[::SAMPLES_PER_PROMPT] == prompts[1::SAMPLES_PER_PROMPT]
        assert prompts != evaluation_prompts(world, count, seed=1)
    assert len(set(evaluation_prompts(WORLDS.get("scenes"), 400, seed=0))) > 190
    stills = [parse(text) for text in evaluation_prompts(WORLDS.get("scenes"), 400, seed=0)]
    clips = [parse_clip(text) for text in evaluation_prompts(WORLDS.get("moving-scenes"), 200, seed=0)]
    assert any(scene is not None and has_held_out(scene) for scene in stills)
    assert all(clip is not None for clip in clips) and any(clip is not None and held_out(clip) for clip in clips)
