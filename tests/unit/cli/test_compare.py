"""`rmd compare` on the command line: what is refused before anything is computed, and what a run leaves."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest

from rmd.cli.app import main
from rmd.compare import cells, settings, tables
from rmd.compare.cells import Budget
from rmd.compare.settings import UNDISTILLED, Table

Captured = pytest.CaptureFixture[str]


def test_help_and_docs_name_every_table(capsys: Captured) -> None:
    """The names are written out there, since the help is shown without loading what computes the tables."""
    main(["compare", "--help"])
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, page):
        assert set(tables.TABLES) <= set(re.findall(r"[\w-]+", text))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mian"], "unknown table 'mian' (did you mean 'main'?): use one of main, components, "),
        (["main", "--budget", "large"], "unknown budget 'large': use one of small, default"),
        (["main", "--backbone", "flux"], "unknown backbone 'flux': use one of sdxl, pixart, sd3, vistas, wan"),
    ],
)
def test_what_is_not_there_is_named(arguments: list[str], sentence: str, tmp_path: Path, capsys: Captured) -> None:
    assert main(["compare", *arguments, "--out", str(tmp_path)]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_backbone_whose_teacher_is_not_there_is_a_sentence(tmp_path: Path, capsys: Captured) -> None:
    missing = {"sdxl": "scenes", "pixart": str(tmp_path / "absent")}
    with mock.patch.dict(settings.BACKBONES, missing):
        assert main(["compare", "main", "--backbone", "pixart", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_with_another_json_is_refused_before_anything_is_computed(tmp_path: Path, capsys: Captured) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}", encoding="utf-8")
    assert main(["compare", "main", "--out", str(tmp_path)]) == 1
    assert f"{other} is not a table of rmd compare" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == [other]


def test_a_table_is_printed_and_written(tmp_path: Path, capsys: Captured) -> None:
    table = Table("tiny", "Tiny", "none", "Does it run?", (UNDISTILLED,), against="cascade-undistilled")
    with (
        mock.patch.dict(tables.TABLES, {"tiny": table}),
        mock.patch.dict(cells.BUDGETS, {"small": Budget("small", 20, (0,), 6)}),
    ):
        assert main(["compare", "tiny", "--budget", "small", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Tiny (none), sdxl-type teacher" in shown and "teacher as a 2+2 cascade" in shown
    assert "Small budget: one seed and a short training." in " ".join(shown.split())
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "tiny.json", "tiny.csv", "tiny.tex", "compare.html"
    }  # fmt: skip
