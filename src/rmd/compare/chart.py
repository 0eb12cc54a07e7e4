"""Draws a table whose rows form a grid: a panel for each noise rule, a line for each value in training (Fig. 8)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rmd.compare.run import Line, TableResult
from rmd.compare.settings import Place
from rmd.compare.tables import TABLES
from rmd.evaluation.metrics import Metric, metric
from rmd.report.curves import LIGHT, Theme, use_log_scale, use_theme
from rmd.report.plotting import MARKERS, drawing, svg

SHOWN = ("attributes", "kernel_distance")
"""The metrics that are drawn, one row of panels each."""


def chart(
    result: TableResult, backbone: str, *, theme: Theme = LIGHT, form: Literal["svg", "png"] = "svg"
) -> bytes | None:
    """Return a backbone's table as a picture: PNG on white, or SVG without a background.

    Returns:
        The file's content, or None if the table's rows do not form a grid.
    """
    with drawing(result.name):
        figure = draw(result, backbone, theme)
        if figure is None:
            return None
        if form == "svg":
            return svg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=110)
    return buffer.getvalue()


def draw(result: TableResult, backbone: str, theme: Theme) -> Figure | None:
    """Draw lines through the means and a dot for every seed; None if the table's rows do not form a grid."""
    settings = TABLES[result.name].rows if result.name in TABLES else ()
    places = {row.name: row.place for row in settings if row.place is not None}
    placed = [(places[line.name], line) for line in result.backbones[backbone] if line.name in places]
    if not placed:
        return None
    panels = list(dict.fromkeys(place.panel for place, _ in placed))
    figure = Figure(figsize=(3.1 * len(panels), 2.5 * len(SHOWN)), layout="constrained")
    grid = figure.subplots(len(SHOWN), len(panels), sharex=True, sharey="row", squeeze=False)
    for measure, row in zip(map(metric, SHOWN), grid, strict=True):
        for panel, axes in zip(panels, row, strict=True):
            _draw(axes, measure, [(place, line) for place, line in placed if place.panel == panel], theme)
        row[0].set_ylabel(measure.title, color=theme.ink)
        row[0].set_xticks(sorted({place.x for place, _ in placed}))  # shared by all
    for panel, top, bottom in zip(panels, grid[0], grid[-1], strict=True):
        top.set_title(panel, color=theme.ink, fontsize=10)
        bottom.set_xlabel("beta in sampling", color=theme.ink)
    # Above all panels, where it hides no line.
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, labelcolor=theme.ink)
    return figure


def _draw(axes: Axes, measure: Metric, placed: Sequence[tuple[Place, Line]], theme: Theme) -> None:
    for index, name in enumerate(dict.fromkeys(place.line for place, _ in placed)):
        points = sorted((place.x, line.numbers[measure.name]) for place, line in placed if place.line == name)
        colour, marker = theme.series[index % len(theme.series)], MARKERS[index % len(MARKERS)]
        axes.plot(
            [x for x, _ in points], [number.mean for _, number in points],
            color=colour, marker=marker, markersize=5, linewidth=1.8, label=name,
        )  # fmt: skip
        seeds = [(x, value) for x, number in points for value in number.values]
        axes.plot(
            [x for x, _ in seeds], [value for _, value in seeds],
            color=colour, marker="o", markersize=2.5, linestyle="none", alpha=0.5,
        )  # fmt: skip
    if measure.shown == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif all(value > 0 for _, line in placed for value in line.numbers[measure.name].values):
        use_log_scale(axes)
    use_theme(axes, theme)
