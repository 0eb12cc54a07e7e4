"""Writes a comparison: JSON, CSV and LaTeX a table, one HTML page for all, and a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table as TextTable
from rich.text import Text

from rmd.common.errors import RMDError, shown
from rmd.common.files import write_text
from rmd.common.markdown import markdown_lines, markdown_text, one_line
from rmd.compare.chart import chart
from rmd.compare.run import Line, Number, TableResult, read_results
from rmd.compare.tables import TABLES
from rmd.evaluate.statistics import MEASURES, Measure, part
from rmd.report.curves import DARK
from rmd.report.gallery import Sample
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.tables import fixed, percent, significant

TITLE = "RMD compared, in miniature"
SMALL = (
    "Small budget: one seed and a short training. It shows that everything runs; conclusions need the default budget."
)
PAPER = (
    "Grey columns are the paper's own numbers, of other models and measures: look at their order, not at their size."
)
SIGNIFICANT = 0.05
FORMULA = ("=", "+", "-", "@")
"""Characters that make a spreadsheet read a cell as a formula."""


@dataclass(frozen=True)
class PagePart:
    """One backbone's part of a table on the page; `light` and `dark` are empty for a table without a chart."""

    title: str
    question: str
    chart_title: str
    light: str
    dark: str
    numbers: HtmlTable
    caption: str
    by_attribute: HtmlTable
    pictures: Sequence[Sample]
    prompts: Sequence[str]


def write_tables(results: Sequence[TableResult], folder: Path) -> Path:
    """Write every table's files, and a page of all tables that the folder has; returns the page.

    Raises RMDError if one of the folder's JSON files is no table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        write_text(folder / f"{result.name}.json", result.model_dump_json(indent=1) + "\n")
        write_text(folder / f"{result.name}.csv", as_csv(result))
        write_text(folder / f"{result.name}.tex", as_latex(result))
    path = folder / "compare.html"
    found = read_results(folder)
    order = (*TABLES, *found)
    write_text(path, as_page(sorted(found.values(), key=lambda result: order.index(result.name)), folder))
    return path


def as_text(result: TableResult, backbone: str) -> TextTable:
    """A table for the terminal."""
    title = Text(one_line(_title(result, backbone)))
    found = TextTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    found.add_column("")
    columns = [measure for measure in MEASURES if measure.name != "frechet_distance"]
    for heading in ("NFE", "s/image", "speed", *(measure.title for measure in columns)):
        found.add_column(heading, justify="right", no_wrap=True)
    for line in result.backbones[backbone]:
        numbers = [number_text(m, line.numbers[m.name], interval=m.higher is not None) for m in columns]
        style = "bold" if line.name == result.against else None
        cost = (f"{line.nfe:g}", significant(line.seconds_per_image), _speed(line))
        # Text, not str: a label may hold what rich would read as markup.
        found.add_row(*map(Text, (one_line(line.label), *cost, *numbers)), style=style)
    found.caption = Text(one_line(_caption(result)))
    return found


def as_csv(result: TableResult) -> str:
    """Return one line per row, backbone and measure; a `'` precedes text that a spreadsheet would read as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [
        "backbone",
        "row",
        "plan",
        "nfe",
        "seconds_per_image",
        "speedup",
        "iterations",
        "training_evaluations",
        "measure",
    ]
    writer.writerow([*heads, "mean", "low", "high", "difference", "p", "seeds"])
    for backbone, lines in result.backbones.items():
        for line in lines:
            about = [
                csv_text(backbone),
                csv_text(line.name),
                csv_text(line.plan),
                line.nfe,
                line.seconds_per_image,
                line.speedup,
                line.iterations,
                line.evaluations,
            ]
            for name, number in (line.numbers | line.parts).items():
                values = [number.mean, number.low, number.high, number.difference, number.p, len(number.values)]
                writer.writerow(["" if value is None else value for value in (*about, csv_text(name), *values)])
    return out.getvalue()


