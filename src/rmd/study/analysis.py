"""Analysis of a study: what raters preferred, how sure that is, who is left out, and how far raters agreed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rmd.common.errors import RMDError
from rmd.common.markdown import markdown_lines, markdown_text
from rmd.common.typed import Strict
from rmd.evaluation.statistics import holm
from rmd.report.tables import bounds, fixed, p_text, percent
from rmd.study.design import Task, tasks_of
from rmd.study.folder import Key, Study
from rmd.study.statistics import (
    LOSS,
    TIE,
    WIN,
    Floats,
    Ints,
    Votes,
    agreement,
    bootstrap,
    connected,
    davidson,
    score,
    share_needed,
    sign_test,
)
from rmd.study.store import StoredVote
from rmd.worlds.base import Measured, share_of

DRAWS = 1000
"""Number of draws of the bootstrap."""
_OUTCOME = {"left": WIN, "tie": TIE, "right": LOSS}


class PairResult(Strict):
    """The preference of raters between two systems in one question."""

    question: str
    first: str
    second: str
    wins: int
    """Votes for the first system."""
    ties: int
    losses: int
    preferred: Measured
    """Share of wins of the first system with ties as half wins; its interval is of the two-way bootstrap."""
    decisive: Measured | None
    """Share of wins among the decisive votes, with Wilson's interval, which presumes independent votes."""
    p: float
    """Exact two-sided p of as many wins as losses, for independent votes."""
    p_holm: float
    """The same, corrected over all pairs and questions."""
    detectable: float | None
    """The smallest share of wins that so many independent decisive votes would show with a power of 80 %."""


class Ranking(Strict):
    """The systems' strengths in one question, by the Davidson model."""

    question: str
    strengths: dict[str, Measured]
    """Natural logarithms, with a mean of zero over the systems."""
    tie: float | None
    """Natural logarithm of the parameter of ties; None if there are none."""
    connected: bool
    """It says whether the comparisons link all systems; otherwise strengths cannot be compared across groups."""


class Analysis(Strict):
    """The analysis of a study."""

    title: str
    raters: int
    """Raters who have voted at all."""
    excluded: tuple[int, ...]
    """Numbers of the raters who are left out, since they missed too many attention checks."""
    finished: int
    """Raters who have done all of their tasks."""
    votes: int
    """Votes that count: without repeats, checks and excluded raters."""
    seconds: float | None
    """Median time of a vote."""
    checks: Measured | None
    """Share of the attention checks that were passed, by all raters."""
    left: Measured | None
    """Share of the left side among decisive votes."""
    consistent: Measured | None
    """Share of repeated pairs that got the same vote again."""
    agreement: dict[str, float | None]
    """Krippendorff's alpha by question."""
    pairs: tuple[PairResult, ...]
    rankings: tuple[Ranking, ...]


@dataclass(frozen=True)
class _Cast:
    """A vote with the task that it is for."""

    rater: int
    task: Task
    vote: StoredVote


