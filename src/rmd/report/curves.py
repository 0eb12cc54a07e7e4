"""Learning curves as SVG, for a light and for a dark page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rmd.report.plotting import COLOURS, plain_text

History = Sequence[Mapping[str, float | None]]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Theme:
    """Colours of text and lines on a page; `series` can be told apart by the colour-blind."""

    ink: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(ink="#30363d", grid="#d8dde3", series=COLOURS)
# The same hues, lighter where they would sink into a dark page.
DARK = Theme(ink="#c9d1d9", grid="#3a424b", series=("#56B4E9", "#E69F00", "#2FBF8F", "#CC79A7", "#F0E442", "#D55E00"))


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over the iterations that share an axis."""

    title: str
    caption: str
    curves: Sequence[Curve]


def charts(history: History) -> list[Chart]:
    """What the history has to show: losses, gradient norms, and the gap between the two scores by stage."""
    stages = sorted({stage for record in history if (stage := record.get("stage")) is not None})
    gaps = [
        Curve(f"stage {stage:g}", _points([r for r in history if r.get("stage") == stage], "gap")) for stage in stages
    ]
    found = [
        Chart(
            "Loss",
            "Losses of distribution matching do not show quality; a jump shows trouble.",
            _pair(history, "loss"),
        ),
        Chart("Gradient norm", "Before clipping.", _pair(history, "grad_norm")),
        Chart(
            "Gap between the scores",
            "Mean difference between the teacher’s and the fake score’s reading of the student’s samples.",
            gaps or [Curve("gap", _points(history, "gap"))],
        ),
    ]
    drawn = [Chart(c.title, c.caption, [curve for curve in c.curves if curve.points]) for c in found]
    return [chart for chart in drawn if chart.curves]


def draw(chart: Chart, theme: Theme) -> bytes:
    """The chart as an SVG file without background: thin lines as measured, thick ones their running mean."""
    # Text as paths shows the same everywhere; the salt and the missing date make equal charts equal files.
    with plain_text(), mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": chart.title}):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(chart.curves):
            _draw_curve(axes, curve, theme.series[index % len(theme.series)], dashed=index % 2 == 1)
        if all(value > 0 for curve in chart.curves for _, value in curve.points):
            use_log_scale(axes)
        _style(axes, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Centred mean over `width` values (odd), over fewer of them at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _pair(history: History, quantity: str) -> list[Curve]:
    return [
        Curve("student", _points(history, f"student_{quantity}")),
        Curve("fake score", _points(history, f"fake_{quantity}")),
    ]


def _points(history: History, key: str) -> Points:
    """(iteration, value) wherever the value was measured and finite."""
    found: Points = []
    for record in history:
        iteration, value = record.get("iteration"), record.get(key)
        if iteration is not None and value is not None:
            found.append((iteration, value))
    return found


def _draw_curve(axes: Axes, curve: Curve, colour: str, *, dashed: bool) -> None:
    iterations, values = [point[0] for point in curve.points], [point[1] for point in curve.points]
    axes.plot(iterations, values, color=colour, linewidth=0.7, alpha=0.35)
    smooth = running_mean(values, 2 * (len(values) // 24) + 1)
    style = (0, (4, 1.5)) if dashed else "-"
    marker = "o" if len(values) == 1 else None
    axes.plot(iterations, smooth, color=colour, linewidth=2, linestyle=style, marker=marker, label=curve.label)


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_xlabel("iteration", color=theme.ink, fontsize=10)
    use_theme(axes, theme)
    # Above the axes, where it hides no curve.
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=10, borderaxespad=0.2,
        labelcolor=theme.ink, handlelength=2.2, columnspacing=1.4,
    )  # fmt: skip


def use_theme(axes: Axes, theme: Theme) -> None:
    """Colours of the page, a grid behind the curves, no frame above and to the right."""
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)


def use_log_scale(axes: Axes) -> None:
    """A logarithmic axis labelled at 1, 2 and 5 times the powers of ten, without exponents."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
