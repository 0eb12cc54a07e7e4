"""The planner's predictions beside the measurements: the bits are those of the plans, and the orders are compared."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from research.findings.splits import as_markdown, fill_splits, foreseen, scenes_power
from rmd.compare.run import read_results
from rmd.core.fit import splits
from rmd.recipes.schema import load_recipe

DOCS = Path(__file__).parents[3] / "docs"
WHITE = torch.ones(16, 16, dtype=torch.float64)


def numbers(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's body."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_every_split_of_rmd_stands_once_with_the_bits_that_plan_fit_prints() -> None:
    rows = foreseen(read_results(DOCS / "findings"), "sdxl", WHITE)
    assert sorted(plan.split for plan in rows) == ["0+4", "1+1+2", "1+2+1", "1+3", "2+1+1", "2+2", "3+1"]
    assert not any("naive" in plan.line.label for plan in rows)
    assert rows[0].split == "0+4" and rows[0].missing == 0.0
    assert all(one.missing <= other.missing for one, other in pairwise(rows))
    schedule = load_recipe("scenes").noise.schedule()
    for sides in ([(32, 32), (64, 64)], [(16, 16), (32, 32), (64, 64)]):
        planned = splits(schedule, steps=4, sides=sides, costs=dict.fromkeys(sides, 1.0), power=WHITE)
        wanted = {split.steps: split.missing for split in planned if len(split.steps) == len(sides)}
        shown = {tuple(map(int, plan.split.split("+"))): plan.missing for plan in rows}
        common = {steps: missing for steps, missing in shown.items() if len(steps) == len(sides) and steps[0] > 0}
        assert common == pytest.approx({steps: wanted[steps] for steps in common}) and len(common) == 3


def test_the_orders_agreement_is_said_of_the_rows_themselves() -> None:
    rows = foreseen(read_results(DOCS / "findings"), "sdxl", WHITE)
    ranks = sorted(rows, key=lambda plan: plan.line.numbers["kernel_distance"].mean)
    text = as_markdown([type(p)(p.split, float(rank), p.line) for rank, p in enumerate(ranks)])
    assert "over 7 splits" in text and "1.00 with 'kernel distance' (p below 0.001)" in text
    text = as_markdown([type(p)(p.split, -float(rank), p.line) for rank, p in enumerate(ranks)])
    assert "-1.00 with 'kernel distance' (p below 0.001)" in text


def test_the_findings_table_follows_from_the_results() -> None:
    text, results = (DOCS / "findings.md").read_text(encoding="utf-8"), read_results(DOCS / "findings")
    _, _, block = text.partition("<!-- splits sdxl -->\n")
    block = block.partition("<!-- end -->")[0]
    shown = {row[0]: float(row[2]) / 1000 for row in numbers(block)}
    rows = [type(p)(p.split, shown[p.split], p.line) for p in foreseen(results, "sdxl", WHITE)]
    assert as_markdown(sorted(rows, key=lambda plan: plan.missing)) == block


@pytest.mark.slow
def test_the_findings_table_has_the_teachers_bits() -> None:
    text, results = (DOCS / "findings.md").read_text(encoding="utf-8"), read_results(DOCS / "findings")
    assert fill_splits(text, results, {"sdxl": scenes_power("sdxl")}) == text
