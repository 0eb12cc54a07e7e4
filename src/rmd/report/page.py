"""The report's page: pictures first, then numbers, then how they were made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import yaml

from rmd.plan import Step, StepPlan
from rmd.report.gallery import Pictures, check_grids, curves, panels, samples
from rmd.report.html import folded, image_data, items, section, table
from rmd.report.model import STUDENT, TEACHER, Bounds, Check, Motion, Report, Row
from rmd.report.notes import ATTRIBUTES_NOTE, JUDGE_NOTE, MEASURE_NOTES, MOTION_NOTES
from rmd.report.tables import SMOKE, bounds, decimals, duration, fixed, percent, significant
from rmd.report.template import PAGE, STYLE

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
    title = f"RMD: {len(plan.steps)} step{'s' * (len(plan.steps) > 1)}, {sizes} pixels"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="smoke">{SMOKE}</p>' if report.quick else "",
        _headline(report),
        samples(report, pictures.grids),
        _measures(report),
        _checks(report.checks),
        _attributes(report.rows),
        curves(report),
        panels(pictures.panels),
        _plan(plan, pictures.plan_png),
        _making(report),
    ]
    full_title = f"Smoke run, numbers mean nothing. {title}" if report.quick else title
    body = "\n".join(filter(None, sections))
    return PAGE.substitute(title=escape(full_title), style=STYLE, body=body)


def _headline(report: Report) -> str:
    """What the run came to, in two sentences; nothing of a smoke run, or without the two rows to compare."""
    student, teacher = report.find(STUDENT), report.find(TEACHER)
    if report.quick or student is None or teacher is None:
        return ""
    return (
        f"<p>The distilled student needs <b>{student.nfe:g}</b> network evaluations for "
        f"{'a clip' if report.moving else 'an image'} where its "
        f"teacher needs <b>{teacher.nfe:g}</b>, and denoises <b>{fixed(student.speedup)} times</b> as fast. "
        f"Every attribute of the caption is right in <b>{percent(student.attributes)}</b> of its "
        f"{'frames' if report.moving else 'pictures'} (teacher: {percent(teacher.attributes)}).{_moves(report)}</p>"
    )


def _moves(report: Report) -> str:
    student, teacher = report.find(STUDENT), report.find(TEACHER)
    if student is None or teacher is None or student.motion is None or teacher.motion is None:
        return ""
    return (
        f" Its clips move as asked in <b>{percent(student.motion.motion)}</b> of the cases "
        f"(teacher: {percent(teacher.motion.motion)})."
    )


def _measures(report: Report) -> str:
    explained = (*MEASURE_NOTES, *(MOTION_NOTES if report.moving else ()))
    notes = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in explained)
    heads = [head.replace("image", "clip") for head in _MEASURES] if report.moving else _MEASURES
    rows = [(_measure_cells(row), row.name == STUDENT) for row in report.rows]
    return section(
        "What was measured",
        f'<p class="soft">{report.n} samples a row, seed {report.seed}; in small print, 95% confidence intervals. '
        f"{JUDGE_NOTE}</p>\n{table(heads, rows)}\n{_motion(report.rows)}\n"
        + folded("What the columns mean", f'<dl class="notes">\n{notes}\n</dl>'),
    )


def _measure_cells(row: Row) -> list[str]:
    return [
        escape(row.label),
        f"{row.nfe:g}",
        significant(row.seconds_per_image),
        f"{fixed(row.speedup)}×",
        significant(row.seconds_end_to_end),
        f"{percent(row.attributes)}<small>{bounds(row.attributes_ci, percent)}</small>",
        _distance(row.kernel_distance, row.kernel_distance_ci),
        _distance(row.kernel_distance_to_teacher, row.kernel_distance_to_teacher_ci),
        significant(row.frechet_distance),
        fixed(row.high_frequency, 2),
        significant(row.diversity),
    ]


def _motion(rows: Sequence[Row]) -> str:
    """A table of its own, which is seen without scrolling; nothing where no row is of clips."""
    moving = [([escape(row.label), *_motion_cells(row.motion)], row.name == STUDENT) for row in rows if row.motion]
    return table(_MOTION, moving) if moving else ""


def _motion_cells(motion: Motion) -> list[str]:
    return [
        f"{percent(motion.motion)}<small>{bounds(motion.motion_ci, percent)}</small>",
        f"{percent(motion.speed)}<small>{bounds(motion.speed_ci, percent)}</small>",
        fixed(motion.dynamics, 2),
        f"{fixed(motion.flicker, 2)}%",
        _distance(motion.change_distance, motion.change_distance_ci),
    ]


def _distance(value: float, ends: Bounds) -> str:
    digits = decimals(ends)
    return f"{fixed(value, digits)}<small>{bounds(ends, lambda end: fixed(end, digits))}</small>"


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    met = sum(check.passed for check in checks)
    lines = [_check(check) for check in checks]
    return section(f"Targets: {met} of {len(checks)} met", items("checks", lines))


def _check(check: Check) -> str:
    mark = '<b class="met">✓ met</b>' if check.passed else '<b class="missed">✗ missed</b>'
    return (
        f"{mark}<span>{escape(check.name)}: <b>{significant(check.measured)}</b> "
        f'<span class="soft">(target: {escape(check.target)})</span></span>'
    )


def _attributes(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.attributes_by_name))
    if not names:
        return ""
    body = [(_attribute_cells(row, names), row.name == STUDENT) for row in rows]
    heads = ["", *(escape(name.replace("_", " ")) for name in names)]
    return section("Which attributes go wrong", f'<p class="soft">{ATTRIBUTES_NOTE}</p>\n{table(heads, body)}')


def _attribute_cells(row: Row, names: Sequence[str]) -> list[str]:
    shares = row.attributes_by_name
    return [escape(row.label), *(percent(shares[name]) if name in shares else "" for name in names)]


def _plan(plan: StepPlan, plan_png: bytes) -> str:
    heads = ["Step", "Stage", "Pixels", "Teacher time", "Student time", "logSNR"]
    rows = [(_plan_cells(plan, step), False) for step in plan.steps]
    plot = f'<img src="{image_data("png", plan_png)}" alt="logSNR of stages and steps over the teacher time">'
    return section("The plan", f'<figure class="plot">{plot}</figure>\n<div class="narrow">{table(heads, rows)}</div>')


def _plan_cells(plan: StepPlan, step: Step) -> list[str]:
    return [
        str(step.index),
        str(step.stage),
        plan.stage_of(step).size,
        fixed(step.teacher_time),
        fixed(step.model_time),
        fixed(step.logsnr, 2) if math.isfinite(step.logsnr) else "pure noise",
    ]


def _making(report: Report) -> str:
    facts = [
        ["Time of the whole run", duration(report.seconds)],
        ["Peak memory", f"{fixed(report.peak_memory_gb, 2)} GB"],
        ["Samples a row", str(report.n)],
        ["Seed", str(report.seed)],
        ["Student’s denoising time outside the network", percent(report.overhead)],
        *([escape(name), escape(version)] for name, version in report.versions.items()),
    ]
    config = report.model_dump(mode="json")["config"]
    recipe = escape(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return section(
        "How it was made",
        f'<div class="narrow">{table([], [(fact, False) for fact in facts])}</div>\n'
        + folded("The recipe, in full", f"<pre>{recipe}</pre>"),
    )
