"""`rmd demo` on the command line: what it replaces, and what it refuses to touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmd.cli.app import main
from rmd.cli.demo import _clear
from rmd.common.files import LOCK, locked

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(("part", "mark"), [("run", "recipe.yaml"), ("student", "rmd_config.json")])
def test_only_an_earlier_demo_is_replaced(part: str, mark: str, tmp_path: Path, capsys: Captured) -> None:
    mine = tmp_path / part / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("years of work", encoding="utf-8")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    sentence = f"rmd: {tmp_path / part} does not belong to an earlier demo: remove it, or choose another --out\n"
    assert capsys.readouterr().err == sentence
    assert mine.is_file()
    (tmp_path / part / mark).touch()
    _clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("part", ["", "run", "run-tdm"])
def test_a_demo_does_not_write_where_another_process_does(part: str, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / part
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").touch()
    with locked(folder):
        assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    sentence = f"rmd: another process is writing to {folder}: wait until it has finished, or choose another folder\n"
    assert capsys.readouterr().err == sentence
    assert (folder / "recipe.yaml").is_file()
