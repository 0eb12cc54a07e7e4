"""The step plan against the paper's tables: the maps in closed form, JSON round trips, sizes and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule, NoiseSchedule, VPSchedule
from rmd.core.plan import Crossing, StepPlan, TimeMap, build_plan, map_time

PIXART = VPSchedule.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2})
SDXL = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
ZERO_SNR = VPSchedule.from_config({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True})
SD35, WAN = FlowSchedule(3.0), FlowSchedule(5.0)
SCHEDULES: dict[str, NoiseSchedule] = {
    "pixart": PIXART,
    "sdxl": SDXL,
    "zero_snr": ZERO_SNR,
    "sd35": SD35,
    "wan": WAN,
}
MAPS: list[TimeMap] = ["raise", "vp", "lower", "none"]
IMAGE = ((512, 512), (1024, 1024))
VIDEO = ((480, 832), (720, 1280))
THREE = ((256, 256), (512, 512), (1024, 1024))


def split(plan: StepPlan) -> list[int]:
    """Return the number of steps in each stage, which the paper writes as 2+2."""
    return [sum(step.stage == stage.index for step in plan.steps) for stage in plan.stages]


def example(schedule: NoiseSchedule = SDXL, **changes: object) -> StepPlan:
    """Return a 2+2 plan of 512 -> 1024."""
    arguments: dict[str, object] = {"steps": 4, "sides": IMAGE, "thresholds": (-2.5,)}
    return build_plan(schedule, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "steps", "sides", "threshold", "end", "printed", "teacher", "heights"),
    [
        (SDXL, 4, IMAGE, -2.5, 0.0, (1000, 857, 500, 250), (1000, 750, 500, 250), (512, 512, 1024, 1024)),
        (PIXART, 4, IMAGE, -2.5, 0.0, (1000, 857, 500, 250), (1000, 750, 500, 250), (512, 512, 1024, 1024)),
        (SD35, 4, IMAGE, -2.5, 0.0, (1000, 947, 750, 500), (1000, 900, 750, 500), (512, 512, 1024, 1024)),
        (
            WAN,
            6,
            VIDEO,
            -4.0,  # the paper's 3+3 split needs a threshold between -4.61 and -3.23 here
            0.003,
            (1000, 974, 937, 834, 716, 505),
            (1000, 962, 909, 834, 716, 505),
            (480, 480, 480, 720, 720, 720),
        ),
    ],
    ids=["sdxl", "pixart", "sd35", "wan"],
)
def test_every_row_of_tab_6(
    schedule: NoiseSchedule,
    steps: int,
    sides: Sequence[tuple[int, int]],
    threshold: float,
    end: float,
    printed: Sequence[int],
    teacher: Sequence[int],
    heights: Sequence[int],
) -> None:
    plan = build_plan(schedule, steps=steps, sides=sides, thresholds=[threshold], grid_end=end)
    # The table prints whole units, some rounded and some cut off (937.76 as 937, 504.47 as 505).
    assert all(abs(step.model_time - value) < 1 for step, value in zip(plan.steps, printed, strict=True))
    assert all(abs(step.teacher_time - value) < 1 for step, value in zip(plan.steps, teacher, strict=True))
    assert [plan.stage_of(step).height for step in plan.steps] == list(heights)


def test_tab_6_times_in_full() -> None:
    assert [step.model_time for step in example(SDXL).steps] == pytest.approx([1000, 6000 / 7, 500, 250])
    assert [step.model_time for step in example(SD35).steps] == pytest.approx([1000, 18000 / 19, 750, 500])


@pytest.mark.parametrize(("threshold", "expected"), [(-6.0, [1, 3]), (-2.5, [2, 2]), (0.0, [3, 1])])
def test_splits_of_tab_4(threshold: float, expected: list[int]) -> None:
    assert split(example(PIXART, thresholds=(threshold,))) == expected


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [((-6.0, -2.5), [1, 1, 2]), ((-6.0, 0.0), [1, 2, 1]), ((-2.5, 0.0), [2, 1, 1])],
)
def test_splits_of_tab_5(thresholds: tuple[float, ...], expected: list[int]) -> None:
    assert split(example(SDXL, sides=THREE, thresholds=thresholds)) == expected


def test_free_times_and_a_split_make_the_plan() -> None:
    times = (1000.0, 850.0, 700.0, 350.0)
    plan = example(steps=None, thresholds=(), times=times, split=(1, 3))
    assert tuple(step.teacher_time for step in plan.steps) == times and split(plan) == [1, 3]
    assert [(step.tau_low, step.tau_high) for step in plan.steps] == list(zip([*times[1:], 0.0], times, strict=True))
    # The record of the thresholds gives the same division.
    again = example(steps=None, times=times, thresholds=plan.thresholds)
    assert again == plan
    assert StepPlan.from_json(plan.to_json()) == plan


def test_times_take_the_place_of_steps() -> None:
    uniform = example()
    assert example(steps=None, times=SDXL.grid(4)) == uniform
    assert example(times=SDXL.grid(4)) == uniform
    assert split(example(thresholds=(), split=(2, 2))) == [2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "a plan needs the number of its steps, or their times"),
        ({"times": (1000.0, 500.0)}, "2 times are given for 4 steps: leave out the number of steps"),
        ({"steps": None, "times": (1000.0,)}, "2 stages need at least 2 steps, got 1"),
        ({"steps": None, "times": (900.0, 500.0)}, "the first step starts from pure noise"),
        ({"thresholds": (), "split": (2, 3)}, r"a split into 2\+3 steps does not go with 4 steps"),
        ({"thresholds": (), "split": (1, 1, 2)}, r"has 3 stages, but there are 2 sides"),
        ({"thresholds": (), "split": (4, 0)}, "every stage needs at least one step"),
    ],
)
def test_times_and_splits_that_make_no_cascade_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        example(**changes)


def test_the_first_step_belongs_to_stage_1_whatever_its_logsnr() -> None:
    # PixArt's noisiest step has a logSNR of -10.1, above this threshold.
    assert split(example(PIXART, thresholds=(-12.0,))) == [1, 3]


def test_a_step_on_a_threshold_belongs_to_the_lower_stage() -> None:
    on = float(SDXL.logsnr(500.0))
    assert split(example(thresholds=(on,))) == [3, 1]
    assert split(example(thresholds=(math.nextafter(on, -math.inf),))) == [2, 2]


@given(r=st.floats(1.0, 8.0), t=st.floats(1.0, 1000.0))
def test_the_maps_are_their_closed_forms(r: float, t: float) -> None:
    s = t / 1000
    assert map_time(SDXL, t, r, "raise") == pytest.approx(1000 * r * s / (1 + (r - 1) * s))
    assert map_time(SDXL, t, r, "lower") == pytest.approx(1000 * s / (r - (r - 1) * s))
    assert map_time(SDXL, t, r, "none") == t
    shifted = float(SDXL.logsnr(t)) - 2 * math.log(r)
    expected = max(shifted, float(SDXL.logsnr(1000.0)))
    assert float(SDXL.logsnr(map_time(SDXL, t, r, "vp"))) == pytest.approx(expected, abs=1e-6)


@given(r=st.floats(1.0, 8.0), t=st.floats(1.0, 1000.0))
def test_on_rectified_flow_the_exact_map_is_raise(r: float, t: float) -> None:
    assert map_time(WAN, t, r, "vp") == pytest.approx(map_time(WAN, t, r, "raise"))


@given(r=st.floats(1.0, 8.0), t=st.floats(1.0, 1000.0))
def test_lower_undoes_raise(r: float, t: float) -> None:
    assert map_time(WAN, map_time(WAN, t, r, "raise"), r, "lower") == pytest.approx(t)


@given(name=st.sampled_from(sorted(SCHEDULES)), time_map=st.sampled_from(MAPS), t=st.floats(1.0, 1000.0))
def test_no_map_changes_the_final_resolution_or_leaves_the_range(name: str, time_map: TimeMap, t: float) -> None:
    assert map_time(SCHEDULES[name], t, 1.0, time_map) == t
    mapped = map_time(SCHEDULES[name], t, 2.0, time_map)
    assert 0.0 < mapped <= 1000.0
    if time_map == "lower":
        assert mapped <= t + 1e-9
    else:
        assert mapped >= t - 1e-9


def test_pure_noise_stays_pure_noise_under_every_map() -> None:
    for schedule in SCHEDULES.values():
        for ratio in (1.1, 1.5, 1.7, 3.3):
            for time_map in MAPS:
                assert map_time(schedule, 1000.0, ratio, time_map) == 1000.0


def test_the_exact_map_on_pixart_is_the_one_quoted() -> None:
    assert map_time(PIXART, 750.0, 2.0, "vp") == pytest.approx(837, abs=1)


def test_the_ratio_is_that_of_the_shorter_sides() -> None:
    plan = build_plan(SD35, steps=4, sides=[(512, 768), (1024, 2304)], thresholds=[-2.5])
    assert plan.steps[1].model_time == pytest.approx(18000 / 19)


def test_segments_tile_the_teachers_time() -> None:
    for schedule in SCHEDULES.values():
        steps = example(schedule, steps=5).steps
        assert steps[0].tau_high == 1000.0
        assert steps[-1].tau_low == 0.0
        for step, following in pairwise(steps):
            assert step.tau_low == following.tau_high == following.teacher_time
            assert step.tau_high == step.teacher_time


def test_logsnr_is_that_of_the_teachers_time() -> None:
    plan = example(ZERO_SNR)
    assert plan.steps[0].logsnr == -math.inf
    assert [step.logsnr for step in plan.steps] == [float(ZERO_SNR.logsnr(t)) for t in (1000, 750, 500, 250)]


def test_training_crossing_defaults_to_the_sampling_one() -> None:
    crossing = Crossing(rule="block", beta=0.5)
    assert example(crossing=crossing).training_crossing == crossing
    other = Crossing(beta=0.2)
    plan = example(crossing=crossing, training_crossing=other)
    assert (plan.crossing, plan.training_crossing) == (crossing, other)


def test_relative_cost_is_the_share_of_the_final_area() -> None:
    plan = example(sides=THREE, thresholds=(-6.0, -2.5))
    assert [plan.relative_cost(stage) for stage in plan.stages] == [1 / 16, 1 / 4, 1.0]


def test_one_stage_is_a_plan() -> None:
    plan = build_plan(WAN, steps=1, sides=[(8, 16)], thresholds=[])
    assert [(step.stage, step.model_time, step.tau_low) for step in plan.steps] == [(1, 1000.0, 0.0)]
    assert plan.warnings() == []


@st.composite
def cascades(draw: st.DrawFn) -> StepPlan:
    """Draw a plan of any number of stages, any aspect ratio and any schedule, in which every stage has a step."""
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    count = draw(st.integers(1, 5))
    heights = sorted(draw(st.lists(st.integers(1, 64), min_size=count, max_size=count)))
    widths = sorted(draw(st.lists(st.integers(1, 64), min_size=count, max_size=count, unique=True)))
    steps = draw(st.integers(count, 12))
    times = schedule.grid(steps)
    first = draw(st.permutations(range(1, steps)).map(lambda order: sorted(order[: count - 1])))
    # A threshold just below the first step of each later stage leaves every stage with a step.
    thresholds = [math.nextafter(float(schedule.logsnr(times[i])), -math.inf) for i in first]
    multiple = draw(st.sampled_from([1, 8, 16]))
    plan = build_plan(
        schedule,
        steps=steps,
        sides=[(h * multiple, w * multiple) for h, w in zip(heights, widths, strict=True)],
        thresholds=thresholds,
        time_map=draw(st.sampled_from(MAPS)),
        crossing=Crossing(beta=draw(st.floats(0.0, 1.0))),
        multiple=multiple,
    )
    assert [step.index for step in plan.steps if step.stage > 1][:1] == [i + 1 for i in first[:1]]
    return plan


@given(plan=cascades())
def test_json_round_trips_exactly_for_any_cascade(plan: StepPlan) -> None:
    assert StepPlan.from_json(plan.to_json()) == plan
    assert StepPlan.from_dict(plan.to_dict()) == plan


@given(plan=cascades())
def test_stages_of_steps_follow_the_thresholds(plan: StepPlan) -> None:
    limits = (-math.inf, *plan.thresholds, math.inf)
    for step in plan.steps[1:]:
        assert limits[step.stage - 1] < step.logsnr <= limits[step.stage]
    assert plan.steps[0].stage == 1


@given(
    plan=cascades(),
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    multiple=st.sampled_from([1, 8, 16, 64]),
)
def test_resizing_keeps_times_and_ratios(plan: StepPlan, height: int, width: int, multiple: int) -> None:
    final = (height * multiple, width * multiple)
    try:
        resized = plan.resized(*final, multiple)
    except RMDError as error:
        assume("too small for this plan" not in str(error))
        raise
    assert resized.steps == plan.steps
    assert (resized.stages[-1].height, resized.stages[-1].width) == final
    last = plan.stages[-1]
    for old, new in zip(plan.stages, resized.stages, strict=True):
        assert new.height % multiple == new.width % multiple == 0
        assert new.height >= multiple
        assert new.width >= multiple
        for side, wanted in (
            (new.height, old.height / last.height * final[0]),
            (new.width, old.width / last.width * final[1]),
        ):
            assert abs(side - wanted) <= multiple / 2 or side == multiple


def test_resized_examples() -> None:
    sizes = [stage.size for stage in example().resized(768, 1360, 16).stages]
    assert sizes == ["384x688", "768x1360"]
    same = example()
    assert same.resized(1024, 1024, 8) == same
    video = example(WAN, sides=VIDEO)
    assert [stage.size for stage in video.resized(1280, 720, 16).stages] == ["848x464", "1280x720"]


@pytest.mark.parametrize(
    ("size", "multiple", "message"),
    [
        ((1000, 1024), 16, "the final size, 1000x1024, is not divisible by 16: use 1008x1024"),
        ((64, 64), 64, "64x64 is too small for this plan: stages 1 and 2 would both be 64x64"),
        ((0, 64), 8, "the final size is 0x64: sides must be positive"),
        ((64, 64), 0, "the size multiple must be at least 1"),
        ((64.0, 64), 8, "a height must be an integer, got 64.0"),
    ],
)
def test_an_impossible_size_is_refused(size: tuple[int, int], multiple: int, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        example().resized(*size, multiple)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sides": ()}, "at least one resolution, got none"),
        ({"sides": ((512, 512, 3), (1024, 1024))}, r"stage 1 needs \(height, width\) in pixels"),
        ({"sides": (512, 1024)}, r"stage 1 needs \(height, width\) in pixels, got 512"),
        ({"sides": ((0, 512), (1024, 1024))}, "stage 1 is 0x512: sides must be positive"),
        ({"sides": ((512.5, 512), (1024, 1024))}, "a height must be an integer, got 512.5"),
        ({"sides": ((1024, 1024), (512, 512))}, r"stage 1 \(1024x1024\) is larger than stage 2 \(512x512\)"),
        ({"sides": ((512, 1040), (1024, 1024))}, r"stage 1 \(512x1040\) is larger than stage 2"),
        ({"sides": ((512, 512), (512, 512))}, "stages 1 and 2 are both 512x512"),
        ({"multiple": 100}, "stage 1, 512x512, is not divisible by 100: use 500x500"),
        ({"multiple": 1.5}, "the size multiple must be an integer"),
        ({"thresholds": ()}, "2 resolutions need 1 logSNR threshold between them, got 0"),
        ({"sides": THREE}, "3 resolutions need 2 logSNR thresholds between them, got 1"),
        ({"sides": ((512, 512),)}, "1 resolution needs 0 logSNR thresholds between them, got 1"),
        ({"sides": THREE, "thresholds": (0.0, -2.5)}, "must strictly increase, got 0, -2.5"),
        ({"sides": THREE, "thresholds": (0.0, 0.0)}, "must strictly increase, got 0, 0"),
        ({"thresholds": (math.nan,)}, "a threshold must be a finite number, got nan"),
        ({"thresholds": ("-2.5",)}, "a threshold must be a finite number, got '-2.5'"),
        ({"time_map": "rise"}, r"unknown time map 'rise' \(did you mean 'raise'\?\): use one of raise, vp"),
        ({"steps": 0}, "2 stages need at least 2 steps, got 0"),
        ({"steps": 1}, "2 stages need at least 2 steps, got 1"),
        ({"steps": 4.0}, "steps must be an integer, got 4.0"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"sides": ((8, 8),), "thresholds": (), "steps": 0}, "1 stage needs at least 1 step, got 0"),
        ({"grid_end": 1.0}, "the grid's end must be at least 0 and below 1"),
        (
            {"thresholds": (3.0,)},
            r"stage 2 \(1024x1024\) gets no step: none has a logSNR above 3 and up to inf "
            r"\(the steps have -5.364, -2.813, -0.9561, 0.7329\); move a threshold or use more steps",
        ),
        (
            {"sides": THREE, "thresholds": (-2.5, -2.0)},
            r"stage 2 \(512x512\) gets no step: none has a logSNR above -2.5 and up to -2",
        ),
    ],
)
def test_settings_that_make_no_cascade_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        example(**changes)


@pytest.mark.parametrize(
    ("ratio", "time_map", "message"),
    [
        (0.5, "raise", "must be at least 1, got 0.5"),
        (math.inf, "raise", "must be at least 1, got inf"),
        (2.0, "up", "unknown time map 'up'"),
    ],
)
def test_an_invalid_map_is_refused(ratio: float, time_map: TimeMap, message: str) -> None:
    with pytest.raises(RMDError, match=message):
        map_time(SDXL, 500.0, ratio, time_map)


def test_text_that_is_not_a_json_plan_is_refused() -> None:
    with pytest.raises(RMDError, match=r"^the plan: not valid JSON \(EOF"):
        StepPlan.from_json("{")
    with pytest.raises(RMDError, match=r"^the plan: should be a group of keys, but is \[\]$"):
        StepPlan.from_json("[]")


def test_json_is_strict_and_pure_noise_is_null() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(example(SD35).to_json(), parse_constant=refuse)
    assert data["steps"][0]["logsnr"] is None
    assert data["stages"][0] == {"index": 1, "height": 512, "width": 512}


@pytest.mark.parametrize(
    ("sampled", "trained", "message"),
    [
        (
            Crossing(beta=1.0),
            Crossing(beta=0.2),
            "sampling uses plain noise with beta 1, but training uses beta 0.2",
        ),
        (Crossing(rule="corrected"), Crossing(rule="corrected", beta=0.5), "sampling uses corrected noise"),
        (
            Crossing(rule="block"),
            Crossing(),
            "sampling uses the noise rule 'block', but training uses 'plain'",
        ),
        (Crossing(upsample="nearest"), Crossing(), "sampling uses nearest upsampling, but training uses bilinear"),
    ],
)
def test_a_mismatch_of_training_and_sampling_causes_a_warning(
    sampled: Crossing, trained: Crossing, message: str
) -> None:
    (warning,) = example(crossing=sampled, training_crossing=trained).warnings()
    assert message in warning


def test_harmless_settings_cause_no_warning() -> None:
    assert example(crossing=Crossing(beta=0.2)).warnings() == []
    block = Crossing(rule="block", beta=0.5)
    assert example(crossing=replace(block, beta=1.0), training_crossing=block).warnings() == []
