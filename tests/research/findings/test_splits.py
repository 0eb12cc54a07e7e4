"""The planner's predictions beside the measurements: they are those of the plans, and the orders are compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from research.findings.splits import (
    RUNS,
    Foreseen,
    agreement,
    fill_splits,
    runs_markdown,
    scenes_power,
    split_rows,
    splits_markdown,
)
from rmd.compare.run import TableResult, read_results
from rmd.compare.settings import Setting
from rmd.compare.tables import TABLES
from rmd.core.splits import splits
from rmd.recipes.schema import load_recipe

DOCS = Path(__file__).parents[3] / "docs"
WHITE = torch.ones(16, 16, dtype=torch.float64)


@pytest.fixture(scope="module")
def results() -> dict[str, TableResult]:
    return dict(read_results(DOCS / "findings"))


def cells(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's body."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def setting(table: str, name: str) -> Setting:
    """Return a row of a table."""
    (row,) = (row for row in TABLES[table].rows if row.name == name)
    return row


def block(kind: str) -> str:
    """Return a table of the findings page with the sentences below it."""
    text = (DOCS / "findings.md").read_text(encoding="utf-8")
    return text.partition(f"<!-- {kind} sdxl -->\n")[2].partition("<!-- end -->")[0]


def test_every_split_of_rmd_stands_once_with_what_plan_fit_prints(results: dict[str, TableResult]) -> None:
    rows = split_rows(results, "sdxl", WHITE)
    assert sorted(row.split for row in rows) == ["0+4", "1+1+2", "1+2+1", "1+3", "2+1+1", "2+2", "3+1"]
    assert not any("naive" in row.line.label for row in rows)
    assert rows[0].split == "0+4" and rows[0].foreseen.missing == 0.0
    assert all(one.foreseen.missing <= other.foreseen.missing for one, other in pairwise(rows))
    schedule = load_recipe("scenes").schedule()
    for sides in ([(32, 32), (64, 64)], [(16, 16), (32, 32), (64, 64)]):
        planned = splits(schedule, steps=4, sides=sides, costs=dict.fromkeys(sides, 1.0), power=WHITE)
        wanted = {
            split.steps: (split.loss, split.missing, 4 - split.steps[-1])
            for split in planned
            if split.uniform and len(split.steps) == len(sides)
        }
        shown = {tuple(map(int, row.split.split("+"))): row.foreseen for row in rows}
        common = {steps: each for steps, each in shown.items() if len(steps) == len(sides) and steps[0] > 0}
        assert len(common) == 3
        for steps, each in common.items():
            assert (each.loss, each.missing, each.low) == pytest.approx(wanted[steps])


def test_the_agreement_is_that_of_the_orders() -> None:
    """Four rows; loss in the measured order, missing bits in the opposite one, and counts with a tie."""
    foreseen = [Foreseen(float(i), -float(i), i // 2) for i in range(4)]
    text = agreement("distance", foreseen, [1.0, 2.0, 5.0, 9.0])
    # Of six pairs, four differ in the count, all of them concordant: 4 / sqrt(6 * 4).
    assert text == (
        "Kendall's tau-b with 'distance' over 4 rows: "
        "1.00 of loss, -1.00 of missing bits, 0.82 of number of low-resolution steps."
    )


def test_runs_have_the_split_the_times_and_the_distance_of_their_rows(results: dict[str, TableResult]) -> None:
    rows = cells(runs_markdown(results, "sdxl", WHITE))
    assert len(rows) == len(RUNS)
    by_key = {(row[0], row[2]): row[-1] for row in rows}
    for run in RUNS:
        table, name = run.row
        (line,) = (line for line in results[table].backbones["sdxl"] if line.name == name)
        assert (run.split, run.sides) == (setting(table, name).split, setting(table, name).sides)
        times = [change for change in setting(table, name).changes if change.startswith("plan.times")]
        assert bool(times) == bool(run.times)
        assert all(f"{t:g}" in times[0] for t in run.times)
        assert f"{line.numbers['kernel_distance'].values[0]:.1f}" in by_key.values()
    assert by_key["4", "uniform"] == "18.1" and by_key["2+2", "uniform"] == "32.2"
    losses = [float(row[3]) for row in rows]
    assert losses == sorted(losses)


def test_the_findings_tables_follow_from_the_results(results: dict[str, TableResult]) -> None:
    text = block("splits")
    shown = {row[0]: (float(row[2]) / 1000, float(row[3]) / 1000) for row in cells(text)}
    rows = []
    for row in split_rows(results, "sdxl", WHITE):
        loss, missing = shown[row.split]
        rows.append(replace(row, foreseen=replace(row.foreseen, loss=loss, missing=missing)))
    assert splits_markdown(sorted(rows, key=lambda row: row.foreseen.missing)) == text
    measured = {(row[0], row[2]): row[-1] for row in cells(runs_markdown(results, "sdxl", WHITE))}
    assert {(row[0], row[2]): row[-1] for row in cells(block("times"))} == measured


@pytest.mark.slow
def test_the_findings_tables_have_the_teachers_numbers(results: dict[str, TableResult]) -> None:
    text = (DOCS / "findings.md").read_text(encoding="utf-8")
    assert fill_splits(text, results, {"sdxl": scenes_power("sdxl")}) == text
