"""Invalid crossings, stages and steps are refused, in code and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule
from rmd.core.plan import Crossing, Stage, StepPlan, build_plan


def example() -> StepPlan:
    """Return a 2+2 plan of 512 -> 1024 on the schedule of SD3.5."""
    return build_plan(FlowSchedule(3.0), steps=4, sides=((512, 512), (1024, 1024)), thresholds=(-2.5,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.1}, "beta must be between 0 .* and 1 .*, got 1.1"),
        ({"beta": -0.1}, "beta must be between 0"),
        ({"beta": math.nan}, "beta must be a finite number"),
        ({"rule": "blocks"}, r"unknown noise rule 'blocks' \(did you mean 'block'\?\)"),
        ({"upsample": "area"}, "unknown upsample 'area'.*: use one of bilinear, nearest, bicubic"),
    ],
)
def test_an_invalid_crossing_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        Crossing(**arguments)  # type: ignore[arg-type]


def edited(path: Sequence[str | int], value: object) -> dict[str, object]:
    """Return the example as a dict in which the entry at `path` is replaced, or removed if `value` is `...`."""
    data: dict[str, object] = json.loads(example().to_json())
    place: object = data
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    if value is ...:
        del place[path[-1]]  # type: ignore[attr-defined]
    else:
        place[path[-1]] = value  # type: ignore[index]
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["threshold"], [1], r"^the plan: there is no key threshold \(did you mean 'thresholds'\?\)$"),
        (["steps"], ..., "^the plan: steps is missing$"),
        (["steps"], [], "a plan needs at least one step"),
        (["steps"], 4, "^the plan: steps should be a list, but is 4$"),
        (["stages"], [], "at least one resolution"),
        (["stages", 0], 512, r"stages\[0\] should be a group of keys, but is 512$"),
        (["stages", 0, "depth"], 3, r"there is no key stages\[0\]\.depth \(did you mean"),
        (["stages", 0, "height"], 512.0, r"stages\[0\]\.height should be a whole number, but is 512\.0$"),
        (["stages", 0, "height"], 4096, r"stage 1 \(4096x512\) is larger than stage 2"),
        (["stages", 0, "index"], 2, "stages must be numbered 1, 2, ..., but stage 1 has index 2"),
        (["steps", 1, "index"], 3, "steps of a plan must be numbered"),
        (["steps", 1, "stage"], 2, None),
        (["steps", 0, "stage"], 2, r"visit stages 1 to 2 in order, each at least once, got \[2, 1, 2, 2\]"),
        (["steps", 3, "stage"], 3, r"got \[1, 1, 2, 3\]"),
        (["steps", 1, "model_time"], "857", r"steps\[1\]\.model_time should be a number, but is '857'$"),
        (["steps", 1, "model_time"], math.nan, r"steps\[1\]\.model_time should be a finite number, but is nan$"),
        (["steps", 1, "model_time"], 0.0, "step 2 has model time 0: use above 0 and up to 1000"),
        (["steps", 1, "model_time"], 1001, "step 2 has model time 1001"),
        (["steps", 1, "teacher_time"], 1000.0, "teacher times must strictly fall"),
        (["steps", 0, "teacher_time"], 1001.0, "teacher times must strictly fall"),
        (["steps", 1, "tau_low"], 950.0, "step 2 has an empty segment, 950 to 900"),
        (["steps", 1, "logsnr"], True, r"steps\[1\]\.logsnr should be a number, but is true$"),
        (["crossing", "beta"], 2, "beta must be between"),
        (["crossing", "rule"], None, r"crossing\.rule should be 'plain', 'corrected' or 'block', but is empty$"),
        (["training_crossing"], ..., "training_crossing is missing$"),
        (["time_map"], "RAISE", "time_map should be 'raise', 'vp', 'lower' or 'none', but is 'RAISE'$"),
        (["thresholds"], [], "2 resolutions need 1 logSNR threshold"),
        (["thresholds", 0], None, r"thresholds\[0\] should be a number, but is empty$"),
        (["steps", 1, "model_time"], 1000.0, None),
        (["steps", 3, "model_time"], 800.0, "times must fall within a stage, but those of stage 2 are 750, 800$"),
        (["steps", 2, "model_time"], 990.0, None),  # may rise between stages: the map shifts only the lower
        (["steps", 2, "logsnr"], -30.0, "logSNRs must rise as teacher times fall, got -inf, -4.394, -30, 0$"),
        (["steps", 2, "logsnr"], None, "logSNRs must rise as teacher times fall"),
        (["steps", 3, "logsnr"], math.nan, "logSNRs must rise as teacher times fall"),
        (["stages", 1, "height"], 10**6, "stage 2 has a side of 1000000 pixels: use at most 16384$"),
        (["stages", 1, "width"], 10**400, "stage 2 has a side of a number of 1329 bits pixels: use at most 16384$"),
        (["frames"], 10**9, "a sample has 1 to 10000 frames, got 1000000000$"),
        (["frames"], True, "frames should be a whole number, but is true$"),
    ],
)
def test_a_saved_plan_is_checked_when_it_is_read(path: Sequence[str | int], value: object, message: str | None) -> None:
    data = edited(path, value)
    if message is None:
        place: object = json.loads(StepPlan.from_dict(data).to_json())
        for key in path:
            place = place[key]  # type: ignore[index]
        assert place == value
        return
    with pytest.raises(RMDError, match=message):
        StepPlan.from_dict(data)


def test_a_plan_cannot_be_replaced_by_an_invalid_one() -> None:
    plan = example()
    with pytest.raises(RMDError, match="visit stages 1 to 1 in order"):
        replace(plan, stages=(Stage(1, 8, 8),), thresholds=())
    with pytest.raises(RMDError, match="teacher times must strictly fall"):
        replace(plan, steps=(replace(plan.steps[0], teacher_time=math.nan), *plan.steps[1:]))
    with pytest.raises(RMDError, match="must be a finite number"):
        replace(plan, thresholds=(math.inf,))
