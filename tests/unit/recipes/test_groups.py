"""Single values: the notations of a side, and the bounds of whatever is listed or allocated."""

from __future__ import annotations

import pytest

from rmd.common.errors import RMDError
from rmd.recipes.groups import parse_side
from rmd.recipes.schema import load_recipe


@pytest.mark.parametrize(
    ("value", "side"),
    [
        (512, (512, 512)),
        ("512", (512, 512)),
        ([480, 832], (480, 832)),
        ((480, 832), (480, 832)),
        ("480x832", (480, 832)),
        (" 480 X 832 ", (480, 832)),
    ],
)
def test_a_side_is_written_in_several_ways(value: object, side: tuple[int, int]) -> None:
    assert parse_side(value) == side


@pytest.mark.parametrize("value", [0, -8, True, 1.5, "0x5", "4x", "x", "", [1], [1, 2, 3], [1, 0], [1, "2"], None])
def test_what_is_not_a_side(value: object) -> None:
    with pytest.raises(ValueError, match=r"^should be a side in pixels"):
        parse_side(value)


BOUNDS = [
    ("plan.steps=1001", "plan.steps should be at most 1000, but is 1001"),
    ("plan.steps=" + "9" * 4000, "plan.steps should be at most 1000, but is a number of 13288 bits"),
    ("plan.sides=[1000000000]", "plan.sides[0] should be at most 65536 pixels, but is 1000000000"),
    ("plan.sides=[9x99999999]", "plan.sides[0] should be at most 65536 pixels, but is '9x99999999'"),
    ("plan.sides=['" + "9" * 5000 + "']", "plan.sides[0] should be a side in pixels (512), "),
    ("plan.thresholds=[" + "1, " * 10_000 + "]", "plan.thresholds should be a list of at most 64, but is [1, 1, "),
    ("noise.num_train_timesteps=1000000000", "noise.num_train_timesteps should be at most 100000, but is 1000000000"),
    ("method.guidance=1e308", "method.guidance should be at most 1000.0, but is 1e+308"),
    (
        "train.seed=18446744073709551616",
        "train.seed should be at most 9223372036854775807, but is 18446744073709551616",
    ),
    ("train.iterations=10000000000", "train.iterations should be at most 1000000000, but is 10000000000"),
    ("train.batch_size=1000000000", "train.batch_size should be at most 65536, but is 1000000000"),
    ("train.threads=1000000", "train.threads should be at most 4096, but is 1000000"),
    ("roles.rank=1000000000", "roles.rank should be at most 65536, but is 1000000000"),
    ("frames=1000000000", "frames should be at most 10000, but is 1000000000"),
    ("optim.student_lr=1e300", "optim.student_lr should be at most 1000000000000.0, but is 1e+300"),
    ("evaluation.samples=1000000000", "evaluation.samples should be at most 1000000, but is 1000000000"),
]


@pytest.mark.parametrize(("override", "sentence"), BOUNDS, ids=[override[:40] for override, _ in BOUNDS])
def test_what_is_listed_or_allocated_is_bounded(override: str, sentence: str) -> None:
    with pytest.raises(RMDError) as caught:
        load_recipe("scenes", [override])
    assert sentence in str(caught.value) and len(str(caught.value)) < 400


UNIFORM = ("plan.thresholds=[-2.5]", "plan.steps=1000")


def test_what_is_only_counted_up_to_may_be_large() -> None:
    recipe = load_recipe("scenes", [*UNIFORM, "train.iterations=1000000000", "train.seed=9223372036854775807"])
    assert len(recipe.build_plan().steps) == 1000


def test_no_stage_without_a_step_lists_a_thousand_of_them() -> None:
    with pytest.raises(RMDError, match=r"\(the steps have .*, \.\.\. \(1000 in all\)\)") as caught:
        load_recipe("scenes", ["plan.steps=1000", "plan.thresholds=[500]"]).build_plan()
    assert len(str(caught.value)) < 400
