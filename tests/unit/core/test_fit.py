"""Splits of the steps: their thresholds, the missing bits in closed form, and the Pareto frontier."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.fit import Split, check_count, frontier, missing_bits, power_spectrum, split_thresholds, splits
from rmd.core.noise import schedule_from_config
from rmd.core.plan import build_plan

SCHEDULES = {
    "vp": schedule_from_config({"_class_name": "DDPMScheduler", "beta_schedule": "linear"}),
    "zero-snr": schedule_from_config(
        {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    ),
    "flow": schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
}
SIDES = [(16, 24), (32, 48), (64, 96)]
COSTS = {(16, 24): 1.0, (32, 48): 3.0, (64, 96): 10.0}


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    split=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    end=st.sampled_from([0.0, 0.12]),
)
def test_thresholds_give_every_stage_its_steps(name: str, split: list[int], end: float) -> None:
    schedule = SCHEDULES[name]
    thresholds = split_thresholds(schedule, split, grid_end=end)
    sides = [(8 * i, 8 * i) for i in range(1, len(split) + 1)]
    plan = build_plan(schedule, steps=sum(split), sides=sides, thresholds=thresholds, grid_end=end)
    assert [sum(step.stage == stage.index for step in plan.steps) for stage in plan.stages] == split


@pytest.mark.parametrize("split", [(), (2, 0), (0,)])
def test_every_stage_needs_a_step(split: tuple[int, ...]) -> None:
    with pytest.raises(RMDError, match="every stage needs at least one step, got"):
        split_thresholds(SCHEDULES["flow"], split)


def test_the_spectrum_of_noise_is_flat_and_that_of_a_colour_is_its_mean() -> None:
    noise = torch.randn(400, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(power_spectrum(noise), torch.ones(6, 10, dtype=torch.float64), atol=0.2, rtol=0)
    # The transform is orthonormal, so the mean power of the modes equals that of the values.
    assert float(power_spectrum(noise).mean()) == pytest.approx(float(noise.double().square().mean()))
    flat = power_spectrum(torch.full((2, 4, 3, 6, 10), 0.5))
    assert float(flat[0, 0]) == pytest.approx(0.25 * 60)
    assert float(flat.sum() - flat[0, 0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_white_latents_lack_the_capacity_of_a_gaussian_channel(name: str) -> None:
    schedule, power = SCHEDULES[name], torch.full((8, 12), 3.0, dtype=torch.float64)
    plan = build_plan(
        schedule, steps=4, sides=SIDES, thresholds=split_thresholds(schedule, (1, 2, 1)), time_map="lower"
    )

    def bits(step: int) -> float:
        return 0.5 * math.log2(1 + 3 * math.exp(float(schedule.logsnr(plan.steps[step].teacher_time))))

    # A quarter of each side holds a sixteenth of the modes; half of each side, a quarter.
    assert missing_bits(plan, schedule, power) == pytest.approx((1 / 4 - 1 / 16) * bits(1) + (1 - 1 / 4) * bits(3))


def test_a_single_resolution_lacks_nothing_and_lower_ones_lack_detail() -> None:
    schedule = SCHEDULES["vp"]
    one = build_plan(schedule, steps=4, sides=SIDES[-1:], thresholds=[])
    two = build_plan(schedule, steps=4, sides=SIDES[1:], thresholds=split_thresholds(schedule, (2, 2)))
    smooth = torch.zeros(8, 12, dtype=torch.float64)
    smooth[:4, :6] = 9.0
    assert missing_bits(one, schedule, torch.ones(8, 12)) == 0
    assert missing_bits(two, schedule, smooth) == 0
    smooth[4, 0] = 9.0
    assert missing_bits(two, schedule, smooth) > 0


def test_every_split_is_returned_once() -> None:
    result = splits(SCHEDULES["vp"], steps=4, sides=SIDES, costs=COSTS, power=torch.ones(8, 12))
    ways = {(split.steps, tuple(stage.height for stage in split.plan.stages)) for split in result}
    assert len(result) == len(ways) == 1 + 2 * 3 + 3  # one stage, two of them, three of them
    assert ((4,), (64,)) in ways and ((1, 2, 1), (16, 32, 64)) in ways and ((3, 1), (16, 64)) in ways
    costs = {split.steps: split.cost for split in result if len(split.steps) == 3}
    assert costs == {(1, 1, 2): 24.0, (1, 2, 1): 17.0, (2, 1, 1): 15.0}
    assert [split.cost for split in result] == sorted(split.cost for split in result)


def test_more_steps_at_a_low_resolution_miss_more() -> None:
    result = splits(SCHEDULES["zero-snr"], steps=5, sides=SIDES[1:], costs=COSTS, power=torch.ones(8, 12))
    missing = {split.steps: split.missing for split in result}
    assert missing[5,] == 0 < missing[1, 4] < missing[2, 3] < missing[3, 2] < missing[4, 1]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_no_split_beats_the_frontier(pairs: list[tuple[int, int]]) -> None:
    plan = build_plan(SCHEDULES["vp"], steps=4, sides=SIDES[-1:], thresholds=[])
    result = [Split(plan, (4,), float(cost), float(missing)) for cost, missing in pairs]
    best = frontier(result)
    for split in result:
        beaten = any(
            (other.cost, other.missing) != (split.cost, split.missing)
            and other.cost <= split.cost
            and other.missing <= split.missing
            for other in result
        )
        assert (split in best) == (not beaten)
    assert len({(split.cost, split.missing) for split in best}) == len(best)


def test_too_many_splits_are_refused_before_any_is_built() -> None:
    check_count(16, 3)
    with pytest.raises(
        RMDError, match=r"^1000 steps can be split over 8 sides in \d+ ways, and at most 2000 can be compared"
    ):
        check_count(1000, 8)
