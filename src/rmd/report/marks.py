"""Shows the marks of a student in training: a chart in the run's folder, and a sentence when nothing is gained."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmd.common.files import disk_errors, replacing
from rmd.core.metrics import Z95
from rmd.report.curves import LIGHT, Theme, use_theme
from rmd.report.plotting import drawing, svg
from rmd.train.callbacks import Callback, Iteration
from rmd.train.marks import MarkBook, Series, last_gain, standstill
from rmd.train.run import Run

CURVE = "marks.svg"
"""The chart's name in the run's folder."""


class MarksReport(Callback):
    """Draws the chart anew after every evaluation, in the first process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Create the callback.

        Args:
            say: receives a sentence when a mark has stood still for several evaluations, once for each standstill.
        """
        self._say, self._said = say, dict[str, int]()

    def after_iteration(self, run: Run, iteration: Iteration) -> None:
        """Draw the chart, and say which mark stands still.

        Raises:
            RMDError: on every process, if the chart cannot be written.
        """
        if iteration.is_due(run.recipe.evaluation.every):
            run.parallel.on_main(lambda: None if run.marks is None else self._report(run, run.marks))

    def _report(self, run: Run, marks: MarkBook) -> None:
        path = run.folder / CURVE
        with disk_errors(path), replacing(path) as partial:
            partial.write_bytes(draw_marks(marks))
        for name in marks.names:
            since = standstill(marks.series(name))
            if since is not None and self._said.get(name) != since:
                self._said[name] = since
                self._say(standstill_text(name, since))


def standstill_text(name: str, since: int) -> str:
    """Return the sentence about a mark that stands still."""
    return f"no gain in {name} beyond noise since iteration {since}: stop?"


def draw_marks(marks: MarkBook, theme: Theme = LIGHT) -> bytes:
    """Draw the course of every mark as SVG: its mean with the 95 % interval, and the last gain beyond noise."""
    names = marks.names
    with drawing(CURVE):
        figure = Figure(figsize=(5.2, 2.6 * len(names)), layout="constrained", facecolor="white")
        panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
        for name, axes in zip(names, panels, strict=True):
            _draw(axes, name, marks.series(name), theme)
        panels[-1].set_xlabel("iteration", color=theme.ink, fontsize=10)
        return svg(figure)


def _draw(axes: Axes, name: str, series: Series, theme: Theme) -> None:
    """Draw one mark."""
    colour = theme.series[0]
    iterations = [iteration for iteration, _ in series]
    means = [fmean(values) for _, values in series]
    errors = [Z95 * stdev(values) / math.sqrt(len(values)) for _, values in series]
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    axes.fill_between(iterations, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(iterations, means, color=colour, linewidth=2, marker="o", markersize=4)
    since = last_gain(series)
    axes.axvline(since, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(f"{name}; last gain beyond noise: {since}", color=theme.ink, fontsize=10)
    use_theme(axes, theme)
