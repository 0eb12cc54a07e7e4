"""The verdict's rule: thresholds, crossings and costs."""

from __future__ import annotations

import pytest
import torch

from rmd.core.metrics import Interval
from rmd.core.noise import schedule_from_config
from rmd.core.plan import Stage, build_plan
from rmd.evaluation.trust import (
    FEW_BITS,
    bits_by_sigma,
    criteria,
    crossing_sigmas,
    early_enough,
    falling,
    sampling_cost,
    training_cost,
    undecided,
    unseen_attributes,
    verdict,
)
from rmd.recipes.methods import RMDConfig
from rmd.worlds.base import Measured

SCHEDULE = schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
GOOD = [Interval(1.0, 0.9, 1.1)] * 4


def rings(*values: float) -> list[Interval]:
    return [Interval(value, value, value) for value in values]


@pytest.mark.parametrize(
    ("power", "agreement", "loss", "matching"),
    [
        ((1.2, 1.3, 0.1, 0.1), (0.9, 0.8, 0.1, 0.0), None, "own"),  # finer rings do not count
        ((1.2, 1.7, 1.0, 1.0), (0.9, 0.8, 0.1, 0.0), None, "mixed"),
        ((1.0, 0.35, 1.0, 1.0), (0.9, 0.8, 0.1, 0.0), None, "teacher"),
        ((1.0, 1.0, 1.0, 1.0), (0.2, 0.1, 0.0, 0.0), None, "mixed"),  # another picture is not a wrong one
        ((1.0, 0.35, 1.0, 1.0), (0.2, 0.1, 0.0, 0.0), 0.05, "own"),  # finished samples show that nothing is lost
        ((1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 0.9, 0.9), 0.2, "mixed"),
        ((1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 0.9, 0.9), 0.5, "teacher"),
        ((1.0, 1.0, 1.0, 1.0), (0.9, 0.9, 0.9, 0.9), None, "own"),
    ],
)
def test_finished_samples_decide_and_without_them_the_most_cautious_spectrum(
    power: tuple[float, ...], agreement: tuple[float, ...], loss: float | None, matching: str
) -> None:
    rows = criteria(rings(*power), rings(*agreement), None if loss is None else Measured(value=loss))
    assert len(rows) == (2 if loss is None else 3)
    assert verdict(rows) == matching and sum(row.decides for row in rows) == (2 if loss is None else 1)


def test_attributes_that_pooling_loses_are_no_fault() -> None:
    assert (
        unseen_attributes(
            {"layout": 1.0, "colour": 0.95, "texture": 0.4}, {"layout": 0.5, "colour": 0.95, "texture": 0.0}
        )
        == 0.25
    )
    assert unseen_attributes({"texture": 0.4}, {"texture": 0.0}) is None
    for share, matching in ((0.2, "own"), (0.4, "mixed"), (0.7, "teacher")):
        rows = criteria(GOOD, GOOD, Measured(value=0.0), share)
        assert len(rows) == 4 and rows[1].speaks_for == matching and not rows[1].decides
        assert verdict(rows) == "own"


def test_a_wide_interval_of_the_loss_leaves_it_open() -> None:
    assert undecided(Measured(value=0.0, low=-0.2, high=0.2))
    assert not undecided(Measured(value=0.0, low=-0.2, high=0.08)) and not undecided(Measured(value=0.0))


def test_bits_fall_with_sigma_and_decide_the_crossing() -> None:
    power = torch.full((8, 8), 0.2, dtype=torch.float64)
    bits = bits_by_sigma(Stage(1, 32, 32), Stage(1, 64, 64), SCHEDULE, power)
    values = [bare for _, bare in bits]
    assert values == sorted(values, reverse=True)
    sigma = early_enough(bits)
    assert dict(bits)[sigma] <= FEW_BITS or sigma == 0.9
    assert early_enough([(0.5, 1.0), (0.9, 0.5)]) == 0.9 and early_enough([(0.5, 0.001), (0.9, 0.0)]) == 0.5


def test_bits_of_one_mode_in_closed_form() -> None:
    power = torch.zeros(2, 2, dtype=torch.float64)
    power[1, 1] = 3.0
    ((_, bare),) = bits_by_sigma(Stage(1, 8, 8), Stage(1, 16, 16), SCHEDULE, power, [0.5])  # SNR 1
    assert bare == pytest.approx(0.5 * 2 / 4)  # log2(1 + 3) / 2 in four values


def test_crossings_fall_from_stage_to_stage() -> None:
    assert falling([0.8, 0.8, 0.6]) == [0.8, 0.75, 0.6] and falling([]) == []


def test_costs_of_a_cascade_by_hand() -> None:
    plan = build_plan(SCHEDULE, sides=[(32, 32), (64, 64)], times=[1000.0, 900.0, 800.0, 400.0], split=[2, 2])
    assert crossing_sigmas(plan) == pytest.approx([0.8])
    assert sampling_cost(plan) == 2.5
    config = RMDConfig(guidance=3.0)
    # Steps of .25, .25, 1, 1 after roll-outs of 0, .25, .5, 1.5; four evaluations by the scores: 2 + 1 + 1.
    steps = (0.25 + 0.5 + 1.5 + 2.5) / 4
    assert training_cost(plan, config, "teacher") == pytest.approx(steps + 4)
    assert training_cost(plan, config, "own") == pytest.approx(steps + 4 * 2.5 / 4)
    assert training_cost(plan, config, "mixed") == pytest.approx(steps + (4 + 2.5) / 2)
    assert training_cost(plan, RMDConfig(guidance=1.0), "teacher") == pytest.approx(steps + 3)
