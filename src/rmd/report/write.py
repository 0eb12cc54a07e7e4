"""Writes a report's files, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from rmd.common.files import write_text
from rmd.evaluate.rows import Report
from rmd.report.gallery import Pictures
from rmd.report.page import page


def write_report(
    report: Report,
    grids: Mapping[str, Tensor],
    panels: Sequence[tuple[int, Image.Image]],
    plan_png: bytes,
    folder: Path,
) -> Path:
    """Write report.json and a self-contained report.html to a folder; returns the path of the page.

    Args:
        report: the numbers.
        grids: (len(prompts), 3, H, W) uint8 samples by the name of their row; clips are (len(prompts), 3, T, H, W).
        panels: (iteration, picture) of the training, each as `rmd.train.panels.score_panel` draws it: five
            rows with the student's samples, noised, as teacher and fake score read them, and the difference.
        plan_png: the plan's plot.
        folder: made if need be.

    Raises:
        RMDError: a grid that is of no row or does not have one picture a prompt.
    """
    html = page(report, Pictures(grids, panels, plan_png))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    path = folder / "report.html"
    write_text(path, html)
    return path
