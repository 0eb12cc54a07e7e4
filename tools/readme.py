"""Copies the table and the picture of a demo into the page that shows them.

For the README, run `rmd demo` and then `python tools/readme.py`. For docs/scenes.md, run for example
`rmd demo --recipe scenes-pixart --out DIR` and then `python tools/readme.py DIR`. Comments in the pages that name the
recipe mark the places.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rmd.common.files import read_model
from rmd.common.markdown import markdown_text
from rmd.common.pictures import comparison_picture
from rmd.evaluation.rows import Report
from rmd.report import markdown_table

PAGES = {"scenes": ("README.md", "demo.png")}
"""The page that shows a recipe's demo, and its picture in docs; those of other recipes are in docs/scenes.md."""


def main(run: Path) -> None:
    """Copy the table and the pictures of a demo's folder; refuse a smoke run."""
    report = read_model(run / "report.json", Report)
    if report.quick:
        raise SystemExit("this is the report of a smoke run: run `rmd demo` without --quick")
    root = Path(__file__).parents[1]
    name = str(report.config["name"])
    if report.moving:
        page = "docs/scenes.md"
        with Image.open(run / "grids" / "comparison.webp") as clips:
            clips.save(root / "docs" / f"{name}.webp", save_all=True, quality=90)
    else:
        page, picture = PAGES.get(name, ("docs/scenes.md", f"{name}.png"))
        stills(report, run / "grids").save(root / "docs" / picture, optimize=True)
    start, end = f"<!-- demo of {name} -->", f"<!-- /demo of {name} -->"
    head, mark, rest = (root / page).read_text(encoding="utf-8").partition(start)
    if not mark:
        raise SystemExit(f"{page} has no place for the table: add the lines {start} and {end}")
    _, _, tail = rest.partition(end)
    note = (
        f"\n{report.n} samples per row, seed {report.seed}; the whole demo took {report.seconds / 60:.1f} minutes on "
        f"{report.versions['threads']} CPU threads.\n{verdict(report)}\n"
    )
    (root / page).write_text(f"{head}{start}\n{markdown_table(report)}{note}{end}{tail}", encoding="utf-8")


def stills(report: Report, strips: Path) -> Image.Image:
    """Return samples of all rows side by side, from the demo's strips of pictures."""
    grids, labels = {}, {}
    for row in report.rows:
        strip = torch.from_numpy(np.array(Image.open(strips / f"{row.name}.png").convert("RGB")))
        side = strip.shape[0]
        grids[row.name] = strip.permute(2, 0, 1).unflatten(2, (-1, side)).permute(2, 0, 1, 3)[:8]
        labels[row.name] = row.title
    return comparison_picture(grids, labels, columns=2, scale=2)


def verdict(report: Report) -> str:
    """Return a sentence on which of the targets the run reached."""
    missed = [
        f"{markdown_text(c.name)} is {c.measured:.3g} (required: {markdown_text(c.target)})"
        for c in report.checks
        if not c.passed
    ]
    if not missed:
        return f"All {len(report.checks)} targets are met (the report lists them)."
    verb, reasons = "is" if len(missed) == 1 else "are", "; ".join(missed)
    return f"{len(missed)} of {len(report.checks)} targets {verb} missed: {reasons}."


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
