"""Fills the numbers of docs/findings/*.json into the findings, the page on the probe and the README, and draws charts.

Run `rmd compare all --out docs/findings` first, and then `python -m research.findings`.
"""

from __future__ import annotations

from pathlib import Path

from research.findings.marks import fill
from research.findings.splits import fill_splits, scenes_power
from rmd.compare.chart import chart
from rmd.compare.run import read_results

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    docs = root / "docs"
    results, powers = read_results(docs / "findings"), {"sdxl": scenes_power("sdxl")}
    for page in (docs / "findings.md", docs / "probe.md", root / "README.md"):
        filled = fill_splits(fill(page.read_text(encoding="utf-8"), results), results, powers)
        page.write_text(filled, encoding="utf-8")
    for name, result in results.items():
        picture = chart(result, "sdxl", form="png")
        if picture is not None:
            (docs / f"{name}.png").write_bytes(picture)
