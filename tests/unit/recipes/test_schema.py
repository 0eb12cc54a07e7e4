"""The typed recipe: it is frozen, builds its plan and noise schedule once, and is read without torch."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from rmd.common.errors import RMDError
from rmd.core import plan
from rmd.recipes import groups
from rmd.recipes.schema import Recipe, load_recipe, steps_overrides, to_yaml


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("scenes")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.seed = 1


def test_the_choices_are_those_of_the_plan() -> None:
    for name in ("TimeMap", "Upsample", "NoiseRule", "StepNoise"):
        assert get_args(getattr(groups, name)) == get_args(getattr(plan, name))


def test_a_plan_is_built_once_for_equal_settings() -> None:
    recipe = load_recipe("scenes")
    assert recipe.build_plan() is recipe.build_plan() is load_recipe("scenes", ["train.seed=5"]).build_plan()
    settings = recipe.plan.model_copy(update={"map": "none"})
    other = recipe.model_copy(update={"plan": settings}).build_plan()
    assert other.time_map == "none" != recipe.build_plan().time_map


def test_a_student_of_a_low_resolution_can_be_matched_at_a_higher_one() -> None:
    low = ["plan.sides=[32]", "plan.thresholds=[]", "plan.match_side=64"]
    built = load_recipe("scenes", low).build_plan()
    assert [stage.size for stage in built.stages] == ["32x32"] and built.match_stage.size == "64x64"
    assert load_recipe("scenes").build_plan().match_stage.size == "64x64"
    with pytest.raises(RMDError, match=r"^samples of 32x32 cannot be matched at 16x16, which is smaller"):
        load_recipe("scenes", [*low, "plan.match_side=16"]).build_plan()
    with pytest.raises(RMDError, match=r"^the side of the matching, 40x40, is not divisible by 16"):
        load_recipe("scenes", [*low, "plan.match_side=40"]).build_plan()


def test_the_size_of_the_matching_is_stored_in_the_plan_and_scales_with_it() -> None:
    low = ["plan.sides=[32x48]", "plan.thresholds=[]", "plan.match_side=64x96"]
    built = load_recipe("scenes", low).build_plan()
    assert plan.StepPlan.from_json(built.to_json()) == built
    larger = built.resized(64, 96, 16)
    assert (larger.stages[-1].size, larger.match_stage.size) == ("64x96", "128x192")
    usual = load_recipe("scenes").build_plan()
    assert usual.resized(128, 128, 16).match_side is None
    without = {key: value for key, value in usual.to_dict().items() if key != "match_side"}
    assert plan.StepPlan.from_dict(without) == usual  # a plan of an earlier version


def test_training_crosses_as_sampling_does_by_default() -> None:
    same = load_recipe("scenes", ["crossing={rule: corrected, beta: 0.7, train_beta: null}"]).build_plan()
    assert same.training_crossing == same.crossing == plan.Crossing("bilinear", "corrected", 0.7)
    other = load_recipe("scenes", ["crossing={upsample: nearest, train_rule: plain, train_beta: 0}"]).build_plan()
    assert other.crossing == plan.Crossing("nearest", "block", 0.2)
    assert other.training_crossing == plan.Crossing("nearest", "plain", 0.0)


def test_every_key_of_the_plan_has_its_effect() -> None:
    keys = "plan={steps: 3, sides: [8x16, 16x32], thresholds: [-2.0], map: none, grid_end: 0.1, multiple: 8}"
    built = load_recipe("sd35", [keys]).build_plan()
    assert [(stage.height, stage.width) for stage in built.stages] == [(8, 16), (16, 32)]
    # 1, 0.7 and 0.4 through a flow shift of 3
    assert [step.teacher_time for step in built.steps] == pytest.approx([1000, 875, 2000 / 3])
    assert [step.model_time for step in built.steps] == [step.teacher_time for step in built.steps]
    assert (built.thresholds, built.time_map) == ((-2.0,), "none")
    with pytest.raises(RMDError, match="not divisible by 16"):
        load_recipe("sd35", [keys, "plan.multiple=16"]).build_plan()


def test_the_vp_schedule_is_the_one_described() -> None:
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    schedule = load_recipe("pixart").noise.schedule()
    assert schedule.kind == "vp"
    assert float(schedule.alpha(500.0)) == pytest.approx(float((1 - betas)[:500].prod().sqrt()), abs=1e-6)


def test_the_scenes_schedule_ends_in_pure_noise() -> None:
    assert float(load_recipe("scenes").noise.schedule().alpha(1000.0)) == pytest.approx(0, abs=1e-6)


def test_the_flow_schedule_is_shifted() -> None:
    schedule = load_recipe("wan21-14b").noise.schedule()
    assert schedule.kind == "flow"
    assert schedule.grid(2) == pytest.approx((1000, 1000 * 5 * 0.5 / (1 + 4 * 0.5)))


def test_lists_are_written_on_one_line() -> None:
    assert "  sides: [[32, 32], [64, 64]]\n" in to_yaml(load_recipe("scenes"))


def test_reading_a_recipe_does_not_import_torch(run_python) -> None:  # type: ignore[no-untyped-def]
    code = "import sys; from rmd.recipes.schema import load_recipe; load_recipe('sdxl'); print('torch' in sys.modules)"
    assert run_python("-c", code).stdout.strip() == "False"


def test_the_json_schema_describes_every_field() -> None:
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "logSNR thresholds" in schema["$defs"]["PlanConfig"]["properties"]["thresholds"]["description"]


@pytest.mark.parametrize(
    ("overrides", "steps", "expected"),
    [
        ([], 4, []),
        ([], 6, ["plan.split=[3, 3]"]),
        (["plan.thresholds=[-2.5]"], 4, []),
        (["plan.thresholds=[-2.5]", "plan.steps=4"], 6, ["plan.steps=6"]),
        (["plan.split=[2, 2]"], 6, ["plan.split=[3, 3]"]),
        (["plan.split=[2, 2]"], 5, ["plan.split=[2, 3]"]),
        (["plan.split=[3, 1]"], 2, ["plan.split=[1, 1]"]),
        (
            ["plan.split=[1, 2, 1]", "plan.cross_at={sigma: [0.9, 0.7]}", "plan.sides=[16, 32, 64]"],
            8,
            ["plan.split=[2, 4, 2]"],
        ),
    ],
)
def test_another_number_of_steps_keeps_the_proportions_of_a_split(
    overrides: list[str], steps: int, expected: list[str]
) -> None:
    recipe = load_recipe("scenes", overrides)
    changes = steps_overrides(recipe, steps)
    assert changes == expected
    assert len(load_recipe("scenes", [*overrides, *changes]).build_plan().steps) == steps


def test_the_number_of_steps_whose_times_are_given_cannot_change() -> None:
    recipe = load_recipe("scenes", ["plan.times=[1000, 900, 750, 375]"])
    assert steps_overrides(recipe, 4) == []
    with pytest.raises(RMDError, match="gives the times of 4 steps, so it cannot make 3: set plan"):
        steps_overrides(recipe, 3)
