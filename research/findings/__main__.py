"""Fills the numbers of docs/findings into the findings, the README and the pages on probe and worlds, and draws charts.

Run `rmd compare all --out docs/findings` first, and then `python -m research.findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from research.findings.gates import fill_gates, read_gates
from research.findings.marks import fill
from research.findings.splits import fill_splits, scenes_power
from rmd.compare.chart import chart
from rmd.compare.run import TableResult, read_results

CHARTED = "sdxl"
"""The charts are of this backbone."""


def draw_charts(results: Mapping[str, TableResult], folder: Path) -> list[Path]:
    """Write a picture for each table whose rows form a grid, and return the paths of the pictures."""
    paths = []
    for name, result in results.items():
        picture = chart(result, CHARTED, form="png") if CHARTED in result.backbones else None
        if picture is not None:
            paths.append(folder / f"{name}.png")
            paths[-1].write_bytes(picture)
    return paths


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    docs = root / "docs"
    gates = read_gates(docs / "findings" / "gates")
    measured, powers = read_results(docs / "findings"), {CHARTED: scenes_power(CHARTED)}
    for page in (*(docs / f"{name}.md" for name in ("findings", "index", "probe", "scenes")), root / "README.md"):
        filled = fill_splits(fill(page.read_text(encoding="utf-8"), measured), measured, powers)
        page.write_text(fill_gates(filled, gates), encoding="utf-8")
    draw_charts(measured, docs)
