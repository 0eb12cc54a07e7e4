"""The analysis of votes with known preferences, inattentive raters and repeats."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest
from studies import small_study, votes_by

from rmd.common.errors import RMDError
from rmd.study.analysis import analyse, as_markdown
from rmd.study.design import Task, tasks_of
from rmd.study.export import HEADS, label_studio, votes_csv
from rmd.study.folder import Study
from rmd.study.store import Choice

ORDER = ("good", "fair", "poor")


def check(task: Task) -> Choice:
    """Return the right answer of an attention check."""
    return "left" if task.left == 0 else "right"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("study"), *ORDER, prompts=12, tasks=8, checks=2)


def better(study: Study, task: Task) -> Choice:
    """Return the side of the better system."""
    names = study.key().systems
    return "left" if ORDER.index(names[task.left]) < ORDER.index(names[task.right]) else "right"


def test_a_clear_order_is_found(study: Study) -> None:
    draws = random.Random(1)

    def choose(_: int, task: Task) -> Choice:
        if task.kind == "check":
            return check(task)
        if task.kind == "repeat":
            return better(study, task)
        return better(study, task) if draws.random() < 0.8 else "tie"

    analysis = analyse(study, study.key(), votes_by(study, 12, choose), draws=200)
    assert (analysis.raters, analysis.finished, analysis.excluded) == (12, 12, ())
    assert analysis.votes == 12 * 8 * 2 and analysis.seconds == 2.0
    assert analysis.checks is not None and analysis.checks.value == 1
    for pair in analysis.pairs:
        ahead = ORDER.index(pair.first) < ORDER.index(pair.second)
        assert (pair.losses if ahead else pair.wins) == 0 < (pair.wins if ahead else pair.losses)
        assert pair.p_holm >= pair.p and pair.decisive is not None
        assert pair.preferred.low is not None and pair.preferred.low <= pair.preferred.value
    for ranking in analysis.rankings:
        assert sorted(ranking.strengths, key=lambda name: -ranking.strengths[name].value) == ["good", "fair", "poor"]
        assert ranking.connected and ranking.tie is not None
    text = as_markdown(analysis)
    assert text.startswith(
        "# Which one do you prefer?\n\n12 raters, of whom 12 finished and 0 are left out; 192 votes; "
    )
    assert text.index("| good | ") < text.index("| fair | ") < text.index("| poor | ")


def test_inattentive_raters_are_left_out_by_the_rule_of_the_key(study: Study) -> None:
    def choose(rater: int, task: Task) -> Choice:
        wrong = "left" if check(task) == "right" else "right"
        if task.kind == "check":
            return wrong if rater == 2 else check(task)
        return "left" if rater == 2 else better(study, task)

    votes = votes_by(study, 4, choose)
    analysis = analyse(study, study.key(), votes, draws=20)
    assert analysis.excluded == (2,) and analysis.votes == 3 * 8 * 2
    assert analysis.checks is not None and analysis.checks.value == pytest.approx(0.75)
    lenient = study.key().model_copy(update={"most_missed": 1.0})
    assert analyse(study, lenient, votes, draws=20).excluded == ()


def test_consistency_and_side_bias(study: Study) -> None:
    votes = votes_by(study, 6, lambda _, t: check(t) if t.kind == "check" else "left")
    left = analyse(study, study.key(), votes, draws=20)
    assert left.left is not None and left.left.value == 1
    assert left.consistent is not None and left.consistent.value == 0  # repeats have exchanged sides
    votes = votes_by(study, 6, lambda _, t: check(t) if t.kind == "check" else better(study, t))
    same = analyse(study, study.key(), votes, draws=20)
    assert same.consistent is not None and same.consistent.value == 1
    assert all(value in (None, 1.0) for value in same.agreement.values())


def test_unfinished_raters_count_and_no_votes_are_an_error(study: Study) -> None:
    votes = votes_by(study, 2, lambda _, t: check(t) if t.kind == "check" else "tie")
    some = [vote for vote in votes if vote.rater == 0 or vote.task < 5]
    analysis = analyse(study, study.key(), some, draws=20)
    assert (analysis.raters, analysis.finished) == (2, 1) and analysis.left is None
    assert {pair.p for pair in analysis.pairs} == {1.0}
    with pytest.raises(RMDError, match=r" has no votes that count: 0 raters, 0 of them excluded$"):
        analyse(study, study.key(), [])


def test_the_votes_as_a_table(study: Study) -> None:
    votes = votes_by(study, 2, lambda _, t: check(t) if t.kind == "check" else "left")
    rows = list(csv.reader(io.StringIO(votes_csv(study, study.key(), votes))))
    assert tuple(rows[0]) == HEADS and len(rows) == 1 + len(votes)
    names = study.key().systems
    for row, vote in zip(rows[1:], votes, strict=True):
        task = tasks_of(study.design, vote.rater)[vote.task]
        sides = ("whole", "spoilt") if task.kind == "check" else names
        assert row[2:7] == [
            task.kind, ("quality", "adherence")[task.question], str(task.prompt), sides[task.left], sides[task.right]
        ]  # fmt: skip


def test_the_pairs_for_label_studio_have_both_sides_and_no_names(study: Study) -> None:
    text = label_studio(study, url="/data/local-files/?d=study")
    tasks = json.loads(text)
    assert len(tasks) == 2 * 12 * 3 and not any(name in text for name in ("good", "fair", "poor"))
    turned = 0
    for task, prompt in zip(tasks, [p for _ in range(2) for p in range(12) for _ in range(3)], strict=True):
        left, right = (Path(task["data"][side]).name for side in ("left", "right"))
        files = study.design.files[prompt]
        assert task["data"]["prompt"] == study.design.prompts[prompt]
        turned += files.index(left) > files.index(right)
    assert 20 < turned < 52
