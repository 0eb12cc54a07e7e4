"""`rmd probe`: its output, its files, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rmd.cli.app import app
from rmd.common.errors import RMDError

QUICK = ("--samples", "6", "--steps", "2", "--device", "cpu")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["probe", *arguments])


def test_it_writes_a_page_and_prints_a_verdict(recipe: Path) -> None:
    result = run(str(recipe), *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Trust:") and lines[-1] == "page: runs/probe-tiny/probe.html" and len(lines) <= 20
    assert sorted(path.name for path in Path("runs/probe-tiny").iterdir()) == ["probe.html", "probe.json"]
    again = run(str(recipe), *QUICK)
    assert isinstance(again.exception, RMDError) and "choose another --out" in str(again.exception)


def test_json_is_what_the_folder_holds(recipe: Path) -> None:
    result = run(str(recipe), *QUICK, "--json", "--out", "here", "--sides", "8,16,32")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values == json.loads(Path("here/probe.json").read_text(encoding="utf-8"))
    assert [stage["size"] for stage in values["stages"]] == ["8x8", "16x16"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sides", "32"), "no resolution below 32x32"),
        (("--sides", "4,8,12,16,32"), "5 sides need at least 5 steps, but the recipe has 4"),
        (("--sides", "32,16"), "larger than stage 2"),
        (("--sides", "x"), "plan.sides"),
        (("--out", "prompts/file"), "is a file"),
    ],
)
def test_errors_are_found_before_anything_is_computed(recipe: Path, arguments: tuple[str, ...], text: str) -> None:
    Path("prompts").write_text("", encoding="utf-8")
    result = run(str(recipe), *QUICK, *arguments)
    assert isinstance(result.exception, RMDError) and text in str(result.exception)


def test_numbers_out_of_range_are_refused(recipe: Path) -> None:
    assert run(str(recipe), "--samples", "5").exit_code == 2 and run(str(recipe), "--steps", "0").exit_code == 2
