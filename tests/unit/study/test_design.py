"""The tasks of raters: every prompt once, all pairs and sides equally often, and repeats with exchanged sides."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.study.design import REPEAT_DISTANCE, Design, check_design, every_pair, files_of, tasks_of


def design_of(prompts: int, systems: int, *, tasks: int, repeats: int = 0, checks: int = 0, seed: int = 3) -> Design:
    return check_design(Design(
        title="Study", media="pictures", prompts=tuple(f"prompt {i}" for i in range(prompts)),
        files=tuple(tuple(f"{i}-{system}.png" for system in range(systems)) for i in range(prompts)),
        checks=tuple((f"{i}-whole.png", f"{i}-spoilt.png") for i in range(min(4, prompts))), pairs=every_pair(systems),
        tasks=tasks, repeats=repeats, checks_each=checks, min_seconds=0.0, seed=seed,
    ))  # fmt: skip


@given(st.integers(2, 12), st.integers(2, 4), st.integers(1, 12), st.integers(0, 30))
def test_a_rater_sees_every_prompt_at_most_once_in_a_question(
    prompts: int, systems: int, tasks: int, rater: int
) -> None:
    design = design_of(prompts, systems, tasks=min(tasks, prompts))
    both = tasks_of(design, rater)
    for question in range(2):
        seen = [task.prompt for task in both if task.question == question]
        assert len(seen) == len(set(seen)) == design.tasks
    first, second = ({(t.prompt, t.left, t.right) for t in both if t.question == q} for q in range(2))
    assert first == second and [task.question for task in both] == [0] * design.tasks + [1] * design.tasks
    assert tasks_of(design, rater) == both


@pytest.mark.parametrize(("prompts", "systems", "tasks"), [(6, 2, 3), (8, 3, 4), (5, 4, 5)])
def test_pairs_and_sides_are_shown_equally_often(prompts: int, systems: int, tasks: int) -> None:
    design = design_of(prompts, systems, tasks=tasks)
    raters = 2 * len(design.pairs) * prompts // tasks
    shown = Counter(
        (task.prompt, task.left, task.right)
        for rater in range(raters)
        for task in tasks_of(design, rater)
        if task.question == 0
    )
    assert set(shown.values()) == {1}
    assert len(shown) == prompts * systems * (systems - 1)


@pytest.mark.parametrize("rater", range(6))
def test_repeats_come_later_with_exchanged_sides_and_checks_are_of_their_own(rater: int) -> None:
    design = design_of(20, 3, tasks=12, repeats=3, checks=2)
    tasks = [task for task in tasks_of(design, rater) if task.question == 0]
    assert Counter(task.kind for task in tasks) == {"vote": 12, "repeat": 3, "check": 2}
    for place, task in enumerate(tasks):
        if task.kind == "repeat":
            before = tasks.index(task.turned("vote"))
            assert place - before > REPEAT_DISTANCE
    assert {files_of(design, task)[task.right == 0] for task in tasks if task.kind == "check"} <= {
        whole for whole, _ in design.checks
    }


def test_files_are_those_of_the_sides() -> None:
    design = design_of(3, 2, tasks=3)
    (task, *_) = tasks_of(design, 0)
    assert files_of(design, task) == (f"{task.prompt}-{task.left}.png", f"{task.prompt}-{task.right}.png")
    assert files_of(design, task.turned("vote")) == files_of(design, task)[::-1]


def test_another_seed_is_another_order() -> None:
    one, other = (tasks_of(design_of(12, 3, tasks=6, seed=seed), 0) for seed in (1, 2))
    assert one != other


def test_pairs_of_systems() -> None:
    assert every_pair(4) == tuple(combinations(range(4), 2))
    assert every_pair(3, against=1) == ((0, 1), (1, 2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tasks": 4}, "a rater sees every prompt at most once: use at most 3 tasks instead of 4"),
        ({"tasks": 2, "repeats": 3}, "2 tasks cannot have 3 repeats: use fewer"),
        ({"tasks": 2, "checks": 4}, "there are 3 attention checks, not 4: use fewer"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, int], sentence: str) -> None:
    with pytest.raises(RMDError, match=f"^{sentence}$"):
        design_of(3, 2, **change)
