"""`rmd eval model --suite`: a student's pictures of a benchmark's prompts, scored by small random networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clip_reference import write_openai
from families import make_student

from rmd.cli.app import main
from rmd.scores.result import read_result
from rmd.scores.suites import FOLDER, REPOSITORY, STYLES

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("student"), "pixart", "full")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_openai(tmp_path_factory.mktemp("weights"))
    folder = root / REPOSITORY / FOLDER
    folder.mkdir(parents=True)
    for style in STYLES:
        (folder / f"{style}.json").write_text(json.dumps(["a cat", f"a dog in the style of {style}"]), encoding="utf-8")
    return root


def test_a_students_pictures_of_hpdv2_are_made_and_scored(
    student: Path, weights: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["eval", str(student), "--suite", "hpdv2", "--metrics", "clip", "--weights", str(weights), "--name", "mine"]
    assert main([*words, "--out", str(tmp_path / "out"), "--batch-size", "4"]) == 0
    result, table = read_result(tmp_path / "out")
    assert result.making.model == "mine" and result.making.nfe == "2+2"
    assert len(table.file) == 8 and dict(result.protocol.prompts.groups) == dict.fromkeys(STYLES, 2)
    assert list(result.groups["clip"].groups) == list(STYLES)
    assert len(set(table.file)) == 5  # the picture of a cat stands for its prompt in every style
    assert "average of 4" in capsys.readouterr().out
    pictures = sorted((tmp_path / "out" / "pictures").glob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in pictures}
    assert len(pictures) == 5
    pictures[3].unlink()
    assert main([*words, "--out", str(tmp_path / "out"), "--batch-size", "4"]) == 0  # makes what is missing alone
    again = read_result(tmp_path / "out")[0]
    assert again.scores == result.scores
    kept = {path: path.stat().st_mtime_ns for path in pictures}
    assert [path for path in pictures if kept[path] != before[path]] == [pictures[3]]


def test_prompts_of_a_file_have_no_groups(student: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    words = ["eval", "model", str(student), "--suite", str(tmp_path / "prompts.txt"), "--metrics", "clip"]
    assert main([*words, "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    result, _ = read_result(tmp_path / "out")
    assert result.protocol.prompts.count == 2 and not result.groups


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "hpdv2", "--samples", "9"], "--samples has no effect on the pictures of a --suite: leave it out"),
        (["--suite", "hpdv2", "--teacher", "scenes"], "--teacher has no effect on the pictures of a --suite"),
        (["--metrics", "clip"], "--metrics needs a --suite: add one, or leave it out"),
        (["--weights", "w"], "--weights needs a --suite: add one, or leave it out"),
        (["--suite", "hpdv2", "--metrics", "clpi"], "unknown metric 'clpi' (did you mean 'clip'?)"),
        (["--suite", "hpdv2", "--weights", "nowhere"], "nowhere/zhwang/HPDv2/benchmark"),
        (["--suite", "none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_asked_for(
    words: list[str], sentence: str, student: Path, capsys: Captured, tmp_path: Path
) -> None:
    assert main(["eval", "model", str(student), *words, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
