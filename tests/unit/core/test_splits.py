"""All splits of the steps: each once at uniform and once at the best times, and the Pareto frontier."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.core.fit import missing_bits, natural_spectrum, plan_loss
from rmd.core.noise import FlowSchedule, NoiseSchedule, VPSchedule
from rmd.core.plan import build_plan
from rmd.core.splits import GRID, Split, TimeSearch, check_count, frontier, splits

SCHEDULES: dict[str, NoiseSchedule] = {
    "vp": VPSchedule.from_config({"beta_schedule": "linear"}),
    "zero-snr": VPSchedule.from_config({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}),
    "shifted": FlowSchedule(3.0),
}
SIDES = [(16, 24), (32, 48), (64, 96)]
COSTS = {(16, 24): 1.0, (32, 48): 3.0, (64, 96): 10.0}
POWER = natural_spectrum((8, 12))


def test_every_split_is_returned_at_uniform_and_at_the_best_times() -> None:
    result = splits(SCHEDULES["vp"], steps=4, sides=SIDES, costs=COSTS, power=POWER)
    uniform, best = ([split for split in result if split.uniform is kind] for kind in (True, False))
    ways = [(split.steps, tuple(stage.height for stage in split.plan.stages)) for split in uniform]
    assert len(result) == 2 * len(ways) == 2 * len(set(ways)) == 2 * (1 + 2 * 3 + 3)  # one, two and three stages
    assert ((4,), (64,)) in ways and ((1, 2, 1), (16, 32, 64)) in ways and ((3, 1), (16, 64)) in ways
    costs = {split.steps: split.cost for split in result if len(split.steps) == 3}
    assert costs == {(1, 1, 2): 24.0, (1, 2, 1): 17.0, (2, 1, 1): 15.0}
    assert [split.cost for split in result] == sorted(split.cost for split in result)
    for one, other in zip(uniform, best, strict=True):
        assert (one.steps, one.cost) == (other.steps, other.cost)
        assert tuple(step.teacher_time for step in one.plan.steps) == SCHEDULES["vp"].grid(4)
        assert other.loss <= one.loss
        for split in (one, other):
            assert split.missing == missing_bits(split.plan, SCHEDULES["vp"], POWER)
            assert split.loss == plan_loss(split.plan, SCHEDULES["vp"], POWER)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("chosen", "split"), [(SIDES[2:], (3,)), (SIDES[1:], (1, 2)), (SIDES, (1, 1, 1))])
def test_the_best_times_are_those_of_a_full_search(
    name: str, chosen: list[tuple[int, int]], split: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = GRID[::7]
    monkeypatch.setattr("rmd.core.splits.GRID", grid)
    schedule = SCHEDULES[name]

    def loss(times: tuple[float, ...]) -> float:
        return plan_loss(build_plan(schedule, times=times, sides=chosen, split=split), schedule, POWER)

    best = TimeSearch(schedule, SIDES, POWER).best(chosen, split)
    tried = {(1000.0, *later): loss((1000.0, *later)) for later in combinations(grid, 2)}
    assert best in tried and tried[best] == pytest.approx(min(tried.values()), rel=1e-9)


def test_uniform_times_stay_if_none_on_the_grid_are_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmd.core.splits.GRID", (30.0, 20.0, 10.0))
    uniform, best = splits(SCHEDULES["vp"], steps=4, sides=SIDES[2:], costs=COSTS, power=POWER)
    assert uniform.uniform and not best.uniform
    assert best.plan == uniform.plan and best.loss == uniform.loss


def test_more_steps_at_a_low_resolution_miss_more_at_uniform_times() -> None:
    result = splits(SCHEDULES["zero-snr"], steps=5, sides=SIDES[1:], costs=COSTS, power=torch.ones(8, 12))
    missing = {split.steps: split.missing for split in result if split.uniform}
    assert missing[5,] == 0 < missing[1, 4] < missing[2, 3] < missing[3, 2] < missing[4, 1]


def test_the_end_of_the_grid_is_that_of_uniform_times() -> None:
    (uniform, best) = splits(
        SCHEDULES["vp"], steps=4, sides=SIDES[2:], costs=COSTS, power=POWER, grid_end=0.2
    )  # fmt: skip
    assert [step.teacher_time for step in uniform.plan.steps] == pytest.approx([1000, 800, 600, 400])
    assert all(step.teacher_time % 10 == 0 for step in best.plan.steps)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_no_split_beats_the_frontier(pairs: list[tuple[int, int]]) -> None:
    plan = build_plan(SCHEDULES["vp"], steps=4, sides=SIDES[-1:], thresholds=[])
    result = [Split(plan, (4,), True, float(cost), 0.0, float(loss)) for cost, loss in pairs]
    best = frontier(result)
    for split in result:
        beaten = any(
            (other.cost, other.loss) != (split.cost, split.loss)
            and other.cost <= split.cost
            and other.loss <= split.loss
            for other in result
        )
        assert (split in best) == (not beaten)
    assert len({(split.cost, split.loss) for split in best}) == len(best)


def test_too_many_splits_or_steps_are_refused_before_any_is_built() -> None:
    check_count(16, 3)
    check_count(100, 1)
    with pytest.raises(
        RMDError, match=r"^100 steps can be split over 8 sides in \d+ ways, and at most 2000 can be compared"
    ):
        check_count(100, 8)
    with pytest.raises(RMDError, match="the best times are looked for with at most 100 steps, got 101: use fewer"):
        check_count(101, 1)