def analyse(study: Study, key: Key, votes: Sequence[StoredVote], *, draws: int = DRAWS, seed: int = 0) -> Analysis:
    """Analyse the votes of a study.

    Args:
        study: the study.
        key: the names of its systems, and the rule of exclusion.
        votes: all votes, in the order of raters and tasks.
        draws, seed: number of draws of the bootstrap, and their seed.

    Raises:
        RMDError: there is no vote that counts.
    """
    tasks = {rater: tasks_of(study.design, rater) for rater in {vote.rater for vote in votes}}
    cast = [_Cast(vote.rater, tasks[vote.rater][vote.task], vote) for vote in votes]
    excluded = _inattentive(cast, key.most_missed)
    kept = [each for each in cast if each.rater not in excluded]
    counted = [each for each in kept if each.task.kind == "vote"]
    if not counted:
        raise RMDError(f"{study.folder} has no votes that count: {len(tasks)} raters, {len(excluded)} of them excluded")
    by_question = {
        number: _votes([each for each in counted if each.task.question == number])
        for number in range(len(study.design.questions))
    }
    names = [question.name for question in study.design.questions]
    asked = {names[number]: found for number, found in by_question.items() if len(found)}
    pairs = [
        _pair(question, found.between(a, b), key.systems[a], key.systems[b], draws, seed)
        for question, found in asked.items()
        for a, b in study.design.pairs
        if len(found.between(a, b))
    ]
    adjusted = holm([pair.p for pair in pairs])
    decisive = [each.vote.choice for each in counted if each.vote.choice != "tie"]
    checks = [_passed(each) for each in cast if each.task.kind == "check"]
    return Analysis(
        title=study.design.title,
        raters=len(tasks),
        excluded=tuple(sorted(excluded)),
        finished=sum(len(its) == sum(vote.rater == rater for vote in votes) for rater, its in tasks.items()),
        votes=len(counted),
        seconds=float(np.median([each.vote.seconds for each in counted])),
        checks=_share(checks),
        left=_share([choice == "left" for choice in decisive]),
        consistent=_share(_repeated(kept)),
        agreement={question: agreement(_units(found)) for question, found in asked.items()},
        pairs=tuple(pair.model_copy(update={"p_holm": p}) for pair, p in zip(pairs, adjusted, strict=True)),
        rankings=tuple(_ranking(question, found, key.systems, draws, seed) for question, found in asked.items()),
    )


def as_markdown(analysis: Analysis) -> str:
    """Return the analysis as a page of Markdown."""
    lines = [f"# {markdown_text(analysis.title)}", "", _people(analysis), ""]
    for question in dict.fromkeys(pair.question for pair in analysis.pairs):
        heads = ("pair", "wins", "ties", "losses", "preferred", "decisive votes only", "p", "p (Holm)", "detectable")
        rows = [
            (
                markdown_text(f"{pair.first} over {pair.second}"), str(pair.wins), str(pair.ties), str(pair.losses),
                _text(pair.preferred), "-" if pair.decisive is None else _text(pair.decisive), p_text(pair.p),
                p_text(pair.p_holm), "-" if pair.detectable is None else percent(pair.detectable),
            )
            for pair in analysis.pairs if pair.question == question
        ]  # fmt: skip
        lines += [f"## {markdown_text(question)}", "", markdown_lines(heads, rows, left=1), ""]
        ranking = next(each for each in analysis.rankings if each.question == question)
        if len(ranking.strengths) > 2:
            order = sorted(ranking.strengths.items(), key=lambda item: -item[1].value)
            strengths = [
                (markdown_text(name), _text(strength, lambda value: fixed(value, 2))) for name, strength in order
            ]
            lines += [markdown_lines(("system", "strength"), strengths, left=1), ""]
            if not ranking.connected:
                lines += ["The comparisons do not link all systems: compare strengths within linked ones only.", ""]
    lines += [
        "Preferred: share of wins, with ties as half wins; 95 % intervals by a bootstrap over raters and prompts. "
        "Decisive votes only: Wilson's interval, and p of an exact sign test, as if all votes were independent. "
        "Detectable: the smallest share of wins that so many independent decisive votes show with a power of 80 %. "
        "Strength: natural logarithm, by the Davidson model, with a mean of 0.",
    ]
    return "\n".join(lines) + "\n"


def _people(analysis: Analysis) -> str:
    agreed = ", ".join(
        f"{name} {fixed(value, 2)}" for name, value in analysis.agreement.items() if value is not None
    )  # fmt: skip
    parts = [
        f"{analysis.raters} raters, of whom {analysis.finished} finished and {len(analysis.excluded)} are left out",
        f"{analysis.votes} votes",
        None if analysis.seconds is None else f"{fixed(analysis.seconds, 1)} s for a vote (median)",
        None if analysis.checks is None else f"attention checks passed: {_text(analysis.checks)}",
        None if analysis.consistent is None else f"repeated pairs judged alike: {_text(analysis.consistent)}",
        None if analysis.left is None else f"left side among decisive votes: {_text(analysis.left)}",
        f"Krippendorff's alpha: {agreed}" if agreed else None,
    ]
    return "; ".join(part for part in parts if part) + "."


