"""The report's table and checks as text: for a terminal and for Markdown; and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmd.common.markdown import markdown_lines, markdown_text, one_line
from rmd.evaluate.rows import STUDENT, Bounds, Check, Motion, Report, Row

SMOKE = "Smoke run: everything ran, but its numbers mean nothing."


def fixed(value: float, digits: int = 1) -> str:
    """The number with that many decimals, and never a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def significant(value: float, digits: int = 3) -> str:
    """The number with that many significant digits and no exponent."""
    if value == 0:
        return "0"
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def percent(share: float) -> str:
    return f"{fixed(100 * share)}%"


def bounds(interval: Bounds, write: Callable[[float], str] = fixed) -> str:
    return f"[{write(interval[0])}, {write(interval[1])}]"


def decimals(interval: Bounds) -> int:
    """How many decimals a distance with this interval is worth."""
    size = max(abs(end) for end in interval)
    return 0 if size >= 100 else 1 if size >= 10 else 2


def duration(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 6 min 5 s, 2 h 3 min."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class _Column:
    """A column of the text tables: its heading, and what it says of a row."""

    title: str
    write: Callable[[Row], str]


def _distance(value: float, ends: Bounds) -> str:
    digits = decimals(ends)
    return f"{fixed(value, digits)} {bounds(ends, lambda end: fixed(end, digits))}"


_COST: Sequence[_Column] = (
    _Column("NFE", lambda row: f"{row.nfe:g}"),
    _Column("s/image", lambda row: significant(row.seconds_per_image)),
    _Column("speed-\nup", lambda row: f"{fixed(row.speedup)}x"),
    _Column("all\nright", lambda row: percent(row.attributes)),
)
_MOTION: Sequence[_Column] = (
    _Column("motion", lambda row: _of(row, lambda motion: percent(motion.motion))),
    _Column("speed", lambda row: _of(row, lambda motion: percent(motion.speed))),
    _Column("moves", lambda row: _of(row, lambda motion: fixed(motion.dynamics, 2))),
    _Column("flicker", lambda row: _of(row, lambda motion: fixed(motion.flicker, 2))),
)
_DISTANCE: Sequence[_Column] = (
    _Column("kernel distance", lambda row: _distance(row.kernel_distance, row.kernel_distance_ci)),
    _Column(
        "to\nteacher",
        lambda row: fixed(row.kernel_distance_to_teacher, decimals(row.kernel_distance_to_teacher_ci)),
    ),
)
_CHANGES = _Column(
    "of\nchanges", lambda row: _of(row, lambda m: fixed(m.change_distance, decimals(m.change_distance_ci)))
)
_LOOKS: Sequence[_Column] = (
    _Column("detail", lambda row: fixed(row.high_frequency, 2)),
    _Column("diversity", lambda row: significant(row.diversity)),
)


def _of(row: Row, write: Callable[[Motion], str]) -> str:
    return "" if row.motion is None else write(row.motion)


def _columns(moving: bool) -> Sequence[_Column]:
    if not moving:
        return (*_COST, *_DISTANCE, *_LOOKS)
    cost = [_Column(column.title.replace("image", "clip"), column.write) for column in _COST]
    return (*cost, *_MOTION, *_DISTANCE, _CHANGES, _LOOKS[0])


_GAP = 2
"""Characters between columns."""
_LEGEND = (
    "NFE: network evaluations per image. s/image: of the denoiser alone. All right: every attribute of the "
    "caption, says the judge. Kernel distance: to rendered scenes on the judge's features, x1000, with its "
    "95% interval; to teacher: the same to the teacher's samples. Detail: finest detail over that of "
    "renders. Diversity: distance between samples of one prompt."
)
_CLIP_LEGEND = (
    "NFE: network evaluations per clip. s/clip: of the denoiser alone. All right: frames with every attribute of the "
    "caption, says the judge. Motion: clips that move as asked; speed: with the right speed too; moves: how much, over "
    "what was asked. Flicker: change where nothing moves, in % of the range. Kernel distance: of frames to "
    "rendered ones on the judge's features, x1000, with its 95% interval; to teacher: the same to the teacher's; of "
    "changes: of what changes from frame to frame. Detail: finest detail over that of renders."
)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Print one line a sampler, how clips move below it, and what the columns are.

    Whole in 100 columns; a narrower console gets what does not fit below, never a part of a number.
    """
    moving = any(row.motion is not None for row in rows)
    columns = [column for column in _columns(moving) if column not in _MOTION]
    groups = [*_fitting(rows, columns, console.width), *(_fitting(rows, _MOTION, console.width) if moving else ())]
    for i, group in enumerate(groups):
        if i > 0:
            console.print()
        console.print(_table(rows, group))
    console.print(Text(f"\n{_CLIP_LEGEND if moving else _LEGEND}", style="dim"))


def _fitting(rows: Sequence[Row], columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in their order, parted so that each part fits beside the names."""
    names = max(len(one_line(row.name)) for row in rows)
    parts: list[list[_Column]] = []
    free = 0
    for column in columns:
        wide = _GAP + max(len(line) for line in (*column.title.split("\n"), *map(column.write, rows)))
        if wide > free:
            parts.append([])
            free = width - names
        parts[-1].append(column)
        free -= wide
    return parts


def _table(rows: Sequence[Row], columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        # Text, not str: brackets of an interval are not rich's markup.
        cells = [Text(one_line(row.name)), *(Text(column.write(row)) for column in columns)]
        table.add_row(*cells, style="bold" if row.name == STUDENT else None)
    return table


def print_table(report: Report, console: Console) -> None:
    """Print the rows and, below, the checks."""
    if report.quick:
        console.print(Text(SMOKE, style="bold"))
    print_rows(report.rows, console)
    if report.checks:
        console.print()
    for check in report.checks:
        console.print(_check_line(check))


def markdown_table(report: Report) -> str:
    """The same table in Markdown, with the rows' labels; the student's row is bold."""
    columns = _columns(report.moving)
    titles = ["", *(column.title.replace("-\n", "-").replace("\n", " ") for column in columns)]
    rows = []
    for row in report.rows:
        cells = [markdown_text(row.label), *(column.write(row) for column in columns)]
        rows.append([f"**{cell}**" if cell else "" for cell in cells] if row.name == STUDENT else cells)
    return markdown_lines(titles, rows) + "\n"


def _check_line(check: Check) -> Text:
    mark = Text("pass", style="green") if check.passed else Text("MISS", style="bold red")
    told = f"{one_line(check.name)}: {significant(check.measured)} (target: {one_line(check.target)})"
    return Text.assemble(mark, f"  {told}")
