"""Figures: the step plan as logSNR against teacher time (after Fig. 4 of the paper)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmd.common.errors import RMDError, shown
from rmd.common.files import disk_errors, replacing
from rmd.common.markdown import one_line
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Stage, Step, StepPlan

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's palette, which colour-blind people can distinguish. Markers differ too, for prints in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LABELLED = 40
"""Largest number of steps for which their times are labelled."""
MARKERS = ("o", "s", "^", "D", "v", "P")


@contextmanager
def drawing(salt: str | None = None) -> Iterator[None]:
    """Set matplotlib's style during the block.

    Text is drawn literally: a `$` does not begin a formula, which may be invalid. With a `salt`, SVG draws text as
    paths, which look the same everywhere, and equal figures give equal files.
    """
    with mpl.rc_context({"text.parse_math": False}):
        if salt is not None:
            mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": salt})
        yield


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a background and without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def plot_plan(plan: StepPlan, schedule: NoiseSchedule, path: Path, title: str = "") -> None:
    """Draw a plan to `path` (png, svg or pdf).

    Each stage has its own logSNR curve, the teacher's shifted by -2 log r (Eq. 2), drawn thick over the teacher times
    that the stage covers. Dots on the teacher's curve are the plan's steps, which the thresholds assign to the stages;
    steps of lower stages are also drawn below, on their stage's curve. Steps are labelled with their times unless there
    are too many of them.

    Raises:
        RMDError: the format is not one of those three, or the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise RMDError(f"a plot is written to a file ending in {', '.join(FORMATS)}, not to {shown(path.name)}")
    if path.is_dir():
        raise RMDError(f"{path} is a folder: give the name of a file to draw the plan to")
    with drawing(), disk_errors(path), replacing(path) as partial:
        _figure(plan, schedule, one_line(title)).savefig(partial, dpi=160, format=path.suffix[1:].lower())


def _figure(plan: StepPlan, schedule: NoiseSchedule, title: str) -> Figure:
    # A Figure without pyplot needs no display and leaves no global state.
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    bottom, top = _limits(plan)
    axes.set(xlim=(1030, -10), ylim=(bottom, top), ylabel="logSNR", title=title)
    axes.set_xlabel("teacher time (at a step: teacher time \N{RIGHTWARDS ARROW} model time of the student)")
    _draw_thresholds(axes, plan.thresholds)
    for stage in plan.stages:
        _draw_stage(axes, plan, stage, schedule)
        _draw_steps(axes, plan, stage, bottom)
    axes.plot([], [], "o", color="black", markersize=4, label="teacher's step")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def _drop(plan: StepPlan, stage: Stage) -> float:
    """Return how far the stage's curve lies below the teacher's, 2 log r."""
    last = plan.stages[-1]
    return 2 * math.log(min(last.height, last.width) / min(stage.height, stage.width))


def _limits(plan: StepPlan) -> tuple[float, float]:
    """Return a logSNR range that shows every finite step and threshold, with room for labels and the legend."""
    own = [step.logsnr - _drop(plan, plan.stage_of(step)) for step in plan.steps]
    values = [value for value in (*own, *plan.thresholds) if math.isfinite(value)]
    return min(values, default=0.0) - 2.5, max(values, default=0.0) + 5.0


def _draw_thresholds(axes: Axes, thresholds: Sequence[float]) -> None:
    for threshold in thresholds:
        axes.axhline(threshold, color="0.4", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"threshold {threshold:g}", (0, threshold), xytext=(0, 3), textcoords="offset points",
            ha="right", color="0.3", fontsize=9,
        )  # fmt: skip


def _draw_stage(axes: Axes, plan: StepPlan, stage: Stage, schedule: NoiseSchedule) -> None:
    steps = [step for step in plan.steps if step.stage == stage.index]
    times = torch.linspace(0, 1000, 801, dtype=torch.float64)
    curve = schedule.logsnr(times) - _drop(plan, stage)
    inside = (times >= steps[-1].tau_low) & (times <= steps[0].tau_high)
    colour = COLOURS[(stage.index - 1) % len(COLOURS)]
    axes.plot(times.tolist(), curve.tolist(), color=colour, linewidth=1, alpha=0.6)
    axes.plot(
        times[inside].tolist(), curve[inside].tolist(), color=colour, linewidth=3, solid_capstyle="butt",
        label=f"stage {stage.index}: {stage.height} x {stage.width}",
    )  # fmt: skip


def _draw_steps(axes: Axes, plan: StepPlan, stage: Stage, bottom: float) -> None:
    colour = COLOURS[(stage.index - 1) % len(COLOURS)]
    marker = MARKERS[(stage.index - 1) % len(MARKERS)]
    for step in plan.steps:
        if step.stage != stage.index:
            continue
        # Pure noise has a logSNR of minus infinity: it is drawn on the lower edge.
        teacher = max(step.logsnr, bottom)
        own = max(step.logsnr - _drop(plan, stage), bottom)
        axes.plot([step.teacher_time] * 2, [teacher, own], color="0.4", linewidth=0.8, linestyle=":")
        axes.plot(
            step.teacher_time, own, marker, color=colour, markeredgecolor="white", markersize=9,
            clip_on=False, zorder=3,
        )  # fmt: skip
        axes.plot(step.teacher_time, teacher, "o", color="black", markersize=4, clip_on=False, zorder=4)
        if len(plan.steps) > LABELLED:
            continue
        axes.annotate(
            _label(step), (step.teacher_time, own), xytext=(8, -5) if own > bottom else (16, 6),
            textcoords="offset points", va="top" if own > bottom else "bottom", fontsize=9, zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip


def _label(step: Step) -> str:
    times = f"{step.teacher_time:.0f}"
    if abs(step.model_time - step.teacher_time) > 0.5:
        times += f" \N{RIGHTWARDS ARROW} {step.model_time:.0f}"
    return times if math.isfinite(step.logsnr) else f"{times}, pure noise"
