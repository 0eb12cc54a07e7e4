"""`rmd study`: from two albums to an analysis, and errors in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import albums, picture

from rmd.cli.app import main
from rmd.study.design import tasks_of
from rmd.study.folder import open_study
from rmd.study.store import FILE_NAME, Store

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(*options: str) -> int:
    albums(Path(), "teacher", "student", prompts=5)
    systems = ("--system", "teacher=teacher", "--system", "student=student")
    return main(["study", "build", *systems, "--out", "study", "--tasks", "4", "--min-seconds", "0", *options])


def vote_for(system: str) -> None:
    """Let three raters vote for one system, and pass their checks."""
    study = open_study(Path("study"))
    names = study.key().systems
    store = Store(Path("study") / FILE_NAME, study.hash)
    for _ in range(3):
        rater, _code = store.join()
        for number, task in enumerate(tasks_of(study.design, rater)):
            store.show(rater, number)
            ours = task.left == (0 if task.kind == "check" else names.index(system))
            assert store.vote(rater, number, "left" if ours else "right", min_seconds=0) == "stored"
    store.close()


def test_from_samples_to_an_analysis(capsys: Captured) -> None:
    assert build() == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "study: study   5 prompts, 1 pairs of models, 2 questions, 4 pairs for each rater in each"
    )  # fmt: skip
    assert out[1].startswith("raters: 196 would show a preference of 55 % with a probability of 80 %")
    assert out[2] == f"start it with: rmd study serve study   (keep {Path('study/key.json')} from raters)"
    vote_for("student")
    assert main(["study", "analyse", "study", "--draws", "100"]) == 0
    text = capsys.readouterr().out
    assert Path("study/analysis.md").read_text(encoding="utf-8") == text
    assert "3 raters, of whom 3 finished and 0 are left out; 24 votes" in text
    for pair in json.loads(Path("study/analysis.json").read_text(encoding="utf-8"))["pairs"]:
        assert (pair["wins"], pair["losses"]) == ((12, 0) if pair["first"] == "student" else (0, 12))
    assert main(["study", "export", "study"]) == 0
    assert len(Path("study/votes.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3 * 16
    assert main(["study", "export", "study", "--to", "label-studio", "--out", "pairs.json"]) == 0
    assert len(json.loads(Path("pairs.json").read_text(encoding="utf-8"))) == 10
    assert capsys.readouterr().out.splitlines() == [f"written: {Path('study/votes.csv')}", "written: pairs.json"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["build", "--system", "teacher"], "--system teacher: write it as NAME=DIR, such as teacher=out/teacher"),
        (["build", "--system", "one=one"], "a study compares two or more systems with names of their own: "),
        (["serve", "one"], "one has no study.json: build a study with `rmd study build`"),
        (["analyse", "one"], "one has no study.json: build a study with `rmd study build`"),
        (["export", "one", "--to", "xml"], "unknown format 'xml': use one of csv, label-studio"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    picture(work / "one" / "0.png", (0, 0, 0), prompt="a")
    assert main(["study", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == ["one", str(Path("one/0.png"))]


def test_a_study_without_votes_and_a_taken_port(capsys: Captured) -> None:
    import socket

    assert build() == 0
    capsys.readouterr()
    assert main(["study", "analyse", "study"]) == 1
    assert capsys.readouterr().err == (
        "rmd: study has no votes yet: collect some with `rmd study serve study`\n"
    )  # fmt: skip
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["study", "serve", "study", "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"rmd: cannot listen at 127.0.0.1, port {port}: ")
    assert main(["study", "build", "--system", "a=teacher", "--system", "b=student", "--out", "study"]) == 1
    assert capsys.readouterr().err == "rmd: study exists and is not an empty folder: choose another --out\n"