def csv_text(text: str) -> str:
    """Return text for a cell, on one line; a `'` precedes what a spreadsheet would compute as a formula."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA) else line


def as_latex(result: TableResult) -> str:
    """Return a tabular per backbone, which needs no package; all text is escaped, so LaTeX prints it literally."""
    parts = [_comment(_title(result, ", ".join(result.backbones))), _comment(_caption(result))]
    for backbone, lines in result.backbones.items():
        heads = ["NFE", "speed", *(measure.title for measure in MEASURES), *_paper_columns(lines)]
        parts += [_comment(backbone), f"\\begin{{tabular}}{{l{'r' * len(heads)}}}", "\\hline"]
        parts += [" & ".join(["", *map(latex_text, heads)]) + r" \\", "\\hline"]
        for line in lines:
            numbers = [number_text(measure, line.numbers[measure.name]) for measure in MEASURES]
            papers = [line.paper.get(name, "") for name in _paper_columns(lines)]
            found = [line.label, f"{line.nfe:g}", _speed(line), *numbers, *papers]
            parts.append(" & ".join(map(latex_text, found)) + r" \\")
        parts += ["\\hline", "\\end{tabular}", ""]
    return "\n".join(parts)


def latex_text(text: str) -> str:
    """Escape LaTeX's special characters in text; line breaks and control characters become spaces.

    A star or bracket at the beginning is put in braces: LaTeX would read it as an option of the preceding row's end.
    """
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped[:1] in ("*", "[") else escaped


def as_markdown(result: TableResult, backbone: str) -> str:
    """The table of a backbone, with a line below it that says how it was measured."""
    lines = result.backbones[backbone]
    papers = _paper_columns(lines)
    heads = ["", "NFE", "speed", *(measure.title for measure in MEASURES)]
    heads += [markdown_text(f"paper: {name}") for name in papers]
    rows = []
    for line in lines:
        numbers = [number_text(measure, line.numbers[measure.name]).replace("*", r"\*") for measure in MEASURES]
        label = markdown_text(line.label)
        if line.name == result.against and label:
            label = f"**{label}**"
        found = [markdown_text(line.paper.get(name, "")) for name in papers]
        rows.append([label, f"{line.nfe:g}", _speed(line), *numbers, *found])
    return f"{markdown_lines(heads, rows)}\n\n{markdown_text(_caption(result))}\n"


def as_page(results: Sequence[TableResult], folder: Path) -> str:
    """Return one self-contained page with all tables and their pictures.

    Raises:
        RMDError: a table names a picture that is not in the folder `pictures`.
    """
    return render(
        "compare.html.j2",
        title=TITLE,
        small=SMALL if any(result.budget == "small" for result in results) else "",
        paper=PAPER,
        parts=[_part(result, backbone, folder) for result in results for backbone in result.backbones],
    )


def p_text(p: float) -> str:
    """`0.014`, or `below 0.001`."""
    return significant(p, 2) if p >= 0.001 else "below 0.001"


def number_text(measure: Measure, number: Number, *, interval: bool = True, star: bool = True) -> str:
    """`52.6% [47.6, 57.5]`, with a star where the difference from the row compared with is significant."""
    write = percent if measure.share else lambda value: fixed(value, _digits(number))
    text = write(number.mean)
    if interval and number.low is not None and number.high is not None:
        low, high = (write(end).removesuffix("%") for end in (number.low, number.high))
        text += f" [{low}, {high}]"
    return text + ("*" if star and number.p is not None and number.p < SIGNIFICANT else "")


def _part(result: TableResult, backbone: str, folder: Path) -> PagePart:
    lines = result.backbones[backbone]
    light, dark = chart(result, backbone), chart(result, backbone, theme=DARK)
    return PagePart(
        title=_title(result, backbone),
        question=result.question,
        chart_title=result.title,
        light="" if light is None else image_data("svg+xml", light),
        dark="" if dark is None else image_data("svg+xml", dark),
        numbers=_numbers(result, lines),
        caption=_caption(result),
        by_attribute=_by_attribute(result, lines),
        pictures=[picture for line in lines if (picture := _picture(line, folder / "pictures")) is not None],
        prompts=lines[0].prompts,
    )


def _numbers(result: TableResult, lines: Sequence[Line]) -> HtmlTable:
    papers = _paper_columns(lines)
    heads = cells("", "NFE", "s/image", "speed", "trained", *(measure.title for measure in MEASURES))
    heads += [Cell(f"paper: {name}", soft=True) for name in papers]
    rows = []
    for line in lines:
        found = [Cell(line.label, line.plan), Cell(f"{line.nfe:g}")]
        found += cells(significant(line.seconds_per_image), _speed(line))
        found += cells("" if line.iterations is None else f"{line.iterations} it.")
        found += [_cell(number_text(measure, line.numbers[measure.name])) for measure in MEASURES]
        found += [Cell(line.paper.get(name, ""), soft=True) for name in papers]
        rows.append(TableRow(found, line.name == result.against))
    return HtmlTable(heads, rows)


def _by_attribute(result: TableResult, lines: Sequence[Line]) -> HtmlTable:
    names = list(lines[0].parts)
    rows = []
    for line in lines:
        shares = [_cell(number_text(part(name), line.parts[name])) for name in names]
        rows.append(TableRow([Cell(line.label), *shares], line.name == result.against))
    return HtmlTable(cells("", *(part(name).title for name in names)), rows)


def _picture(line: Line, folder: Path) -> Sample | None:
    """Return the picture of a row, or None if it is no longer in the folder.

    Raises:
        RMDError: the table names a file outside the folder, which a page that is passed on must not contain.
    """
    if line.picture is None:
        return None
    if Path(line.picture).name != line.picture or not line.picture.endswith(".png"):
        raise RMDError(
            f"the row {shown(line.name)} names {shown(line.picture)} as its picture, which is no PNG file of {folder}: "
            "compute the table again"
        )
    path = folder / line.picture
    return Sample(image_data("png", path.read_bytes()), line.label) if path.is_file() else None


def _speed(line: Line) -> str:
    return f"{fixed(line.speedup, 2)}x"


def _cell(text: str) -> Cell:
    """A number with its interval below it."""
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return Cell(text)
    interval, _, star = rest.partition("]")
    return Cell(value + star, f"[{interval}]")


def _title(result: TableResult, backbone: str) -> str:
    return f"{result.title} ({result.source}), {backbone}-type teacher"


def _caption(result: TableResult) -> str:
    seeds = len(result.seeds)
    against = next(line.label for lines in result.backbones.values() for line in lines if line.name == result.against)
    how = "over seeds, by Student's t" if seeds > 1 else "of its samples; one seed"
    return (
        f"Budget {result.budget}: {result.evaluations} network evaluations a sample in training, {seeds} "
        f"seed{'s' * (seeds > 1)}, {result.samples} samples each. Intervals are 95 %, {how}. "
        f"* differs from {against!r} (p < {SIGNIFICANT}, paired). Speed: over the slowest row."
        + (" " + SMALL if result.budget == "small" else "")
    )  # fmt: skip


def _paper_columns(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line.paper))


def _digits(number: Number) -> int:
    size = max(abs(value) for value in (number.mean, number.low or 0.0, number.high or 0.0))
    return 0 if size >= 100 else 1 if size >= 10 else 2


def _comment(text: str) -> str:
    return f"% {one_line(text)}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
