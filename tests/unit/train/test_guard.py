"""The collapse guard: silent about normal variation, loud about lasting faults, and unchanged by a resume."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmd.train.guard import FIRST, JUDGED, PATIENCE, Best, CollapseGuard, GuardState


def values(step: int = 1, spread: float = 1.0, gap: float = 0.5) -> dict[str, float]:
    return {"step": float(step), "sample_std": spread, "gap": gap}


def watched(*rows: dict[str, float]) -> list[str | None]:
    guard = CollapseGuard()
    return [guard.observe(iteration, row) for iteration, row in enumerate(rows, start=1)]


@given(factors=st.lists(st.tuples(st.floats(0.6, 1.6), st.floats(0.0, 2.0)), min_size=1, max_size=60))
def test_what_varies_as_usual_is_no_collapse(factors: list[tuple[float, float]]) -> None:
    usual = [values(gap=0.5)] * FIRST
    assert not any(watched(*usual, *(values(spread=a, gap=0.5 * b) for a, b in factors)))


def test_samples_that_lose_their_spread_are_told_after_a_while() -> None:
    said = watched(*[values()] * FIRST, *[values(spread=0.2)] * PATIENCE)
    assert not any(said[:-1])
    assert said[-1] == "the samples of step 1 have 0.2 times the standard deviation they had at the start"


def test_samples_that_blow_up_and_scores_that_drift_apart_are_told() -> None:
    assert watched(*[values()] * FIRST, *[values(spread=5.0)] * PATIENCE)[-1] is not None
    said = watched(*[values(3)] * FIRST, *[values(3, gap=3.0)] * PATIENCE)[-1]
    assert said == "teacher and fake score are 6 times as far apart at step 3 as at the start"


def test_one_good_observation_calms_it() -> None:
    bad = [values(spread=0.1)] * (PATIENCE - 1)
    assert not any(watched(*[values()] * FIRST, *bad, values(), *bad))


def test_every_step_has_its_own_measure() -> None:
    rows = [values(1), values(2, spread=0.1)] * (FIRST + PATIENCE)
    assert not any(watched(*rows))


def test_it_knows_since_when_and_survives_a_resume() -> None:
    guard = CollapseGuard()
    for iteration in range(FIRST):
        guard.observe(iteration, values())
    assert guard.since is None
    for iteration in range(100, 100 + PATIENCE - 1):
        assert guard.observe(iteration, values(gap=50.0)) is None
    assert guard.since == 100
    resumed = CollapseGuard()
    resumed.state = GuardState.model_validate_json(guard.state.model_dump_json())
    assert resumed.since == 100
    assert resumed.observe(200, values(gap=50.0)) is not None


def test_the_judges_marks_may_not_halve() -> None:
    marks = [0.3, 0.5, 0.2, 0.4, 0.24, 0.2]
    said = watched(*[values() | {"judge/all_right": mark} for mark in marks])
    assert not any(said[:-1])
    assert said[-1] == "judge accuracy has fallen to 20% from 50%"
    assert not any(watched(*[values() | {"judge/all_right": mark} for mark in (0.1, 0.0, 0.0, 0.0)]))  # never was good


def test_a_judge_is_remembered_across_a_resume() -> None:
    guard, resumed = CollapseGuard(), CollapseGuard()
    for iteration, mark in ((10, 0.5), (20, 0.1)):
        guard.observe(iteration, values() | {"judge/all_right": mark})
    resumed.state = GuardState.model_validate_json(guard.state.model_dump_json())
    assert resumed.since == 20
    assert resumed.observe(30, values() | {"judge/all_right": 0.1}) is not None


def test_the_best_mark_is_a_number() -> None:
    assert Best.of(None, 1, JUDGED, float("nan")) is None
    best = Best.of(None, 2, JUDGED, 0.25)
    assert best == Best(iteration=2, value=0.25) == Best.of(best, 3, JUDGED, 0.25)
    assert Best.of(best, 5, JUDGED, 0.5) == Best(iteration=5, value=0.5)


def test_marks_of_another_metric_begin_anew() -> None:
    best = Best.of(None, 2, JUDGED, 0.9)
    assert Best.of(best, 3, "scores/clip", 0.3) == Best(iteration=3, value=0.3, metric="scores/clip")


def test_a_best_mark_of_version_0_1_is_read() -> None:
    assert Best.model_validate_json('{"iteration": 3, "right": 0.5}') == Best(iteration=3, value=0.5)


@given(values=st.lists(st.sampled_from([1.0, float("nan"), float("inf")]), max_size=3 * FIRST))
def test_numbers_that_are_not_finite_never_become_what_is_usual(values: list[float]) -> None:
    guard = CollapseGuard()
    for iteration, value in enumerate(values):
        guard.observe(iteration, {"step": 1.0, "sample_std": value, "gap": value})
    usual = guard.state.series["spread-1"].first if values else ()
    assert usual == (1.0,) * min(FIRST, len([value for value in values if value == 1.0]))
