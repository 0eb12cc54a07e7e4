"""The design of a study: what is compared, and which tasks every rater gets, as a function of the rater's number.

A rater meets every prompt at most once in each question. Consecutive raters continue where the last one stopped, so
prompts, pairs of systems and sides are shown equally often: after every round over all prompts, pairs change, and after
every round over all pairs, sides do. Some pairs come back with exchanged sides, to measure consistency, and some pairs
have a side that is obviously spoilt, to measure attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Literal

import torch
from pydantic import Field

from rmd.common.errors import RMDError
from rmd.common.typed import Strict
from rmd.core.randomness import generator

Count = Annotated[int, Field(ge=0)]
Kind = Literal["vote", "repeat", "check"]
REPEAT_DISTANCE = 5
"""A pair comes back after at least this many other tasks, if a pass has so many."""


class Question(Strict):
    """A question that raters answer about every pair of theirs."""

    name: str
    """Short name, for the tables."""
    text: str
    """The question as raters read it."""


QUESTIONS = (
    Question(name="quality", text="Which one looks better?"),
    Question(name="adherence", text="Which one fits the text better?"),
)


class Design(Strict):
    """Everything that decides what raters see. Systems have numbers only; `key.json` knows their names."""

    version: int = 1
    title: str
    media: Literal["pictures", "clips"]
    questions: tuple[Question, ...] = QUESTIONS
    prompts: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    """For every prompt, the file of each system; names are random and tell nothing."""
    checks: tuple[tuple[str, str], ...]
    """For each attention check, a picture of a prompt and the same one spoilt; check i is of prompt i."""
    pairs: tuple[tuple[int, int], ...]
    """The pairs of systems that are compared."""
    tasks: Annotated[int, Field(ge=1)]
    """Number of pairs that a rater sees in each question, without repeats and checks."""
    repeats: Count
    """Number of pairs in each question that come back with exchanged sides."""
    checks_each: Count
    """Number of attention checks in each question."""
    min_seconds: Annotated[float, Field(ge=0)]
    """Time for which a pair must be looked at before a vote counts."""
    seed: Count


@dataclass(frozen=True)
class Task:
    """A pair that a rater judges.

    Attributes:
        question: number of the question.
        kind: an ordinary vote, a repeat of an earlier pair with exchanged sides, or an attention check.
        prompt: number of the prompt.
        left, right: numbers of the systems; of a check, 0 is the picture and 1 is the spoilt one.
    """

    question: int
    kind: Kind
    prompt: int
    left: int
    right: int

    def turned(self, kind: Kind) -> Task:
        """Return the same pair with exchanged sides."""
        return Task(self.question, kind, self.prompt, self.right, self.left)


def tasks_of(design: Design, rater: int) -> list[Task]:
    """Return all tasks of a rater, counted from 0: one pass per question.

    A rater has the same pairs in every question, in another order.
    """
    pairs = _pairs(design, rater)
    return [task for number in range(len(design.questions)) for task in _pass(design, rater, number, pairs)]


def files_of(design: Design, task: Task) -> tuple[str, str]:
    """Return the names of the files on the left and on the right."""
    files: Sequence[str] = design.checks[task.prompt] if task.kind == "check" else design.files[task.prompt]
    return files[task.left], files[task.right]


def every_pair(systems: int, *, against: int | None = None) -> tuple[tuple[int, int], ...]:
    """Return all pairs of systems, or those with one of them."""
    pairs = tuple(combinations(range(systems), 2))
    return pairs if against is None else tuple(pair for pair in pairs if against in pair)


def check_design(design: Design) -> Design:
    """Return a design whose numbers fit together.

    Raises:
        RMDError: a rater would have to see a prompt twice, or more repeats or checks are wanted than there are pairs.
    """
    if design.tasks > len(design.prompts):
        raise RMDError(
            f"a rater sees every prompt at most once: use at most {len(design.prompts)} tasks instead of {design.tasks}"
        )
    if design.repeats > design.tasks:
        raise RMDError(f"{design.tasks} tasks cannot have {design.repeats} repeats: use fewer")
    if design.checks_each > len(design.checks):
        raise RMDError(f"there are {len(design.checks)} attention checks, not {design.checks_each}: use fewer")
    return design


def _pass(design: Design, rater: int, question: int, pairs: Sequence[tuple[int, int, int]]) -> list[Task]:
    """Return a rater's tasks for one question in their order."""
    draws = generator(design.seed, "order", rater, question)
    asked = [Task(question, "vote", *pairs[i]) for i in torch.randperm(len(pairs), generator=draws).tolist()]
    early = max(len(asked) - REPEAT_DISTANCE, design.repeats)
    again = torch.randperm(early, generator=draws)[: design.repeats].tolist()
    checks = torch.randperm(len(design.checks), generator=draws)[: design.checks_each].tolist()
    places = (len(asked) * torch.rand(len(checks), generator=draws)).tolist()
    sides = torch.randint(2, (len(checks),), generator=draws).tolist()
    placed = [(float(i), task) for i, task in enumerate(asked)]
    placed += [(i + REPEAT_DISTANCE + 0.5, asked[i].turned("repeat")) for i in again]
    placed += [
        (place, Task(question, "check", prompt, side, 1 - side))
        for place, prompt, side in zip(places, checks, sides, strict=True)
    ]
    return [task for _, task in sorted(placed, key=lambda each: each[0])]


def _pairs(design: Design, rater: int) -> list[tuple[int, int, int]]:
    """Return prompt, left and right system of a rater's pairs.

    Consecutive raters go through one sequence of prompts. Every prompt starts with a pair and a side of its own, and
    has the next pair in every round, and the other sides after every round over all pairs.
    """
    prompts, pairs = len(design.prompts), len(design.pairs)
    order = torch.randperm(prompts, generator=generator(design.seed, "prompts")).tolist()
    starts = torch.randint(2 * pairs, (prompts,), generator=generator(design.seed, "starts")).tolist()
    found = []
    for place in range(rater * design.tasks, (rater + 1) * design.tasks):
        round_, position = divmod(place, prompts)
        prompt = order[position]
        turn, pair = divmod(starts[prompt] + round_, pairs)
        left, right = design.pairs[pair]
        found.append((prompt, right, left) if turn % 2 else (prompt, left, right))
    return found
