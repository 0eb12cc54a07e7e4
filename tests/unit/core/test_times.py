"""Free times: their closed forms, their agreement with uniform ones, and every refusal."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.noise import FlowSchedule, NoiseSchedule, VPSchedule
from rmd.core.times import check_split, check_times, flow_sigma, logsnr_at, stage_times, thresholds_between

SCHEDULES: dict[str, NoiseSchedule] = {
    "sdxl": VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "zero-snr": VPSchedule.from_config({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}),
    "flow": FlowSchedule(1.0),
    "shifted": FlowSchedule(3.0),
}
NAMES = st.sampled_from(sorted(SCHEDULES))
SPLITS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def crossings(schedule: NoiseSchedule, times: list[float]) -> list[float]:
    return [float(schedule.logsnr(t)) for t in times]


def test_sigma_of_a_logsnr_is_eq_1() -> None:
    assert flow_sigma(0.0) == 0.5
    assert flow_sigma(2.0 * math.log(3.0)) == pytest.approx(0.25)
    assert flow_sigma(-math.inf) == 1.0 and flow_sigma(math.inf) == pytest.approx(0.0)
    flow = FlowSchedule(1.0)
    assert [flow_sigma(float(flow.logsnr(t))) for t in (900.0, 250.0)] == pytest.approx([0.9, 0.25])


@given(st.floats(1e-6, 1 - 1e-6))
def test_sigma_and_logsnr_are_inverse(sigma: float) -> None:
    assert flow_sigma(logsnr_at(sigma)) == pytest.approx(sigma)


@pytest.mark.parametrize("sigma", [0.0, 1.0, -0.5, 2.0])
def test_a_crossing_is_neither_clean_nor_pure_noise(sigma: float) -> None:
    with pytest.raises(RMDError, match=r"a crossing's sigma must be between 0 \(clean\) and 1 \(pure noise\), got"):
        logsnr_at(sigma)


def test_a_stages_steps_divide_the_way_to_the_next_stage_evenly() -> None:
    flow, shifted = SCHEDULES["flow"], SCHEDULES["shifted"]
    assert stage_times(flow, (2, 2), [logsnr_at(0.8)]) == pytest.approx((1000, 900, 800, 400))
    assert stage_times(flow, (1, 2, 1), [logsnr_at(0.9), logsnr_at(0.5)]) == pytest.approx((1000, 900, 700, 500))
    assert stage_times(flow, (2, 2), [logsnr_at(0.8)], end=0.2) == pytest.approx((1000, 900, 800, 500))
    # With a shift of 3, time 900 is 750 before the shift: halfway to it is 875, and halfway on to the end 375.
    after = [3000 * s / (1 + 2 * s) for s in (0.875, 0.375)]
    assert stage_times(shifted, (2, 2), [logsnr_at(0.9)]) == pytest.approx((1000, after[0], 900, after[1]))


@given(NAMES, SPLITS, st.sampled_from([0.0, 0.1]))
def test_crossings_on_the_uniform_grid_make_the_uniform_grid(name: str, split: list[int], end: float) -> None:
    schedule = SCHEDULES[name]
    uniform = schedule.grid(sum(split), end)
    firsts = [uniform[sum(split[:k])] for k in range(1, len(split))]
    times = stage_times(schedule, split, crossings(schedule, list(firsts)), end)
    # Crossings are rounded to whole times: the others move by less.
    whole = all(abs(t - round(t)) < 1e-9 for t in firsts)
    assert times == pytest.approx(uniform, abs=1e-6 if whole else 0.5, rel=0 if whole else 0.01)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_four_uniform_steps_come_back_to_the_last_digit(name: str) -> None:
    schedule = SCHEDULES[name]
    uniform = schedule.grid(4)
    for split in ((4,), (1, 3), (2, 2), (3, 1), (1, 1, 2)):
        firsts = [uniform[sum(split[:k])] for k in range(1, len(split))]
        assert stage_times(schedule, split, crossings(schedule, firsts)) == uniform


@given(NAMES, st.integers(1, 5), st.integers(1, 5), st.floats(0.05, 0.95))
def test_times_fall_and_the_crossing_has_its_level(name: str, first: int, second: int, sigma: float) -> None:
    schedule = SCHEDULES[name]
    if not 1 <= round(float(schedule.time(logsnr_at(sigma)))) < 1000:
        return
    times = stage_times(schedule, (first, second), [logsnr_at(sigma)])
    assert len(times) == first + second and times[0] == 1000.0
    assert all(a > b > 0 for a, b in pairwise(times))
    assert times[first] == round(float(schedule.time(logsnr_at(sigma))))
    assert check_times(times) == times


@pytest.mark.parametrize(
    ("split", "levels", "end", "sentence"),
    [
        ((2, 2), [], 0.0, "a cascade of 2 stages has 1 crossings, but 0 levels are given for them"),
        ((4,), [0.0], 0.0, "a cascade of 1 stages has 0 crossings, but 1 levels are given for them"),
        ((1, 1, 2), [0.0, -1.0], 0.0, "the crossings must follow each other from noise to clean"),
        ((2, 2), [-math.inf], 0.0, "between time 1000 and the grid's end, but lie at 1000: move a crossing"),
        ((2, 2), [10.0], 0.5, "the crossings must follow each other"),
        ((2, 0), [0.0], 0.0, r"every stage needs at least one step, got 2\+0"),
    ],
)
def test_crossings_that_make_no_cascade(
    split: tuple[int, ...], levels: list[float], end: float, sentence: str
) -> None:  # fmt: skip
    with pytest.raises(RMDError, match=sentence):
        stage_times(SCHEDULES["flow"], split, levels, end)


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        ([], "its time must be between 990 and 1000, got no time"),
        ([989.0, 500.0], "the first step starts from pure noise, so its time must be between 990 and 1000, got 989"),
        ([1001.0], "got 1001"),
        ([1000.0, 500.0, 500.0], "times must fall strictly from 1000 to above 0, got 1000, 500, 500"),
        ([1000.0, 0.0], "times must fall strictly from 1000 to above 0"),
        ([1000.0, math.nan], "a time"),
    ],
)
def test_times_that_make_no_plan(times: list[float], sentence: str) -> None:
    with pytest.raises(RMDError, match=sentence):
        check_times(times)


def test_times_become_floats() -> None:
    times = check_times([999, 500, 1])
    assert times == (999.0, 500.0, 1.0) and all(type(t) is float for t in times)


def test_thresholds_lie_halfway_between_the_stages() -> None:
    assert thresholds_between([-9.0, -3.0, -1.0, 1.0], (2, 2)) == [-2.0]
    assert thresholds_between([-9.0, -3.0, -1.0, 1.0], (2, 1, 1)) == [-2.0, 0.0]
    # Pure noise counts as 2 below the second step.
    assert thresholds_between([-math.inf, -3.0, -1.0], (1, 2)) == [-4.0]
    assert thresholds_between([-math.inf], (1,)) == []
    assert thresholds_between([-9.0, -1.0, 1 / 3], (2, 1)) == [-0.3333]


@pytest.mark.parametrize(
    ("split", "steps", "stages", "sentence"),
    [
        ((), None, None, "every stage needs at least one step, got none"),
        ((2, 2), 5, None, r"a split into 2\+2 steps does not go with 5 steps"),
        ((2, 2), 4, 3, r"a split into 2\+2 steps has 2 stages, but there are 3 sides"),
    ],
)
def test_a_split_agrees_with_steps_and_sides(
    split: tuple[int, ...], steps: int | None, stages: int | None, sentence: str
) -> None:  # fmt: skip
    with pytest.raises(RMDError, match=sentence):
        check_split(split, steps, stages)
    check_split((2, 2), 4, 2)
