"""Blind comparisons: the folders are those of `rmd study`, whose commands read and analyse them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import PROMPTS

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.sample.album import read_settings
from rmd.study.design import tasks_of
from rmd.study.folder import open_study
from rmd.ui.comparing import Comparisons, results_tables
from rmd.ui.fragments import pair_html, results_html
from rmd.ui.models import Models

SYSTEMS = ("full/student", "teacher teacher")


def make(models: Models, folder: Path, *systems: str, prompts: list[str] | None = None) -> tuple[Comparisons, str]:
    comparisons = Comparisons(folder)
    samplers = {name: models.system(name) for name in systems or SYSTEMS}
    first = models.student(next(iter(models.students)))
    samplers[str(models.teacher)] = models.beside(first, steps=2)
    name = comparisons.make(
        samplers, PROMPTS[:3] if prompts is None else prompts, seed=5, questions=["quality"], progress=lambda *_: None
    )
    return comparisons, name


@pytest.fixture(scope="module")
def made(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparisons, str]:
    return make(models, tmp_path_factory.mktemp("answers"), prompts=[*PROMPTS[:3], PROMPTS[0]])


def test_all_models_get_the_same_prompts_and_seeds(made: tuple[Comparisons, str]) -> None:
    comparisons, name = made
    key = open_study(comparisons.folder / name / "study").key()
    assert sorted(key.systems) == sorted(SYSTEMS)
    for number, files in enumerate(key.sources):
        settings = [read_settings(Path(file)) for file in files]
        assert [(each["prompt"], each["seed"]) for each in settings if each] == [(PROMPTS[number], 5 + number)] * 2


def test_votes_are_counted_and_analysed_by_the_study_commands(
    made: tuple[Comparisons, str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparisons, name = made
    desk = comparisons.desk(name)
    assert desk is comparisons.desk(name) and comparisons.results(name) is None and comparisons.is_small(name)
    assert "There are no votes yet." in results_html(None)
    systems = desk.study.key().systems
    code = desk.join()["code"]
    rater = desk.store.rater(code) or 0
    for number, task in enumerate(tasks_of(desk.study.design, rater)):
        status, shown = desk.next(code)
        assert status == 200 and shown["done"] == number
        html = pair_html(shown, "Which one looks better?", f"/answers/{name}", small=True)
        assert f"{number + 1} of 3" in html and html.count(f'src="/answers/{name}/') == 2
        assert not any(system in html for system in systems)  # it is blind
        choice = "left" if systems[task.left] == "full/student" else "right"
        assert desk.store.vote(rater, number, choice, min_seconds=0) == "stored"
    assert desk.next(code)[1]["finished"]
    analysis = comparisons.results(name, draws=50)
    assert analysis is not None
    (pair,) = analysis.pairs
    ours = pair.wins if pair.first == "full/student" else pair.losses
    assert (ours, pair.ties, analysis.votes) == (3, 0, 3)
    ((question, tallies, strengths),) = results_tables(analysis)
    assert question == "Which one looks better?" and len(tallies.rows) == 1
    assert strengths.rows[0].cells[0].text == "full/student"
    html = results_html(analysis)
    assert "3 votes of 1 person." in html and "full/student" in html
    study = comparisons.folder / name / "study"
    assert main(["study", "analyse", str(study), "--draws", "100"]) == 0
    assert "3 votes" in capsys.readouterr().out
    assert json.loads((study / "analysis.json").read_text(encoding="utf-8"))["votes"] == 3


def test_comparisons_are_found_again(made: tuple[Comparisons, str], tmp_path: Path) -> None:
    comparisons, name = made
    (comparisons.folder / "comparison-007").mkdir()  # its samples were never finished
    again = Comparisons(comparisons.folder)
    assert again.names == [name] and again.desk(name).study.hash == comparisons.desk(name).study.hash
    with pytest.raises(RMDError, match=r"unknown comparison '\.\./x': use comparison-001"):
        again.desk("../x")
    assert Comparisons(tmp_path / "none").names == []


def test_clips_are_compared(moving: Models, tmp_path: Path) -> None:
    comparisons, name = make(moving, tmp_path, "moving/student", "teacher teacher", prompts=PROMPTS[:1])
    design = comparisons.desk(name).study.design
    assert design.media == "clips" and all(file.endswith(".webp") for file in design.files[0])
    assert comparisons.is_small(name)


@pytest.mark.parametrize(
    ("systems", "prompts", "questions", "sentence"),
    [
        (SYSTEMS[:1], PROMPTS, ["quality"], r"a comparison needs two models: choose another one"),
        (SYSTEMS, [], ["quality"], r"a comparison needs prompts: write one in each line"),
        (SYSTEMS, PROMPTS, [], r"a comparison needs a question: choose one"),
        (SYSTEMS, ["a\0"], ["quality"], r"cannot be used"),
    ],
)
def test_comparisons_that_are_refused_leave_nothing_behind(
    systems: tuple[str, ...], prompts: list[str], questions: list[str], sentence: str, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(RMDError, match=sentence):
        Comparisons(tmp_path / "answers").make(
            {name: models.system(name) for name in systems}, prompts, seed=0, questions=questions,
            progress=lambda *_: None,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
