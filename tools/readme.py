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
        grids[row.name] = strip.permute(2, 0, 1).unflatten(2, (-1, side)).permute(2, 0, 1, 3)[:12]
        labels[row.name] = f"{row.label} ({row.nfe:g} calls)"
    root = Path(__file__).parents[1]
    comparison_picture(grids, labels, columns=3, scale=1).save(root / "docs" / "demo.png", optimize=True)
    readme = root / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, tail = rest.partition(END)
    minutes = report.seconds / 60
    note = (
        f"\n{report.n} samples a row, seed {report.seed}; the whole demo took {minutes:.1f} minutes on two CPU cores.\n"
    )
    readme.write_text(f"{head}{START}\n{markdown_table(report)}{note}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
