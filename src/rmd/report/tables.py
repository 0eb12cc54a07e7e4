"""Rows and targets as text, for a terminal and for Markdown; and how numbers are written."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.markdown import markdown_lines, markdown_text, one_line
from rmd.evaluation.metrics import Metric, metrics_in
from rmd.evaluation.rows import STUDENT, Check, Measured, Report, Row

SMOKE = "Smoke run: everything ran, but its numbers mean nothing."
MISSING = "–"
"""Written where a row lacks a metric that others have."""
_GAP = 2
"""Number of characters between columns."""
_LEGEND = "NFE: network evaluations per {sample}. s/{sample}: seconds in the denoiser alone."

Bounds = tuple[float, float]


def fixed(value: float, digits: int = 1) -> str:
    """Write a number with a fixed number of decimals, and never as a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with a number of significant digits and without an exponent."""
    if value == 0:
        return "0"
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def p_text(p: float) -> str:
    """Write a p value: `0.014`, or `below 0.001`."""
    return significant(p, 2) if p >= 0.001 else "below 0.001"


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{fixed(100 * share)}%"


def bounds(interval: Bounds, write: Callable[[float], str] = fixed) -> str:
    """Write an interval in brackets."""
    return f"[{write(interval[0])}, {write(interval[1])}]"


def decimals(values: Sequence[float]) -> int:
    """Return the number of decimals that a distance deserves, by the largest of its value and the interval's ends."""
    size = max(map(abs, values))
    return 0 if size >= 100 else 1 if size >= 10 else 2


def duration(seconds: float) -> str:
    """Write a time as 48 s, 6 min 5 s or 2 h 3 min."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def writer(metric: Metric, measured: Measured) -> Callable[[float], str]:
    """Return the function that writes a metric's value and the ends of its interval."""
    if metric.shown == "percent":
        return percent
    if metric.shown == "decimals":
        return lambda value: fixed(value, 2)
    if metric.shown == "distance" and measured.interval is not None:
        digits = decimals(measured.interval)
        return lambda value: fixed(value, digits)
    return significant


@dataclass(frozen=True)
class _Column:
    """A column of the text tables: its heading, and what it says about a row."""

    title: str
    write: Callable[[Row], str]
    group: str = ""


def _columns(rows: Sequence[Row], sample: str) -> list[_Column]:
    """Return the columns of the text tables; `sample` is image or clip."""
    return [
        _Column("NFE", lambda row: f"{row.nfe:g}"),
        _Column(f"s/{sample}", lambda row: significant(row.seconds_per_image)),
        _Column("speed-up", lambda row: f"{fixed(row.speedup)}x"),
        *(_Column(each.title, _narrow(each), each.group) for each in metrics_in(row.measures for row in rows)
          if each.narrow),
    ]  # fmt: skip


def _narrow(metric: Metric) -> Callable[[Row], str]:
    def write(row: Row) -> str:
        measured = row.measures.get(metric.name)
        if measured is None:
            return MISSING
        number = writer(metric, measured)
        interval = measured.interval if metric.interval_in_narrow else None
        return number(measured.value) + ("" if interval is None else f" {bounds(interval, number)}")

    return write


def print_rows(rows: Sequence[Row], console: Console, *, sample: str = "image") -> None:
    """Print one line per row, and below it the meaning of the columns.

    A console that is too narrow gets the remaining columns in further tables, never a part of a number. Metrics of a
    group, such as motion, have a table of their own.

    Args:
        sample: what one sample is called, image or clip.
    """
    columns, printed = _columns(rows, sample), False
    for group in dict.fromkeys(column.group for column in columns):
        for part in _fitting(rows, [column for column in columns if column.group == group], console.width):
            if printed:
                console.print()
            console.print(_table(rows, part))
            printed = True
    legends = [f"{each.title.capitalize()}: {each.legend}." for each in _explained(rows)]
    legend = " ".join([_LEGEND.format(sample=sample), *legends])
    console.print(Text(f"\n{legend}", style="dim"))


def _explained(rows: Sequence[Row]) -> list[Metric]:
    return [each for each in metrics_in(row.measures for row in rows) if each.narrow and each.legend]


def _fitting(rows: Sequence[Row], columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Return the columns in their order, divided into parts that each fit beside the names."""
    names = max(len(one_line(row.name)) for row in rows)
    parts: list[list[_Column]] = []
    free = 0
    for column in columns:
        wide = _GAP + max(map(len, (*_broken(rows, column).split("\n"), *map(column.write, rows))))
        if wide > free:
            parts.append([])
            free = width - names
        parts[-1].append(column)
        free -= wide
    return parts


def _broken(rows: Sequence[Row], column: _Column) -> str:
    """Return a heading on two lines if it is longer than every number below it."""
    words = column.title.replace("-", "- ").split(" ")
    if len(words) < 2 or len(column.title) <= max(len(column.write(row)) for row in rows):
        return column.title
    *first, last = words
    return f"{' '.join(first)}\n{last}"


def _table(rows: Sequence[Row], columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(_broken(rows, column), justify="right", no_wrap=True)
    for row in rows:
        # Text, not str: rich would interpret the brackets of an interval as markup.
        cells = [Text(one_line(row.name)), *(Text(column.write(row)) for column in columns)]
        table.add_row(*cells, style="bold" if row.name == STUDENT else None)
    return table


def print_table(report: Report, console: Console) -> None:
    """Print a report's rows and, below them, its targets."""
    if report.quick:
        console.print(Text(SMOKE, style="bold"))
    print_rows(report.rows, console, sample="clip" if report.moving else "image")
    if report.checks:
        console.print()
    for check in report.checks:
        console.print(_check_line(check))


def markdown_table(report: Report) -> str:
    """Return the same table in Markdown, with the rows' labels; the student's row is bold."""
    columns = _columns(report.rows, "clip" if report.moving else "image")
    rows = []
    for row in report.rows:
        cells = [markdown_text(row.label), *(column.write(row) for column in columns)]
        rows.append([f"**{cell}**" if cell else "" for cell in cells] if row.name == STUDENT else cells)
    return markdown_lines(["", *(markdown_text(column.title) for column in columns)], rows) + "\n"


def measures_beside(student: Path) -> str:
    """Return the Markdown table of the report that `rmd demo` wrote beside a student; nothing if there is none.

    A report that cannot be read, such as one of an earlier version, is left out with a warning on standard error.
    """
    path = student.parent / "report.json"
    if not student.is_dir() or not path.is_file():
        return ""
    try:
        return markdown_table(read_model(path, Report))
    except RMDError as error:
        print(f"rmd: warning: the card has no table of measures: {error}", file=sys.stderr)
        return ""


def _check_line(check: Check) -> Text:
    mark = Text("pass", style="green") if check.passed else Text("MISS", style="bold red")
    sentence = f"{one_line(check.name)}: {significant(check.measured)} (target: {one_line(check.target)})"
    return Text.assemble(mark, f"  {sentence}")
