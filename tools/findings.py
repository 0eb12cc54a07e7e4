"""Put the numbers of docs/findings/*.json into docs/findings.md: run `rmd compare all --out docs/findings` first."""

from __future__ import annotations

from pathlib import Path

from rmd.compare.findings import fill
from rmd.compare.run import read_results

if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    text = docs / "findings.md"
    text.write_text(fill(text.read_text(encoding="utf-8"), read_results(docs / "findings")), encoding="utf-8")
