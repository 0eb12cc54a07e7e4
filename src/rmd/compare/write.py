"""Writes a comparison: JSON, CSV and LaTeX for each table, one HTML page for all, and tables for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table as TextTable
from rich.text import Text

from rmd.common.errors import RMDError, shown
from rmd.common.files import write_text
from rmd.common.latex import latex_comment, latex_lines, latex_text
from rmd.common.markdown import markdown_lines, markdown_text, one_line
from rmd.compare.chart import chart
from rmd.compare.run import Line, Number, TableResult, read_results
from rmd.compare.tables import TABLES
from rmd.evaluation.metrics import Metric, metric, metrics_in, part
from rmd.evaluation.statistics import detectable, holm
from rmd.report.curves import DARK
from rmd.report.gallery import Sample
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.tables import MISSING, decimals, fixed, percent, significant

SMALL = (
    "Small budget: one seed and a short training. It shows that everything runs; conclusions need the default budget."
)
SIGNIFICANT = 0.05
Marks = Mapping[tuple[str, str], str]
"""A backbone's marks say, for a (row, measure), what is written behind its number; see `marks`."""
CSV_HEADS = (
    "backbone row plan nfe seconds_per_image speedup iterations training_evaluations measure mean low high difference "
    "p p_holm p_level seeds"
)
FORMULA = ("=", "+", "-", "@")
"""First characters by which a spreadsheet takes a cell for a formula."""


def write_tables(results: Sequence[TableResult], folder: Path) -> Path:
    """Write the files of every table, and one page with all tables of the folder; return the path of the page.

    Raises:
        RMDError: a JSON file of the folder is not a table, or a table names a picture outside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        write_text(folder / f"{result.name}.json", result.model_dump_json(indent=1) + "\n")
        write_text(folder / f"{result.name}.csv", as_csv(result))
        write_text(folder / f"{result.name}.tex", as_latex(result))
    path = folder / "compare.html"
    tables = read_results(folder)
    order = (*TABLES, *tables)
    write_text(path, as_page(sorted(tables.values(), key=lambda result: order.index(result.name)), folder))
    return path


def as_text(result: TableResult, backbone: str) -> TextTable:
    """Return a backbone's table for the terminal."""
    title = Text(one_line(_title(result, backbone)))
    text = TextTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    text.add_column("")
    columns, noted = [each for each in _metrics(result.backbones[backbone]) if each.narrow], marks(result, backbone)
    for heading in ("NFE", "s/image", "speed", *(each.title for each in columns)):
        text.add_column(heading, justify="right", no_wrap=True)
    for line in result.backbones[backbone]:
        numbers = [_shown(each, line, noted, interval=each.direction != "none") for each in columns]
        style = "bold" if line.name == result.against else None
        cost = (f"{line.nfe:g}", significant(line.seconds_per_image), _speed(line))
        # Text, not str: rich would interpret markup in a label.
        text.add_row(*map(Text, (one_line(line.label), *cost, *numbers)), style=style)
    text.caption = Text(one_line(_caption(result)))
    return text


def as_csv(result: TableResult) -> str:
    """Return one line per row, backbone and metric; a `'` precedes text that a spreadsheet would read as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADS.split())
    corrected = adjusted(result)
    for backbone, lines in result.backbones.items():
        for line in lines:
            names = [csv_text(text) for text in (backbone, line.name, line.plan)]
            costs = [line.nfe, line.seconds_per_image, line.speedup, line.iterations, line.evaluations]
            for name, number in (line.numbers | line.parts).items():
                values = [number.mean, number.low, number.high, number.difference, number.p]
                values += [corrected.get((backbone, line.name, name)), number.level, len(number.values)]
                row = (*names, *costs, csv_text(name), *values)
                writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def csv_text(text: str) -> str:
    """Return text for a cell, on one line; a `'` precedes text that a spreadsheet would compute as a formula."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) else line


def as_latex(result: TableResult) -> str:
    """Return a tabular per backbone, which needs no package; text is escaped, so LaTeX prints it literally."""
    parts = [latex_comment(_title(result, ", ".join(result.backbones))), latex_comment(_caption(result))]
    for backbone, lines in result.backbones.items():
        heads, papers, rows = _grid(lines, marks(result, backbone))
        texts = [[latex_text(cell) for cell in (*row, *theirs)] for row, theirs in rows]
        parts += [latex_comment(backbone), latex_lines([latex_text(head) for head in (*heads, *papers)], texts), ""]
    return "\n".join(parts)


