"""Flow shifts that depend on the size, and grids that end at a given sigma, are those of diffusers' scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule, schedule_from_config
from rmd.core.plan import build_plan
from rmd.core.shift import DynamicShift

DYNAMIC: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}


@pytest.mark.parametrize("steps", [2, 4, 28])
@pytest.mark.parametrize("size", [(256, 256), (768, 1024), (2048, 2048)])
@pytest.mark.parametrize(
    "config", [{}, {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}, {"time_shift_type": "linear"}]
)
def test_the_grid_is_the_schedulers(config: dict[str, Any], size: tuple[int, int], steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **config)
    known = scheduler.config
    tokens = (size[0] // 16) * (size[1] // 16)
    mu = calculate_shift(tokens, known.base_image_seq_len, known.max_image_seq_len, known.base_shift, known.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = schedule_from_config(dict(known), token_side=16).for_size(*size).grid(steps)
    assert ours == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)


def test_a_fixed_shift_can_be_stretched_to_a_terminal_sigma() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5))
    schedule = schedule_from_config(dict(scheduler.config))
    assert schedule.grid(5) == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)
    assert schedule.grid(5)[0] == 1000.0 and schedule.grid(5)[-1] == pytest.approx(100.0)
    assert schedule.grid(1) == (1000.0,)  # where the scheduler divides by zero


def test_a_plan_has_the_shift_of_its_final_size() -> None:
    schedule = schedule_from_config(DYNAMIC, token_side=16)
    plan = build_plan(schedule, steps=4, split=[2, 2], sides=[(512, 512), (1024, 1024)], multiple=16)
    assert [step.teacher_time for step in plan.steps] == list(schedule.for_size(1024, 1024).grid(4))
    assert schedule.for_size(1024, 1024).shift == pytest.approx(np.exp(1.15))


def test_clips_count_the_tokens_of_their_latent_frames() -> None:
    rule = DynamicShift(token_side=32, token_frames=8)
    assert rule.at(512, 512, 25) == pytest.approx(DynamicShift(token_side=32).at(512, 2048))


def test_a_schedule_without_a_size_has_no_grid() -> None:
    with pytest.raises(ValueError, match=r"before for_size"):
        schedule_from_config(DYNAMIC, token_side=16).grid(4)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"time_shift_type": "cubic"},
            r"unknown time_shift_type of the scheduler 'cubic': use one of exponential, linear",
        ),
        ({"base_image_seq_len": 4096}, r"base_image_seq_len and max_image_seq_len must differ"),
        ({"shift_terminal": 1.5}, r"shift_terminal must be above 0 and below 1, got 1\.5"),
    ],
)
def test_an_invalid_rule_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RMDError, match=sentence):
        schedule_from_config({**DYNAMIC, **config}, token_side=16)


def test_a_shift_that_is_not_positive_is_refused() -> None:
    with pytest.raises(RMDError, match=r"the scheduler's dynamic shift at 64x64 pixels is not positive, but -0\.49"):
        FlowSchedule(dynamic=DynamicShift(base_shift=-0.5, kind="linear", base_tokens=0)).for_size(64, 64)
