"""`rmd recipes`: a table at any width, and JSON."""

from __future__ import annotations

import json

import pytest

from rmd.cli.app import main
from rmd.recipes.layers import recipe_names


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_recipes_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    rows = {line.split()[0]: line.split() for line in lines[3:] if line.startswith(" ") and line[1:2].strip()}
    assert set(rows) >= set(recipe_names())
    assert rows["sdxl"][1:4] == ["24", "GB", "SDXL,"]


def test_the_list_of_recipes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == recipe_names()
    (sdxl,) = (entry for entry in entries if entry["name"] == "sdxl")
    assert (sdxl["cards"], sdxl["gb"], sdxl["settings"]) == (1, 24, ["train.gradient_accumulation_steps=32"])
