"""The report's page: pictures first, then numbers, then how they were made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import yaml

from rmd.core.plan import Step, StepPlan
from rmd.evaluate.rows import STUDENT, TEACHER, Bounds, Motion, Report, Row
from rmd.report.gallery import Pictures, check_grids, curves, panels, samples
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.notes import (
    ATTRIBUTES_NOTE,
    JUDGE_NOTE,
    MEASURE_NOTES,
    MOTION_NOTES,
    PANEL_ROWS,
    PANELS_NOTE,
    SAMPLES_NOTE,
)
from rmd.report.tables import SMOKE, bounds, decimals, duration, fixed, percent, significant

_MEASURES = (
    "",
    "Network evaluations",
    "s/image, denoiser",
    "Speed-up",
    "s/image, end to end",
    "All attributes right",
    "Kernel distance",
    "Kernel distance to teacher",
    "Fréchet distance",
    "Fine detail",
    "Diversity",
)
_MOTION = ("", "Motion right", "Speed right", "Moves", "Flicker", "Kernel distance of changes")


def page(report: Report, pictures: Pictures) -> str:
    """The whole page as HTML.

    Raises:
        RMDError: a grid that is of no row, is no batch of pictures, or does not have one picture a prompt.
    """
    check_grids(report, pictures.grids)
    plan = report.step_plan
    sizes = ", then ".join(stage.size for stage in plan.stages)
    heading = f"RMD: {len(plan.steps)} step{'s' * (len(plan.steps) > 1)}, {sizes} pixels"
    config = report.model_dump(mode="json")["config"]
    return render(
        "report.html.j2",
        title=f"Smoke run, numbers mean nothing. {heading}" if report.quick else heading,
        heading=heading,
        report=report,
        headline=_headline(report),
        samples=samples(report, pictures.grids),
        measures=_measures(report),
        motion=_motion(report.rows),
        attributes=_attributes(report.rows),
        curves=curves(report),
        panels=panels(pictures.panels),
        plan_plot=image_data("png", pictures.plan_png),
        plan=_plan(plan),
        making=_making(report),
        recipe=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        significant=significant,
        smoke=SMOKE,
        samples_note=SAMPLES_NOTE,
        judge_note=JUDGE_NOTE,
        measure_notes=(*MEASURE_NOTES, *(MOTION_NOTES if report.moving else ())),
        attributes_note=ATTRIBUTES_NOTE,
        panels_note=PANELS_NOTE,
        panel_rows=PANEL_ROWS,
    )


def _headline(report: Report) -> dict[str, dict[str, str]] | None:
    """Return the numbers of the page's first sentences; None for a smoke run, or without the two rows to compare."""
    student, teacher = report.find(STUDENT), report.find(TEACHER)
    if report.quick or student is None or teacher is None:
        return None
    return {"student": _told(student), "teacher": _told(teacher)}


def _told(row: Row) -> dict[str, str]:
    return {
        "nfe": f"{row.nfe:g}",
        "speedup": fixed(row.speedup),
        "right": percent(row.attributes),
        "motion": "" if row.motion is None else percent(row.motion.motion),
    }


def _measures(report: Report) -> HtmlTable:
    heads = [head.replace("image", "clip") for head in _MEASURES] if report.moving else _MEASURES
    return HtmlTable(cells(*heads), [TableRow(_measure_cells(row), row.name == STUDENT) for row in report.rows])


def _measure_cells(row: Row) -> list[Cell]:
    return [
        Cell(row.label),
        Cell(f"{row.nfe:g}"),
        Cell(significant(row.seconds_per_image)),
        Cell(f"{fixed(row.speedup)}×"),
        Cell(significant(row.seconds_end_to_end)),
        Cell(percent(row.attributes), bounds(row.attributes_ci, percent)),
        _distance(row.kernel_distance, row.kernel_distance_ci),
        _distance(row.kernel_distance_to_teacher, row.kernel_distance_to_teacher_ci),
        Cell(significant(row.frechet_distance)),
        Cell(fixed(row.high_frequency, 2)),
        Cell(significant(row.diversity)),
    ]


def _motion(rows: Sequence[Row]) -> HtmlTable:
    """Return a separate table, visible without scrolling; it has no rows if no row describes clips."""
    moving = [
        TableRow([Cell(row.label), *_motion_cells(row.motion)], row.name == STUDENT) for row in rows if row.motion
    ]
    return HtmlTable(cells(*_MOTION), moving)


def _motion_cells(motion: Motion) -> list[Cell]:
    return [
        Cell(percent(motion.motion), bounds(motion.motion_ci, percent)),
        Cell(percent(motion.speed), bounds(motion.speed_ci, percent)),
        Cell(fixed(motion.dynamics, 2)),
        Cell(f"{fixed(motion.flicker, 2)}%"),
        _distance(motion.change_distance, motion.change_distance_ci),
    ]


def _distance(value: float, ends: Bounds) -> Cell:
    digits = decimals(ends)
    return Cell(fixed(value, digits), bounds(ends, lambda end: fixed(end, digits)))


def _attributes(rows: Sequence[Row]) -> HtmlTable:
    """Return the shares of all attributes that any row has, or a table without headings if no row has any."""
    names = list(dict.fromkeys(name for row in rows for name in row.attributes_by_name))
    if not names:
        return HtmlTable((), ())
    heads = cells("", *(name.replace("_", " ") for name in names))
    return HtmlTable(heads, [TableRow(_attribute_cells(row, names), row.name == STUDENT) for row in rows])


def _attribute_cells(row: Row, names: Sequence[str]) -> list[Cell]:
    shares = row.attributes_by_name
    return cells(row.label, *(percent(shares[name]) if name in shares else "" for name in names))


def _plan(plan: StepPlan) -> HtmlTable:
    heads = cells("Step", "Stage", "Pixels", "Teacher time", "Student time", "logSNR")
    return HtmlTable(heads, [TableRow(_plan_cells(plan, step)) for step in plan.steps])


def _plan_cells(plan: StepPlan, step: Step) -> list[Cell]:
    return cells(
        str(step.index),
        str(step.stage),
        plan.stage_of(step).size,
        fixed(step.teacher_time),
        fixed(step.model_time),
        fixed(step.logsnr, 2) if math.isfinite(step.logsnr) else "pure noise",
    )


def _making(report: Report) -> HtmlTable:
    facts = {
        "Time of the whole run": duration(report.seconds),
        "Peak memory": f"{fixed(report.peak_memory_gb, 2)} GB",
        "Samples a row": str(report.n),
        "Seed": str(report.seed),
        "Student’s denoising time outside the network": percent(report.overhead),
    }
    told = [*facts.items(), *report.versions.items()]
    return HtmlTable((), [TableRow(cells(name, value)) for name, value in told])
