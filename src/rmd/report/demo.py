"""Writes what a demo measured: its report and page, and the samples as picture files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rmd.evaluation.demo import DemoResult
from rmd.report.plotting import plot_plan
from rmd.report.write import write_report


def write_demo(result: DemoResult, folder: Path) -> Path:
    """Write report.json, report.html and the samples (in `grids`) to a folder, and return the path of the page.

    Raises:
        RMDError: the folder cannot be written to.
    """
    report, labels = result.report, {row.name: row.title for row in result.report.rows}
    result.world.save_samples(result.grids, labels, report.prompts, folder / "grids")
    with tempfile.TemporaryDirectory() as temporary:
        plot = Path(temporary) / "plan.png"
        plot_plan(report.step_plan, result.schedule, plot)
        return write_report(report, result.grids, result.panels, plot.read_bytes(), folder)
