"""Learning curves as SVG, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from rmd.report.plotting import COLOURS, drawing, svg

History = Sequence[Mapping[str, float | None]]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Theme:
    """Colours of text and lines on a page; those of `series` are distinguishable by colour-blind people."""

    ink: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(ink="#30363d", grid="#d8dde3", series=COLOURS)
# The same hues, lighter where the contrast with a dark page would be too low.
DARK = Theme(ink="#c9d1d9", grid="#3a424b", series=("#56B4E9", "#E69F00", "#2FBF8F", "#CC79A7", "#F0E442", "#D55E00"))


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves over the iterations with a common axis."""

    title: str
    caption: str
    curves: Sequence[Curve]


def charts(history: History) -> list[Chart]:
    """Return the charts of a history: losses, gradient norms, and the gap between the two scores by stage."""
    stages = sorted({stage for record in history if (stage := record.get("stage")) is not None})
    gaps = [
        Curve(f"stage {stage:g}", _points([r for r in history if r.get("stage") == stage], "gap")) for stage in stages
    ]
    every = [
        Chart(
            "Loss",
            "The losses of distribution matching do not show quality, but a jump shows a problem.",
            _pair(history, "loss"),
        ),
        Chart("Gradient norm", "Before clipping.", _pair(history, "grad_norm")),
        Chart(
            "Gap between the scores",
            "Mean difference between the teacher’s and the fake score’s predictions for the student’s samples.",
            gaps or [Curve("gap", _points(history, "gap"))],
        ),
    ]
    drawn = [Chart(c.title, c.caption, [curve for curve in c.curves if curve.points]) for c in every]
    return [chart for chart in drawn if chart.curves]


def draw(chart: Chart, theme: Theme) -> bytes:
    """Draw a chart as SVG without a background: thin lines for the measurements, thick lines for their running mean."""
    with drawing(chart.title):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, curve in enumerate(chart.curves):
            _draw_curve(axes, curve, theme.series[index % len(theme.series)], dashed=index % 2 == 1)
        if all(value > 0 for curve in chart.curves for _, value in curve.points):
            use_log_scale(axes)
        _style(axes, theme)
        return svg(figure)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the centred mean over `width` values (odd), and over fewer at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _pair(history: History, quantity: str) -> list[Curve]:
    return [
        Curve("student", _points(history, f"student_{quantity}")),
        Curve("fake score", _points(history, f"fake_{quantity}")),
    ]


def _points(history: History, key: str) -> Points:
    """Return (iteration, value) for every record with a finite value."""
    points: Points = []
    for record in history:
        iteration, value = record.get("iteration"), record.get(key)
        if iteration is not None and value is not None:
            points.append((iteration, value))
    return points


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
    # Above the axes, where it covers no curve.
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=10, borderaxespad=0.2,
        labelcolor=theme.ink, handlelength=2.2, columnspacing=1.4,
    )  # fmt: skip


def use_theme(axes: Axes, theme: Theme) -> None:
    """Apply a theme: the page's colours, a grid behind the curves, and no frame at the top and right."""
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)


def use_log_scale(axes: Axes) -> None:
    """Make the vertical axis logarithmic, labelled at 1, 2 and 5 times the powers of ten, without exponents."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
