"""Trying a model: the result is that of the pipeline, and every step shows the prediction of its own resolution."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import PROMPTS
from PIL import Image

from rmd.common.errors import RMDError
from rmd.core.randomness import seeded
from rmd.sample.samplers import Media
from rmd.ui.models import Models, Size
from rmd.ui.trying import MAX_COUNT, check_request, try_student, try_teacher


def pixels(media: Media) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in ([media] if isinstance(media, Image.Image) else media)])


def test_a_student_shows_every_step_and_its_result(models: Models) -> None:
    student = models.student("full/student")
    prompts, seeds = check_request(PROMPTS[0], 7, 2)
    tried = try_student(student, prompts, seeds)
    plan = student.pipe.plan
    assert [view.text for view in tried.views[:-1]] == [
        f"after step {step} of {len(plan.steps)}" for step in range(1, len(plan.steps))
    ]
    for view, step in zip(tried.views, plan.steps, strict=True):
        stage = plan.stage_of(step)
        assert [media.size for media in view.media] == [(stage.width, stage.height)] * 2
    expected = student.pipe(prompts, generator=[seeded(7), seeded(8)]).images
    for ours, theirs in zip(tried.views[-1].media, expected, strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))
    assert tried.evaluations == len(plan.steps) and 0 < tried.network < tried.seconds


def test_the_last_prediction_of_a_stage_is_what_the_pipeline_returns_of_it(models: Models) -> None:
    student = models.student("full/student")
    tried = try_student(student, [PROMPTS[1]], [3])
    plan = student.pipe.plan
    stages = student.pipe(PROMPTS[1], generator=seeded(3), return_stages=True).stages
    ends = [view for view, step in zip(tried.views, plan.steps, strict=True) if plan.ends_stage(step)]
    for view, stage in zip(ends, stages, strict=True):
        assert np.abs(pixels(view.media[0]).astype(int) - pixels(stage[0])).max() <= 1


def test_a_teacher_has_the_same_size_and_twice_the_evaluations_a_step(models: Models) -> None:
    student = models.student("full/student", Size(32, 48))
    tried = try_teacher(models.beside(student, steps=3), [PROMPTS[0]], [7])
    (view,) = tried.views
    assert view.media[0].size == (48, 32) and view.text == "3 steps: the result"
    assert tried.evaluations == 6 and tried.network < tried.seconds


def test_clips_are_lists_of_frames(moving: Models) -> None:
    (name,) = moving.students
    tried = try_student(moving.student(name), [PROMPTS[0]], [1])
    frames = moving.students[name].plan.frames
    assert [len(view.media[0]) for view in tried.views] == [frames] * len(tried.views)
    assert moving.moving(name)


@pytest.mark.parametrize(
    ("prompt", "seed", "count", "sentence"),
    [
        ("a\0", 0, 1, r"cannot be used"),
        ("a", 0, 0, rf"the number of samples must be between 1 and {MAX_COUNT}, got 0"),
        ("a", 0, MAX_COUNT + 1, rf"between 1 and {MAX_COUNT}, got {MAX_COUNT + 1}"),
        ("a", -1, 1, r"seeds are numbers from 0 to"),
    ],
)
def test_requests_that_are_refused(prompt: str, seed: int, count: int, sentence: str) -> None:
    with pytest.raises(RMDError, match=sentence):
        check_request(prompt, seed, count)
