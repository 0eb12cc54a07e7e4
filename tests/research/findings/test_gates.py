"""The tables of the gates on the page about the worlds, which are those of the stored reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.findings.gates import fill_gates, read_gates
from research.scenes.gates import HIDDEN, RIGHT, WRONG, Gate, GateReport
from research.scenes.kits import KITS
from rmd.common.errors import RMDError
from rmd.recipes.schema import load_recipe

DOCS = Path(__file__).parents[3] / "docs"
REPORTS = read_gates(DOCS / "findings" / "gates")
REPORT = GateReport(
    world="vistas", samples=20, steps=25, guidance=3.0, crossing=500.0, seed=1,
    gates=(Gate("a", "at most 1", "0.5", True), Gate("b", "at least 1", "0.5", False)),
)  # fmt: skip


def test_a_mark_is_filled_with_the_table_and_how_it_was_measured() -> None:
    filled = fill_gates("before\n<!-- gates vistas -->old<!-- end -->\nafter\n", {"vistas": REPORT})
    assert "| a | at most 1 | 0.5 | pass |\n| b | at least 1 | 0.5 | **miss** |\n" in filled
    assert "20 captions; the teacher sampled in 25 steps with a guidance of 3." in filled and "old" not in filled
    assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter\n")
    assert fill_gates(filled, {"vistas": REPORT}) == filled
    with pytest.raises(RMDError, match=r"^unknown world with gates 'scenes'"):
        fill_gates("<!-- gates scenes --><!-- end -->", {"vistas": REPORT})


def test_the_page_has_the_tables_of_the_stored_reports() -> None:
    text = (DOCS / "scenes.md").read_text(encoding="utf-8")
    assert fill_gates(text, REPORTS) == text
    assert set(REPORTS) == set(KITS) and all(f"<!-- gates {name} -->" in text for name in REPORTS)


@pytest.mark.parametrize("name", list(KITS))
def test_a_stored_report_was_made_as_its_recipe_samples(name: str) -> None:
    report = REPORTS[name]
    assert (report.steps, report.guidance, report.crossing) == (25, load_recipe(name).method.guidance, 500)
    assert report.samples >= 256 and len(report.gates) == 7
    wanted = [gate.wanted for gate in report.gates]
    assert f"at most {HIDDEN:g}" in wanted and f"at most {100 * WRONG:g}%" in wanted
    assert f"at least {100 * RIGHT:g}%" in wanted
