"""Damaged inputs of every kind, for every verb: each run must end in one sentence and leave no partial files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fuzz.campaign import GOOD, _judge, cases, run_cases, undamaged
from fuzz.world import in_child


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        return in_child(tmp_path_factory.mktemp("fuzz") / "world")


def check(wanted: Sequence[str], world: Path) -> None:
    """Run cases, and fail with the output of those that ended badly."""
    bad = [f"{r.outcome}: {r.case}: {r.said[-500:]}" for r in run_cases(wanted, world) if r.outcome not in GOOD]
    if bad:
        pytest.fail("\n".join([f"{len(bad)} of {len(wanted)} ended badly", *bad[:30]]), pytrace=False)


def test_a_case_is_the_same_wherever_it_is_drawn() -> None:
    drawn = cases(50, seed=4)
    assert drawn == cases(50, seed=4) == cases(60, seed=4)[:50]
    assert drawn != cases(50, seed=5)
    assert all(case.startswith("plan/") for case in cases(20, seed=4, only="plan/"))


@pytest.mark.parametrize(
    ("status", "err", "fatal", "outcome"),
    [
        (1, "rmd: there is no file x\n", True, "refused"),
        (1, "rmd: warning: low\nprompts: 1/2, 0 s, 0 s left\nrmd: there is no file x\n", True, "refused"),
        (0, "", False, "accepted"),
        (0, "", True, "silent success"),
        (2, "Usage: rmd\nError: no such option\n", True, "usage error"),
        (1, "", True, "no line"),
        (1, "rmd: one\nrmd: two\n", True, "several lines"),
        (1, "a library says so\nrmd: one\n", True, "several lines"),
        (1, "rmd: one\nand more\n", True, "several lines"),
        (1, "rmd: unexpected KeyError: 'x'; run again\n", True, "unexpected"),
        (1, "Traceback (most recent call last):\n", True, "traceback"),
        (0, "Exception ignored in: x\n", False, "traceback"),
        (None, "", True, "hang"),
    ],
)
def test_how_a_case_is_judged(status: int | None, err: str, fatal: bool, outcome: str) -> None:
    assert _judge(status, err, fatal=fatal) == outcome


def test_damaged_inputs(world: Path) -> None:
    check(cases(100, seed=0), world)


@pytest.mark.slow
def test_valid_inputs_are_accepted(world: Path) -> None:
    check(undamaged(), world)


@pytest.mark.slow
def test_many_damaged_inputs(world: Path) -> None:
    check(cases(3000, seed=1), world)
