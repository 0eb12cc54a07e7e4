"""Inputs that `rmd generate`, `rmd eval` and `--device` refuse in one sentence, before weights are loaded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from families import make_student

from rmd.cli.app import main
from rmd.cli.device import find_device
from rmd.common.errors import RMDError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return students without weights, which are not needed to refuse an input before weights are loaded."""
    students = {family: make_student(tmp_path_factory.mktemp(family), family, "lora") for family in ("sdxl", "wan")}
    for student in students.values():
        for path in student.parent.rglob("*model*.safetensors"):
            path.unlink()
    return students


INPUTS = [
    (["a", "--seed", str(2**64)], 2, "--seed"),
    (["a", "--seed", "-1"], 2, "--seed"),
    (["a", "-n", "2", "--seed", str(2**64 - 1)], 1, "seeds are numbers from 0 to 18446744073709551615, got"),
    (["a\ud83d"], 1, "cannot be used: the caption contains half of a character"),
    (["a\0b"], 1, "cannot be used: the caption contains the control character U+0000"),
    (["a" * 10**6], 1, "cannot be used: the caption has 1000000 characters, but at most 100000"),
    (["a", "-n", str(10**9)], 2, "--count"),
    (["a", "b", "-n", str(10**6)], 1, "an album has 1 to 1000000 pictures, not 2000000"),
    (["a", "--batch-size", str(10**9)], 2, "--batch-size"),
    (["a", "--height", str(10**6)], 2, "--height"),
    (["a", "--width", "0"], 2, "--width"),
    (["a", "--frames", str(10**9)], 2, "--frames"),
    (["a", "--fps", str(10**9)], 2, "--fps"),
    (["a", "--steps", str(10**9)], 2, "--steps"),
    (["a", "--guidance", "-1"], 2, "--guidance"),
    (["a", "--teacher-steps", str(10**9)], 2, "--teacher-steps"),
    (["a", "--format", "avi"], 1, "unknown --format 'avi': use one of mp4, webp, gif"),
    (
        ["a", "--model", "wan", "--format", "gif", "--fps", "60"],
        1,
        "a .gif clip can play at 1 to 50 frames per second",
    ),
    (["a", "--model", "wan", "--out", "x" * 240 + ".webp"], 1, "too long: use at most 200 bytes"),
    (["a", "--out", "file"], 1, "file is a file: give a folder as --out"),
    (["a", "--out", "file/pictures"], 1, "cannot write to file/pictures: Not a directory"),
    (["a", "--out", "x" * 300], 1, "File name too long"),
    (["a", "--out", "x\udce9"], 1, "--out contains a character that is not valid Unicode"),
    (["a", "--out", "/proc/pictures"], 1, "cannot write to /proc/pictures: "),
    (["a", "--model", "x\0"], 1, "--model contains a NUL character"),
    (["a", "--model", ""], 1, "the name of the model is empty"),
    (["a", "--teacher", "x\udce9"], 1, "--teacher contains a character that is not valid Unicode"),
    (["a", "--device", "mps"], 1, "torch finds no mps, the GPU of an Apple computer: use --device cpu"),
    (
        ["a", "--device", "cuda:99999999999999999999"],
        1,
        "there is no device 'cuda:99999999999999999999': use",
    ),
    (["a", "--device", "meta"], 1, "this command cannot compute on meta: use cpu or cuda or mps"),
    (["a", "--device", "cpu:7"], 1, "there is no cpu:7, only one cpu: use --device cpu"),
    (["a", "--device", "\ud800"], 1, "there is no device "),
    (["a", "--guidance", "nan"], 2, "--guidance"),
    (["a", "--guidance", "inf"], 1, "--guidance must be a finite number, got inf"),
]


@pytest.mark.parametrize(("arguments", "status", "sentence"), INPUTS)
def test_an_input_of_generate(
    arguments: list[str], status: int, sentence: str, models: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (tmp_path / "file").write_text("mine")
    given = [str(models[word]) if word in models else word for word in arguments]
    given += [] if "--model" in given else ["--model", str(models["sdxl"])]
    began = time.monotonic()
    assert main(["generate", *given]) == status
    assert time.monotonic() - began < 20
    error = capsys.readouterr().err
    if status == 1:
        assert error.startswith("rmd: ") and error.count("\n") == 1
    assert sentence in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--seed", str(2**64)], 2, "--seed"),
        (["--samples", str(10**9)], 2, "--samples"),
        (["--batch-size", str(10**9)], 2, "--batch-size"),
        (["--name", "x" * 101], 1, "a row cannot be called "),
        (["--name", "a/b"], 1, "a row cannot be called 'a/b': give --name with up to 100 letters, digits and"),
        (["--out", "file"], 1, "file is a file: give a folder as --out"),
        (["--out", "x\udce9"], 1, "--out contains a character that is not valid Unicode"),
        (["--guidance", "inf"], 1, "--guidance must be a finite number, got inf"),
        (["--base", "x\udce9"], 1, "--base contains a character that is not valid Unicode"),
        (["--base", "/nowhere"], 1, "there is no folder /nowhere"),
        (["--device", "mps"], 1, "this command cannot compute on mps: use cpu or cuda"),
    ],
)
def test_an_input_of_eval(
    arguments: list[str], status: int, sentence: str, models: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["eval", str(models["sdxl"]), *arguments]) == status
    error = capsys.readouterr().err
    assert sentence in error and (status == 2 or error.count("\n") == 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu") and find_device("cpu:0") == torch.device("cpu:0")
    for wanted in ("cpu:1", "cuda:99999999999999999999", "cuda:-1", "meta", "x", "", "\0", "mps", f"cuda:{10**9}"):
        with pytest.raises(RMDError):
            find_device(wanted)
