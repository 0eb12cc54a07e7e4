"""Writes a report's files, each atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from rmd.common.files import write_text
from rmd.evaluation.rows import Report
from rmd.report.page import page


def write_report(
    report: Report,
    grids: Mapping[str, Tensor],
    panels: Sequence[tuple[int, Image.Image]],
    plan_png: bytes,
    folder: Path,
) -> Path:
    """Write report.json and a self-contained report.html to a folder, and return the path of the page.

    Args:
        report: the numbers.
        grids: (len(prompts), 3, H, W) uint8 samples by the name of their row; clips are (len(prompts), 3, T, H, W).
        panels: iteration and picture of each training panel, as drawn by `rmd.train.panels.score_panel`.
        plan_png: the plot of the plan.
        folder: the output folder, which is created if necessary.

    Raises:
        RMDError: a grid belongs to no row, or does not have one picture per prompt.
    """
    html = page(report, grids, panels, plan_png)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    path = folder / "report.html"
    write_text(path, html)
    return path
