"""`rmd eval`: students and other pipelines as rows of one table, with their costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from families import make_student
from helpers import tiny_pipeline
from PIL import Image

from rmd.cli.app import main
from rmd.evaluation.store import Evaluation


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "turbo"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("evaluated"), "sdxl", "full")


def read(path: Path) -> Evaluation:
    return Evaluation.model_validate_json(path.read_text(encoding="utf-8"))


def test_rows_of_models_stand_in_one_table(
    plain: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows"
    options = ["--samples", "6", "--batch-size", "4", "--out", str(out), "--device", "cpu"]
    assert main(["eval", str(plain), "--steps", "3", "--guidance", "2", *options]) == 0
    assert main(["eval", str(student), "--name", "ours", *options]) == 0
    printed = capsys.readouterr().out
    last = printed[printed.rindex("speed-") :]
    assert "turbo" in last and "ours" in last and "1.0x" in last
    turbo, ours = read(out / "turbo.json"), read(out / "ours.json")
    assert turbo.row.nfe == 6  # both branches of guidance
    assert ours.row.nfe == 4
    assert turbo.making["num_inference_steps"] == 3 and ours.making["model"] == str(student)
    assert (turbo.samples, turbo.seed, turbo.teacher) == (6, 0, "scenes")
    for name in ("turbo", "ours"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size == (3 * 64 + 2 * 4, 64)
    # A row that was measured on other captions is kept, but printed in another table.
    assert main(["eval", str(student), "--name", "other", "--seed", "1", *options]) == 0
    assert "turbo" not in capsys.readouterr().out


def test_an_evaluation_repeats_itself(plain: Path, tmp_path: Path) -> None:
    rows = []
    for size in ("2", "6"):
        out = tmp_path / size
        arguments = ["--samples", "6", "--steps", "2", "--batch-size", size, "--out", str(out), "--device", "cpu"]
        assert main(["eval", str(plain), *arguments]) == 0
        row = read(out / "turbo.json").row
        rows.append([row.value(name) for name in ("attributes", "diversity", "high_frequency")])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


def test_one_sentence(plain: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = make_student(tmp_path / "clips", "wan", "full")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "notes.json").write_text(json.dumps({"a": 1}))
    named = tmp_path / "a name"
    shutil.copytree(plain, named)
    for arguments, sentence in (
        ([str(student), "--steps", "3"], "--steps is for ordinary pipelines"),
        ([str(clips)], "makes clips, but the scenes' judge looks at single pictures"),
        ([str(named)], "a row cannot be called 'a name': give --name"),
        ([str(plain), "--teacher", "scene"], "did you mean 'scenes'"),
        ([str(plain), "--teacher", "scenes-wan"], "makes clips, but turbo makes pictures: use one of scenes, "),
        ([str(plain), "--steps", "1", "--samples", "6", "--out", str(bad)], f"{bad / 'notes.json'}: there is no key a"),
    ):
        assert main(["eval", *arguments, "--device", "cpu"]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rmd: ") and sentence in error, error
