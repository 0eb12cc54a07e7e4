"""Put the demo's own table and picture into the README: run `rmd demo`, then `python tools/readme.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rmd.pictures import comparison_picture
from rmd.report import Report, markdown_table

START, END = "<!-- demo table -->", "<!-- /demo table -->"


def main(run: Path) -> None:
    """Read `<run>/report.json` and `<run>/grids/*.png`; refuse a smoke run."""
    report = Report.model_validate_json((run / "report.json").read_text(encoding="utf-8"))
    if report.quick:
        raise SystemExit("the report is of a smoke run: run `rmd demo` without --quick")
    grids, labels = {}, {}
    for row in report.rows:
        strip = torch.from_numpy(np.array(Image.open(run / "grids" / f"{row.name}.png").convert("RGB")))
        side = strip.shape[0]
        grids[row.name] = strip.permute(2, 0, 1).unflatten(2, (-1, side)).permute(2, 0, 1, 3)[:8]
        labels[row.name] = f"{row.label} ({row.nfe:g} calls)"
    root = Path(__file__).parents[1]
    comparison_picture(grids, labels, columns=2, scale=2).save(root / "docs" / "demo.png", optimize=True)
    readme = root / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, tail = rest.partition(END)
    note = (
        f"\n{report.n} samples a row, seed {report.seed}; the whole demo took {report.seconds / 60:.1f} minutes on "
        f"{report.versions['threads']} CPU threads.\n{verdict(report)}\n"
    )
    readme.write_text(f"{head}{START}\n{markdown_table(report)}{note}{END}{tail}", encoding="utf-8")


def verdict(report: Report) -> str:
    """Which of the targets that were set beforehand the run reached."""
    missed = [f"{c.name} is {c.measured:.3g} ({c.target} was asked)" for c in report.checks if not c.passed]
    if not missed:
        return f"All {len(report.checks)} targets that were set beforehand are reached (they are listed in the report)."
    return f"Of {len(report.checks)} targets that were set beforehand, {len(missed)} missed: {'; '.join(missed)}."


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
