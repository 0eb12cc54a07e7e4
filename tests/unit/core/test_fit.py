"""The losses of a plan: spectra, missing bits and the steps' error in closed form, and the thresholds of splits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.fit import (
    END_SNR,
    STEP_WEIGHT,
    crossing_bits,
    missing_bits,
    natural_latents,
    natural_spectrum,
    plan_loss,
    power_spectrum,
    split_thresholds,
    step_error,
)
from rmd.core.noise import NoiseSchedule, schedule_from_config
from rmd.core.plan import build_plan

SCHEDULES = {
    "vp": schedule_from_config({"_class_name": "DDPMScheduler", "beta_schedule": "linear"}),
    "zero-snr": schedule_from_config(
        {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    ),
    "flow": schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
}
SIDES = [(16, 24), (32, 48), (64, 96)]
NATURAL = natural_spectrum((8, 12))


def time_of(schedule: NoiseSchedule, snr: float) -> float:
    return float(schedule.time(math.log(snr)))


def falling_times(draw: st.DrawFn, count: int) -> list[float]:
    later = draw(st.lists(st.integers(1, 989), min_size=count - 1, max_size=count - 1, unique=True))
    return [1000.0, *(float(t) for t in sorted(later, reverse=True))]


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
    expected = [(1 / 4 - 1 / 16) * bits(1), (1 - 1 / 4) * bits(3)]
    assert crossing_bits(plan, schedule, power) == pytest.approx(expected)
    assert missing_bits(plan, schedule, power) == pytest.approx(sum(expected))


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


def test_the_natural_spectrum_falls_with_the_square_of_the_frequency() -> None:
    # With sides of 2, the squared frequencies are 0, 1/4, 1/4 and 1/2; the constant mode counts as the lowest one.
    expected = torch.tensor([[4.0, 4.0], [4.0, 2.0]], dtype=torch.float64) / 3.5
    torch.testing.assert_close(natural_spectrum((2, 2)), expected)
    power = natural_spectrum((16, 32))
    assert power.shape == (16, 32) and power.dtype == torch.float64
    assert float(power.mean()) == pytest.approx(1.0)
    assert float(power[0, 4] / power[0, 8]) == pytest.approx(4.0)
    # Frequencies are relative to the sides: mode 4 of 16 rows is as fine as mode 8 of 32 columns.
    assert float(power[4, 0]) == pytest.approx(float(power[0, 8]))
    assert float(power[0, 0]) == float(power.max()) == float(power[0, 1])
    plan = build_plan(SCHEDULES["vp"], steps=2, sides=SIDES[-1:], thresholds=[])
    assert torch.equal(natural_latents(plan), NATURAL)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_error_of_a_single_mode_is_that_of_its_bits(name: str) -> None:
    """A mode of power 1 has log2(1 + SNR) / 2 bits: 1 bit at an SNR of 3, and log2(17) / 2 when it is finished."""
    schedule, power = SCHEDULES[name], torch.zeros(8, 12, dtype=torch.float64)
    power[3, 4] = 1.0
    whole = 0.5 * math.log2(1 + END_SNR)
    one = build_plan(schedule, steps=1, sides=SIDES[-1:], thresholds=[])
    assert step_error(one, schedule, power) == pytest.approx(whole**2)
    two = build_plan(schedule, times=[1000, time_of(schedule, 3.0)], sides=SIDES[-1:], thresholds=[])
    assert step_error(two, schedule, power) == pytest.approx(1.0 + (whole - 1.0) ** 2)
    assert plan_loss(two, schedule, power) == pytest.approx(STEP_WEIGHT * (1.0 + (whole - 1.0) ** 2))


def test_equal_bits_for_every_step_are_the_best() -> None:
    schedule, power = SCHEDULES["flow"], torch.ones(8, 12, dtype=torch.float64)
    whole = 0.5 * math.log2(1 + END_SNR)
    equal = [1000.0, *(time_of(schedule, 2 ** (2 * whole * i / 3) - 1) for i in (1, 2))]
    best = step_error(build_plan(schedule, times=equal, sides=SIDES[-1:], thresholds=[]), schedule, power)
    assert best == pytest.approx(whole**2 / 3)
    for one, two in ((20, 0), (0, 20), (-20, -20), (-5, 10)):
        times = [equal[0], equal[1] + one, equal[2] + two]
        plan = build_plan(schedule, times=times, sides=SIDES[-1:], thresholds=[])
        assert step_error(plan, schedule, power) > best


def test_modes_that_the_stage_before_lacked_are_created_anew() -> None:
    """The first step after the crossing makes all their bits at once, the other modes only those that are new."""
    schedule = SCHEDULES["flow"]
    times = [1000.0, time_of(schedule, 3.0), time_of(schedule, 15.0)]
    whole = 0.5 * math.log2(1 + END_SNR)
    plan = build_plan(schedule, times=times, sides=SIDES[1:], split=(1, 2))
    low, high = torch.zeros(8, 12, dtype=torch.float64), torch.zeros(8, 12, dtype=torch.float64)
    low[1, 1] = high[6, 6] = 1.0  # the low resolution has 4 x 6 modes
    assert step_error(plan, schedule, low) == pytest.approx(1.0 + 1.0 + (whole - 2.0) ** 2)
    assert step_error(plan, schedule, high) == pytest.approx(2.0**2 + (whole - 2.0) ** 2)
    # Modes count by their power.
    both = step_error(plan, schedule, 3.0 * low + high)
    scaled = step_error(plan, schedule, 3.0 * low), step_error(plan, schedule, high)
    assert both == pytest.approx((3 * scaled[0] + scaled[1]) / 4)


def test_what_is_finer_than_the_end_needs_no_step() -> None:
    schedule, power = SCHEDULES["flow"], torch.ones(8, 12, dtype=torch.float64)
    end = time_of(schedule, END_SNR)
    three = build_plan(schedule, times=[1000, 500, end], sides=SIDES[-1:], thresholds=[])
    finer = build_plan(schedule, times=[1000, 500, end, end / 2], sides=SIDES[-1:], thresholds=[])
    assert step_error(three, schedule, power) == pytest.approx(step_error(finer, schedule, power))


@given(st.data(), st.sampled_from(sorted(SCHEDULES)), st.integers(2, 6))
def test_another_step_is_never_worse(data: st.DataObject, name: str, count: int) -> None:
    schedule = SCHEDULES[name]
    times = data.draw(st.composite(falling_times)(count))
    fewer = data.draw(st.integers(1, count - 1))
    losses = [
        plan_loss(build_plan(schedule, times=each, sides=SIDES[-1:], thresholds=[]), schedule, NATURAL)
        for each in (times, times[:fewer] + times[fewer + 1 :])
    ]
    assert losses[0] <= losses[1] + 1e-12


@given(st.data(), st.sampled_from(sorted(SCHEDULES)), st.integers(2, 6))
def test_a_low_resolution_is_never_better_at_the_same_times(data: st.DataObject, name: str, count: int) -> None:
    schedule = SCHEDULES[name]
    times = data.draw(st.composite(falling_times)(count))
    low = data.draw(st.integers(1, count - 1))
    full = build_plan(schedule, times=times, sides=SIDES[-1:], thresholds=[])
    cascade = build_plan(schedule, times=times, sides=SIDES[1:], split=(low, count - low))
    assert missing_bits(cascade, schedule, NATURAL) > 0
    assert plan_loss(full, schedule, NATURAL) < plan_loss(cascade, schedule, NATURAL)
    assert step_error(full, schedule, NATURAL) <= step_error(cascade, schedule, NATURAL) + 1e-12


def test_an_earlier_crossing_lacks_less_and_leaves_more_to_the_last_steps() -> None:
    """Towards noise the missing bits fall, but nothing is free: the steps' error grows from some time on."""
    schedule = SCHEDULES["vp"]
    plans = [
        build_plan(schedule, times=[1000, (1000 + t) / 2, t, t / 2], sides=SIDES[1:], split=(2, 2))
        for t in range(300, 960, 50)
    ]
    missing = [missing_bits(plan, schedule, NATURAL) for plan in plans]
    assert missing == sorted(missing, reverse=True)
    errors, losses = ([of(plan, schedule, NATURAL) for plan in plans] for of in (step_error, plan_loss))
    assert errors[-1] > errors[-2] > min(errors)
    assert losses.index(min(losses)) not in (0, len(plans) - 1)
