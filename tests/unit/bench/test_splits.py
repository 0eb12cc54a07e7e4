"""`rmd plan --fit` compares all divisions, so a recipe's own times and division are set aside."""

from __future__ import annotations

import pytest

from rmd.bench.splits import with_any_split
from rmd.common.errors import RMDError
from rmd.recipes.schema import load_recipe


@pytest.mark.parametrize(
    "overrides",
    [
        ["plan.thresholds=[]"],
        ["plan.split=[2, 2]", "plan.cross_at={sigma: [0.8]}"],
        ["plan.times=[1000, 850, 700, 350]", "plan.split=[3, 1]"],
        ["plan.steps=4", "plan.split=[3, 1]"],
    ],
)
def test_own_times_and_divisions_are_replaced_by_uniform_ones(overrides: list[str]) -> None:
    plan = with_any_split(load_recipe("scenes", overrides)).build_plan()
    assert [step.teacher_time for step in plan.steps] == [1000, 750, 500, 250]
    assert [step.stage for step in plan.steps] == [1, 2, 2, 2]


def test_every_side_needs_a_step() -> None:
    recipe = load_recipe("scenes", ["plan.sides=[16, 32, 64]", "plan.split=[1, 1]", "plan.steps=2"])
    with pytest.raises(RMDError, match=r"^3 sides need at least 3 steps, but plan\.steps is 2: set it higher$"):
        with_any_split(recipe)
