"""`rmd scenes render`: pictures and clips of captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rmd.cli.app import main

Captured = pytest.CaptureFixture[str]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_render(capsys: Captured) -> None:
    assert main(["scenes", "render", "--count", "3", "--seed", "2", "--size", "16", "--out", "it"]) == 0
    assert names(Path("it")) == ["0000.png", "0001.png", "0002.png", "captions.jsonl", "sheet.png"]
    assert capsys.readouterr() == ("3 scenes: it (captions.jsonl); all at a glance: it/sheet.png\n", "")


def test_render_one_caption() -> None:
    text = "a big red striped ball on the left, on sand"
    assert main(["scenes", "render", "--count", "2", "--size", "8", "--text", text]) == 0
    rows = Path("runs/scenes-render/captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["caption"] for row in rows] == [text, text]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--text", "a cat on a mat"], "'a cat on a mat' is not a caption of the scenes: word it like "),
        (
            ["--world", "moving-scenes", "--text", "a cat"],
            "'a cat' is not a caption of the moving scenes: word it like ",
        ),
        (["--world", "scene"], "unknown world 'scene' (did you mean 'scenes'?)"),
        (["--out", "mine"], "mine exists and is not an empty folder: choose another --out"),
        (["--world", "moving-scenes", "--out", "mine"], "mine exists and is not an empty folder: choose another --out"),
    ],
)
def test_one_sentence_and_nothing_written(arguments: list[str], sentence: str, work: Path, capsys: Captured) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "file").touch()
    assert main(["scenes", "render", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*")) == ["mine", "mine/file"]


@pytest.mark.parametrize("arguments", [["render", "--count", "0"], ["render", "--size", "4"], ["pain"]])
def test_a_wrong_option(arguments: list[str], work: Path) -> None:
    assert main(["scenes", *arguments]) == 2
    assert names(work) == []


def test_render_moving(capsys: Captured) -> None:
    arguments = ["scenes", "render", "--world", "moving-scenes", "--count", "2", "--size", "16", "--out", "it"]
    assert main([*arguments, "--text", "a red star moves right fast, on sand"]) == 0
    assert names(Path("it")) == ["0000.webp", "0001.webp", "captions.jsonl", "sheet.webp"]
    assert capsys.readouterr() == ("2 clips: it (captions.jsonl); all at a glance: it/sheet.webp\n", "")
    row = json.loads(Path("it/captions.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert row["attributes"] == {"background": 0, "shape": 4, "colour": 0, "motion": 1, "speed": 1}
    with Image.open("it/sheet.webp") as sheet:
        assert sheet.n_frames == 9
