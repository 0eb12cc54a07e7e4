"""Paired samples of a teacher: corresponding noise, finished states, pooling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import PROMPTS, make_recipe, tiny_sdxl, write_prompts

from rmd.core.plan import Stage
from rmd.core.randomness import CounterNoise
from rmd.evaluation.paired import LowNoise, PairedTeacher, finishing_plan, paired_teacher, pooled
from rmd.evaluation.protocol import full_plan

FINAL = Stage(2, 32, 32)


def teacher_of(tmp_path: Path, batch: int = 2) -> PairedTeacher:
    recipe = make_recipe(write_prompts(tmp_path))
    return paired_teacher(
        tiny_sdxl(), recipe, FINAL, samples=4, steps=3, batch=batch, progress=lambda what, done, total: None
    )


def test_low_noise_is_the_low_part_of_the_full_noise() -> None:
    source = LowNoise(CounterNoise(0, range(2)), (2, 4, 16, 16))
    full, low = source.normal((2, 4, 16, 16), "start"), source.normal((2, 4, 8, 8), "start")
    torch.testing.assert_close(low, 2 * torch.nn.functional.avg_pool2d(full, 2))
    assert torch.equal(full, CounterNoise(0, range(2)).normal((2, 4, 16, 16), "start"))


def test_prompts_of_no_world_are_the_recipes_and_have_no_judge(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    assert sorted(teacher.prompts) == sorted(PROMPTS) and teacher.judge is None and teacher.per_prompt == 1


def test_samples_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    one, two = teacher_of(tmp_path, batch=1), teacher_of(tmp_path, batch=3)
    plan = full_plan(one.backbone, FINAL, 3)
    torch.testing.assert_close(one.latents(plan, "it"), two.latents(plan, "it"), atol=1e-5, rtol=1e-4)


def test_a_given_state_is_finished_from_its_own_layout(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    plan = finishing_plan(teacher.backbone, Stage(1, 16, 16), FINAL, 0.7, 6)
    assert [step.stage for step in plan.steps] == [1, 2, 2] and plan.crossing.upsample == "dct"
    first = teacher.latents(plan, "it", torch.zeros(4, 4, 8, 8))
    assert first.shape == (4, 4, 16, 16)
    assert not torch.equal(first, teacher.latents(plan, "it", torch.ones(4, 4, 8, 8)))


def test_pooling_takes_block_means_of_pictures_and_of_frames() -> None:
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(pooled(images, (4, 6)), torch.nn.functional.avg_pool2d(images, 2))
    clips = images[:, :, None].expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(pooled(clips, (4, 6))[:, :, 3], pooled(images, (4, 6)))
    assert pooled(images, (8, 12)) is images
    assert pooled(torch.ones(1, 3, 9, 9), (6, 6)).numpy() == pytest.approx(1.0)