def _inattentive(cast: Sequence[_Cast], most_missed: float) -> set[int]:
    """Return the raters who missed more than a share of their attention checks."""
    passed = defaultdict[int, list[bool]](list)
    for each in cast:
        if each.task.kind == "check":
            passed[each.rater].append(_passed(each))
    return {rater for rater, its in passed.items() if 1 - sum(its) / len(its) > most_missed}


def _passed(each: _Cast) -> bool:
    """Return whether the whole picture of an attention check was preferred; it is system 0."""
    return each.vote.choice == ("left" if each.task.left == 0 else "right")


def _votes(cast: Sequence[_Cast]) -> Votes:
    def ids(values: Iterable[int]) -> Ints:
        return np.asarray(list(values), dtype=np.int64)

    return Votes(
        rater=ids(each.rater for each in cast),
        prompt=ids(each.task.prompt for each in cast),
        first=ids(each.task.left for each in cast),
        second=ids(each.task.right for each in cast),
        outcome=np.asarray([_OUTCOME[each.vote.choice] for each in cast], dtype=np.float64),
    )


def _pair(question: str, votes: Votes, first: str, second: str, draws: int, seed: int) -> PairResult:
    wins, ties, losses = (int((votes.outcome == outcome).sum()) for outcome in (WIN, TIE, LOSS))
    ((low, high),) = bootstrap(votes, lambda weights: [score(votes, weights)], draws=draws, seed=seed)
    decisive = wins + losses
    p = sign_test(votes)
    return PairResult(
        question=question, first=first, second=second, wins=wins, ties=ties, losses=losses,
        preferred=_with_interval(score(votes), low, high), decisive=_share([True] * wins + [False] * losses),
        p=p, p_holm=p, detectable=share_needed(decisive) if decisive else None,
    )  # fmt: skip


def _ranking(question: str, votes: Votes, systems: Sequence[str], draws: int, seed: int) -> Ranking:
    fitted = davidson(votes, len(systems))

    def strengths(weights: Floats) -> Sequence[float]:
        return [float(value) for value in davidson(votes, len(systems), weights).strengths]

    ends = bootstrap(votes, strengths, draws=max(draws // 5, 1), seed=seed)
    return Ranking(
        question=question,
        strengths={
            name: _with_interval(float(value), low, high)
            for name, value, (low, high) in zip(systems, fitted.strengths, ends, strict=True)
        },
        tie=fitted.tie if math.isfinite(fitted.tie) else None,
        connected=connected(votes, len(systems)),
    )


def _units(votes: Votes) -> list[list[float]]:
    """Return the outcomes of every pair of files, all for the system with the lower number."""
    units = defaultdict[tuple[int, int, int], list[float]](list)
    for prompt, a, b, outcome in zip(votes.prompt, votes.first, votes.second, votes.outcome, strict=True):
        low, high, turned = (a, b, outcome) if a < b else (b, a, 1 - outcome)
        units[int(prompt), int(low), int(high)].append(float(turned))
    return list(units.values())


def _repeated(cast: Sequence[_Cast]) -> list[bool]:
    """Return of every repeated pair whether it got the same vote as before."""
    first = {
        (each.rater, each.task.question, each.task.prompt): each for each in cast if each.task.kind == "vote"
    }  # fmt: skip
    again = []
    for each in cast:
        before = first.get((each.rater, each.task.question, each.task.prompt))
        if each.task.kind == "repeat" and before is not None:
            again.append(_OUTCOME[each.vote.choice] == 1 - _OUTCOME[before.vote.choice])
    return again


def _share(hits: Sequence[bool]) -> Measured | None:
    return share_of(sum(hits), len(hits)) if hits else None


def _with_interval(value: float, low: float, high: float) -> Measured:
    known = math.isfinite(low) and math.isfinite(high)
    return Measured(value=value, low=low if known else None, high=high if known else None)


def _text(measured: Measured, write: Callable[[float], str] = percent) -> str:
    """Write a value with its interval, if it has one."""
    return write(measured.value) + ("" if measured.interval is None else f" {bounds(measured.interval, write)}")
