"""The report's page: samples first, then numbers, then how they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import yaml
from PIL import Image
from torch import Tensor

from rmd.core.plan import Step, StepPlan
from rmd.evaluation.metrics import Metric, metrics_in
from rmd.evaluation.rows import STUDENT, TEACHER, Report, Row
from rmd.report.gallery import check_grids, curves, panels, samples
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.tables import MISSING, SMOKE, bounds, duration, fixed, percent, significant, writer

COST = ("", "Network evaluations", "s/{sample}, denoiser", "Speed-up", "s/{sample}, end to end")
"""Headings of the columns before the metrics."""


def page(
    report: Report, grids: Mapping[str, Tensor], pictures: Sequence[tuple[int, Image.Image]], plan_png: bytes
) -> str:
    """Return the whole page as HTML; for the arguments, see `rmd.report.write_report`.

    Raises:
        RMDError: a grid belongs to no row, is not a batch of pictures, or does not have one picture per prompt.
    """
    check_grids(report, grids)
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
        samples=samples(report, grids),
        measures=_tables(report),
        attributes=_attributes(report.rows),
        curves=curves(report),
        panels=panels(pictures),
        plan_plot=image_data("png", plan_png),
        plan=_plan(plan),
        making=_making(report),
        recipe=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        significant=significant,
        smoke=SMOKE,
        measure_notes=[(each.heading or each.title, each.note) for each in _metrics(report.rows) if each.note],
    )


def _metrics(rows: Sequence[Row]) -> list[Metric]:
    return metrics_in(row.measures for row in rows)


def _headline(report: Report) -> dict[str, object] | None:
    """Return the numbers of the page's first sentences; None for a smoke run, or if one of the two rows is missing."""
    student, teacher = report.find(STUDENT), report.find(TEACHER)
    if report.quick or student is None or teacher is None:
        return None
    claims = []
    for metric in _metrics([student]):
        if metric.claim and metric.name in teacher.measures:
            before, _, after = metric.claim.partition("{}")
            values = (_value(metric, row).text for row in (student, teacher))
            claims.append((before, *values, after))
    return {
        "nfe": f"{student.nfe:g}",
        "teacher_nfe": f"{teacher.nfe:g}",
        "speedup": fixed(student.speedup),
        "claims": claims,
    }


def _tables(report: Report) -> list[HtmlTable]:
    """Return the table of costs and metrics, and one for each group of metrics, visible without scrolling."""
    sample = "clip" if report.moving else "image"
    metrics, tables = _metrics(report.rows), []
    for group in dict.fromkeys(["", *(metric.group for metric in metrics)]):
        its = [metric for metric in metrics if metric.group == group]
        costs = COST if not group else COST[:1]
        heads = [*(head.format(sample=sample) for head in costs), *(metric.heading or metric.title for metric in its)]
        rows = [
            TableRow([*_costs(row)[: len(costs)], *(_value(metric, row) for metric in its)], row.name == STUDENT)
            for row in report.rows
        ]
        tables.append(HtmlTable(cells(*heads), rows))
    return tables


def _costs(row: Row) -> list[Cell]:
    return cells(
        row.label,
        f"{row.nfe:g}",
        significant(row.seconds_per_image),
        f"{fixed(row.speedup)}×",
        significant(row.seconds_end_to_end),
    )


def _value(metric: Metric, row: Row) -> Cell:
    """Return a cell with a value and, below it, its interval; a dash if the row lacks the metric."""
    measured = row.measures.get(metric.name)
    if measured is None:
        return Cell(MISSING)
    write = writer(metric, measured)
    interval = "" if measured.interval is None else bounds(measured.interval, write)
    return Cell(write(measured.value) + metric.unit, interval)


def _parts(row: Row) -> dict[str, float]:
    return {name: share for measured in row.measures.values() for name, share in measured.parts.items()}


def _attributes(rows: Sequence[Row]) -> HtmlTable:
    """Return the shares of all attributes that any row has, or a table without headings if no row has any."""
    names = list(dict.fromkeys(name for row in rows for name in _parts(row)))
    if not names:
        return HtmlTable((), ())
    heads = cells("", *(name.replace("_", " ") for name in names))
    lines = []
    for row in rows:
        shares = _parts(row)
        written = (percent(shares[name]) if name in shares else "" for name in names)
        lines.append(TableRow(cells(row.label, *written), row.name == STUDENT))
    return HtmlTable(heads, lines)


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
        "Samples per row": str(report.n),
        "Seed": str(report.seed),
        "Student’s sampling time outside the network": percent(report.overhead),
    }
    lines = [*facts.items(), *report.versions.items()]
    return HtmlTable((), [TableRow(cells(name, value)) for name, value in lines])