def as_markdown(result: TableResult, backbone: str) -> str:
    """Return a backbone's table in Markdown, with a line below it that says how it was measured."""
    lines = result.backbones[backbone]
    heads, papers, grid = _grid(lines, marks(result, backbone))
    rows = []
    for line, ((label, *numbers), theirs) in zip(lines, grid, strict=True):
        name = markdown_text(label)
        if line.name == result.against and name:
            name = f"**{name}**"
        rows.append([name, *(number.replace("*", r"\*") for number in numbers), *map(markdown_text, theirs)])
    columns = [markdown_text(head) for head in (*heads, *(f"paper: {name}" for name in papers))]
    return f"{markdown_lines(columns, rows)}\n\n{markdown_text(_caption(result))}\n"


def as_page(results: Sequence[TableResult], folder: Path) -> str:
    """Return one self-contained page with all tables and their pictures.

    Raises:
        RMDError: a table names a picture outside the folder `pictures`.
    """
    return render(
        "compare.html.j2",
        title="RMD compared, in miniature",
        small=SMALL if any(result.budget == "small" for result in results) else "",
        parts=[_part(result, backbone, folder) for result in results for backbone in result.backbones],
    )


def adjusted(result: TableResult, test: Literal["p", "level"] = "p") -> dict[tuple[str, str, str], float]:
    """Return p by (backbone, row, measure), adjusted by Holm's method over all rows and backbones of the table.

    Each measure is a family of its own.

    Args:
        test: the field of a number: `p`, whether the row differs, or `level`, whether it is level.
    """
    raw: dict[str, dict[tuple[str, str], float]] = {}
    for backbone, lines in result.backbones.items():
        for line in lines:
            for name, number in (line.numbers | line.parts).items():
                p = number.p if test == "p" else number.level
                if p is not None:
                    raw.setdefault(name, {})[backbone, line.name] = p
    return {
        (*row, name): p
        for name, family in raw.items()
        for row, p in zip(family, holm(list(family.values())), strict=True)
    }


def marks(result: TableResult, backbone: str) -> Marks:
    """Return a backbone's marks: `*` where a row differs significantly, `=` where it is level, `*=` for both.

    A difference that is small but certain is both.
    """
    found: dict[tuple[str, str], str] = {}
    for mark, ps in (("*", adjusted(result)), ("=", adjusted(result, "level"))):
        for (kind, row, name), p in ps.items():
            if kind == backbone and p < SIGNIFICANT:
                found[row, name] = found.get((row, name), "") + mark
    return found


def number_text(metric: Metric, number: Number, *, interval: bool = True, mark: str = "") -> str:
    """Write a number as `52.6% [47.6, 57.5]`, with a mark behind it."""
    digits = decimals((number.mean, number.low or 0.0, number.high or 0.0))
    write = percent if metric.shown == "percent" else lambda value: fixed(value, digits)
    text = write(number.mean)
    if interval and number.low is not None and number.high is not None:
        low, high = (write(end).removesuffix("%") for end in (number.low, number.high))
        text += f" [{low}, {high}]"
    return text + mark


def _part(result: TableResult, backbone: str, folder: Path) -> dict[str, object]:
    """Return one backbone's part of the page; `light` and `dark` are empty if the table has no chart."""
    lines, noted = result.backbones[backbone], marks(result, backbone)
    light, dark = chart(result, backbone), chart(result, backbone, theme=DARK)
    return {
        "title": _title(result, backbone),
        "question": result.question,
        "chart_title": result.title,
        "light": "" if light is None else image_data("svg+xml", light),
        "dark": "" if dark is None else image_data("svg+xml", dark),
        "numbers": _numbers(result, lines, noted),
        "caption": _caption(result),
        "by_attribute": _by_attribute(result, lines, noted),
        "pictures": [picture for line in lines if (picture := _picture(line, folder / "pictures")) is not None],
        "prompts": lines[0].prompts,
    }


def _numbers(result: TableResult, lines: Sequence[Line], noted: Marks) -> HtmlTable:
    papers, metrics = _paper_columns(lines), _metrics(lines)
    heads = cells("", "NFE", "s/image", "speed", "trained", *(each.title for each in metrics))
    heads += [Cell(f"paper: {name}", soft=True) for name in papers]
    rows = []
    for line in lines:
        row = [Cell(line.label, line.plan), Cell(f"{line.nfe:g}")]
        row += cells(significant(line.seconds_per_image), _speed(line))
        row += cells("" if line.iterations is None else f"{line.iterations} it.")
        row += [_cell(_shown(each, line, noted)) for each in metrics]
        row += [Cell(line.paper.get(name, ""), soft=True) for name in papers]
        rows.append(TableRow(row, line.name == result.against))
    return HtmlTable(heads, rows)


def _by_attribute(result: TableResult, lines: Sequence[Line], noted: Marks) -> HtmlTable:
    names = list(lines[0].parts)
    rows = []
    for line in lines:
        shares = [
            _cell(number_text(part(name), line.parts[name], mark=noted.get((line.name, name), ""))) for name in names
        ]
        rows.append(TableRow([Cell(line.label), *shares], line.name == result.against))
    return HtmlTable(cells("", *(part(name).title for name in names)), rows)


