"""The page on full-size runs says what the recipes and the commands say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rmd.bench.measured import measured
from rmd.cli.app import main
from rmd.recipes.catalog import catalog
from rmd.recipes.schema import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "full-size.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its two first lines."""
    lines = PAGE.partition(f"\n## {heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_page_names_the_cards_of_the_recipes() -> None:
    rows = [
        [f"`{entry.name}`", entry.card, ", ".join(f"`{setting}`" for setting in entry.settings)]
        for entry in catalog()
        if entry.cards
    ]
    assert table("Cards") == rows


def test_the_page_names_the_updates_of_the_recipes() -> None:
    rows = table("Iterations")
    for name, updates, source in rows:
        recipe = load_recipe(name.strip("`"))
        iterations = recipe.train.iterations
        assert updates == f"{iterations:,} and {iterations * recipe.method.fake_updates:,} of {recipe.train.batch_size}"
        assert source
    sizes = {load_recipe(entry.name).train.iterations for entry in catalog() if entry.cards}
    assert {load_recipe(name.strip("`")).train.iterations for name, *_ in rows} == sizes


def test_the_page_counts_prompts_as_the_recipes_use_them() -> None:
    told = re.search(r"so a run reads iterations x batch prompts: ([^.]+)\.", PAGE)
    assert told is not None
    pairs = re.findall(r"([\d,]+) for `([^`]+)`", " ".join(told[1].split()))
    assert len(pairs) == 4
    for count, name in pairs:
        train = load_recipe(name).train
        assert int(count.replace(",", "")) == train.iterations * train.batch_size


def hours_of(rows: list[list[str]]) -> list[str]:
    return [row[0] for row in rows]


def test_the_hours_are_those_of_the_recipes_that_the_command_names() -> None:
    command = re.search(r"`rmd bench hours ([^`]+) --markdown`", PAGE)
    assert command is not None
    rows = table("Hours")
    assert hours_of(rows) == command[1].split()
    for name, size, *_ in rows:
        train = load_recipe(name).train
        assert size == f"{train.iterations} x {train.batch_size}"
    assert f"on one {measured().gpu}" in " ".join(PAGE.split())


@pytest.mark.slow
def test_the_hours_are_what_the_command_computes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table("Hours")
    assert main(["bench", "hours", *hours_of(rows), "--markdown"]) == 0
    printed = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert printed == rows
