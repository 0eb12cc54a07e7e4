"""`rmd plan --fit`: all splits at uniform and at the best times, the proposed settings, and pictures to measure."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from rmd.cli.app import app
from rmd.common.errors import RMDError


def run(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["plan", "scenes", *arguments], env={"COLUMNS": str(columns)})


def pictures(folder: Path) -> Path:
    """Write three pictures without captions, of stripes that only the full resolution can hold."""
    folder.mkdir()
    for i in range(3):
        picture = Image.new("L", (64, 64))
        picture.putdata([255 * ((x + i) // 2 % 2) for _ in range(64) for x in range(64)])
        picture.save(folder / f"{i}.png")
    return folder


def test_every_split_is_weighed_at_uniform_and_at_the_best_times() -> None:
    result = run("--fit", "--sides=16,32,64", "--steps=3", "--samples=2", "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["splits"]
    uniform = {(*row["steps"], row["sides"][0][0]): row for row in rows if row["uniform"]}
    best = {(*row["steps"], row["sides"][0][0]): row for row in rows if not row["uniform"]}
    assert set(uniform) == set(best) == {(3, 64), (1, 2, 16), (2, 1, 16), (1, 2, 32), (2, 1, 32), (1, 1, 1, 16)}
    assert len(rows) == 12
    assert 0 < uniform[1, 2, 32]["missing_bits"] < uniform[2, 1, 32]["missing_bits"]
    assert uniform[2, 1, 16]["missing_bits"] > uniform[2, 1, 32]["missing_bits"]
    assert all(best[key]["loss"] <= uniform[key]["loss"] for key in best)
    assert best[3, 64]["missing_bits"] == 0 and best[3, 64]["frontier"] and best[3, 64]["sigma"] == []
    assert best[2, 1, 32]["full_steps"] == 1 and len(best[1, 1, 1, 16]["sigma"]) == 2
    # what it proposes is a plan
    for row in (best[1, 1, 1, 16], uniform[1, 2, 32]):
        again = json.loads(run(*shlex.split(row["settings"]), "--json").stdout)
        assert [step["teacher_time"] for step in again["steps"]] == row["times"]
        assert [crossing["sigma"] for crossing in again["crossings"]] == row["sigma"]
        assert [[stage["height"], stage["width"]] for stage in again["stages"]] == row["sides"]


def test_the_table_of_measured_pictures_fits_and_lists_settings(tmp_path: Path) -> None:
    """With pictures no prompts are needed, even if the recipe's are missing."""
    result = run("--fit", "--samples=2", "--images", str(pictures(tmp_path / "some")), "--set", "data.prompts=no.txt")
    assert result.exit_code == 0, result.exception
    table, _, settings = result.stdout.partition("Settings of the best times")
    assert max(len(line) for line in table.splitlines()) <= 80
    rows = [line.split() for line in table.splitlines()]
    (uniform,) = (row for row in rows if row[:4] == ["2+2", "32", "64", "uniform"])
    assert uniform[4:6] == ["0.64", "2"]
    assert any(row[:3] == ["*", "4", "64"] for row in rows)
    lines = settings.splitlines()[1:]
    # The table is ordered by measured cost, so the order is the machine's.
    splits = {"3+1": '[3, 1]"', "2+2": '[2, 2]"', "1+3": '[1, 3]"', "4": '[4]"'}
    unstarred = [row[1:] if row[:1] == ["*"] else row for row in rows]
    best = [splits[row[0]] for row in unstarred if row[:1] and row[0] in splits and "uniform" not in row]
    assert [line.partition("plan.split=")[2] for line in lines] == best
    assert sorted(best) == sorted(splits.values())
    assert all(line.startswith('--set "plan.sides=[') for line in lines)


def test_pictures_decide_the_loss(tmp_path: Path) -> None:
    """Stripes that are finer than the low resolution are what it lacks; grey pictures lack nothing."""
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(grey / "grey.png")
    missing = []
    for folder in (grey, pictures(tmp_path / "stripes")):
        rows = json.loads(run("--fit", "--images", str(folder), "--steps=2", "--json").stdout)["splits"]
        missing += [row["missing_bits"] for row in rows if row["steps"] == [1, 1] and row["uniform"]]
    assert missing[1] > 2 * missing[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sides=16,32,64", "--steps=2"], "3 sides need at least 3 steps, but plan.steps is 2: set it higher"),
        (["--steps=101"], "the best times are looked for with at most 100 steps, got 101: use fewer"),
        (["--images", "absent"], "--images: there is no folder absent: name an existing one"),
        (["--images", "."], "--images: there is no picture (.png, .jpg, .jpeg, .webp) in .: add some"),
    ],
)
def test_one_sentence_for_what_cannot_be_fitted(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--fit", "--samples=2", *arguments)
    assert isinstance(result.exception, RMDError) and str(result.exception) == sentence


def test_a_teacher_is_needed(tmp_path: Path) -> None:
    absent = run("--fit", "--set", f"teacher={tmp_path / 'none'}")
    assert isinstance(absent.exception, RMDError) and "\n" not in str(absent.exception)