def _picture(line: Line, folder: Path) -> Sample | None:
    """Return the picture of a row, or None if it is no longer in the folder.

    Raises:
        RMDError: the table names a file outside the folder; a page that is passed on must not contain such a file.
    """
    if line.picture is None:
        return None
    if Path(line.picture).name != line.picture or not line.picture.endswith(".png"):
        raise RMDError(
            f"the row {shown(line.name)} names {shown(line.picture)} as its picture, which is not a PNG file in "
            f"{folder}: compute the table again"
        )
    path = folder / line.picture
    return Sample(image_data("png", path.read_bytes()), line.label) if path.is_file() else None


def _grid(lines: Sequence[Line], noted: Marks) -> tuple[list[str], list[str], list[tuple[list[str], list[str]]]]:
    """Return a backbone's table as text: headings, those of the paper's columns, and the cells of either per row."""
    metrics, papers = _metrics(lines), _paper_columns(lines)
    rows = [
        (
            [line.label, f"{line.nfe:g}", _speed(line), *(_shown(each, line, noted) for each in metrics)],
            [line.paper.get(name, "") for name in papers],
        )
        for line in lines
    ]
    return ["", "NFE", "speed", *(each.title for each in metrics)], papers, rows


def _metrics(lines: Sequence[Line]) -> list[Metric]:
    """Return the metrics that any of the rows has."""
    return metrics_in(line.numbers for line in lines)


def _shown(metric: Metric, line: Line, noted: Marks, *, interval: bool = True) -> str:
    """Write a row's number, or a dash if the row lacks it."""
    number = line.numbers.get(metric.name)
    if number is None:
        return MISSING
    return number_text(metric, number, interval=interval, mark=noted.get((line.name, metric.name), ""))


def _speed(line: Line) -> str:
    return f"{fixed(line.speedup, 2)}x"


def _cell(text: str) -> Cell:
    """Return a cell with a number and, below it, its interval."""
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return Cell(text)
    interval, _, mark = rest.partition("]")
    return Cell(value + mark, f"[{interval}]")


def _title(result: TableResult, backbone: str) -> str:
    return f"{result.title} ({result.source}), {backbone}-type teacher"


def _caption(result: TableResult) -> str:
    seeds = len(result.seeds)
    how = "by Student's t over seeds, and no narrower than those of the samples" if seeds > 1 else "over the samples"
    return (
        f"Budget {result.budget}: {result.evaluations} network evaluations per sample in training, {seeds} "
        f"seed{'s' * (seeds > 1)}, {result.samples} samples each. Intervals: 95 %, {how}. {_legend(result)} "
        f"{_power(result)}Speed: relative to the slowest row. Made with RMD {result.versions['rmd']}."
        + (" " + SMALL if result.budget == "small" else "")
    )  # fmt: skip


def _legend(result: TableResult) -> str:
    """Explain the marks."""
    against = next(line.label for lines in result.backbones.values() for line in lines if line.name == result.against)
    level = " or ".join(
        f"{_amount(each, each.margin)} in {each.title}"
        for each in _metrics([line for lines in result.backbones.values() for line in lines])
        if each.margin is not None
    )
    tested = f"p < {SIGNIFICANT}, paired, by Holm's method over the table's rows"
    if len(result.seeds) < 2 or not level:
        return f"*: differs from {against!r} ({tested})."
    return f"*: differs from {against!r}; =: is level with it, within {level} (two one-sided tests). Both: {tested}."


def _power(result: TableResult) -> str:
    """Say which differences the table could have shown, in the metrics that it is read by; empty for one seed."""
    parts = []
    for name in ("attributes", "kernel_distance"):
        gaps = [gap for lines in result.backbones.values() for gap in _gaps(lines, result.against, name)]
        least = detectable(gaps)
        if least is not None:
            parts.append(f"{_amount(metric(name), least)} in {metric(name).title}")
    if not parts:
        return ""
    return f"A typical row's difference is found with a probability of 80 % if it is {' or '.join(parts)}. "


def _amount(metric: Metric, difference: float) -> str:
    """Write the size of a difference: `1 point`, `2.3 points`, or `6`."""
    if metric.shown != "percent":
        return significant(difference, 2).removesuffix(".0")
    points = f"{100 * difference:.1f}".removesuffix(".0")
    return f"{points} point{'s' * (points != '1')}"


def _gaps(lines: Sequence[Line], against: str, name: str) -> list[list[float]]:
    """Return each row's differences from the row that it is compared with, by seed."""
    values = {line.name: line.numbers[name].values for line in lines if name in line.numbers}
    base = values.pop(against, ())
    return [[a - b for a, b in zip(own, base, strict=True)] for own in values.values() if len(own) == len(base)]


def _paper_columns(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.paper))
