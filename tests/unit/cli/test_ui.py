"""`rmd ui`: what it refuses, in one sentence and before anything is loaded."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from rmd.cli.app import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RMD_UI_PASSWORD", raising=False)
    (tmp_path / "table.html").write_text("<p>table</p>", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there is nothing to show: give a student, --run DIR or --compare DIR; or make a student with rmd demo"),
        (["empty"], "empty holds no student: it has no rmd_config.json"),
        (
            ["--run", "empty"],
            "empty holds no run: it has no recipe.yaml; give the folder of a run",
        ),
        (["--run", "none"], "there is no folder none: give the folder of a run (--out of rmd train)"),
        (
            ["--compare", "none"],
            "none is neither a folder nor a page: give the folder of rmd compare, or an .html file",
        ),
        (["--compare", "table.html", "--teacher", "empty"], "--teacher is for students: give one, or leave it out"),
        (
            ["--compare", "table.html", "--device", "meta"],
            "this command cannot compute on meta: use cpu or cuda or mps",
        ),
        (
            ["--compare", "table.html", "--host", "0.0.0.0"],
            "at 0.0.0.0 everybody in the network could use this machine: set a password in the environment variable "
            "RMD_UI_PASSWORD, or leave --host out",
        ),
        (["--compare", "table.html", "--host", "1.2.3.4.5"], "at 1.2.3.4.5 everybody in the network could use this"),
    ],
)
def test_one_sentence(arguments: list[str], sentence: str, capsys: Captured) -> None:
    assert main(["ui", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"rmd: {sentence}") and err.count("\n") == 1


def test_a_taken_port(capsys: Captured) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--compare", "table.html", "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"rmd: cannot listen at 127.0.0.1, port {port}: ")


def test_missing_packages_are_named(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    loaded = [name for name in sys.modules if re.fullmatch(r"rmd\.ui\.(serving|page|events|\w+_tab)", name)]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    assert main(["ui", "--compare", "table.html", "--port", "0", "--no-browser"]) == 1
    assert capsys.readouterr() == ("", "rmd: the page needs more packages: pip install 'rmd[ui]'\n")
