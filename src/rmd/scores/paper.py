"""Tables of several models in the paper's layout: those of pictures (Tab. 1) and those of clips (Tab. 2).

A row is a folder with what `rmd eval` wrote of one model: the scores of its pictures or clips, and VBench's and
T2V-CompBench's totals. Rows share a protocol, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table as TextTable
from rich.text import Text

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.latex import latex_comment, latex_lines, latex_text
from rmd.common.markdown import markdown_lines, markdown_text, one_line
from rmd.common.pictures import png
from rmd.data.images import SUFFIXES, as_seen, opened
from rmd.report.gallery import Sample
from rmd.report.html import Cell, HtmlTable, TableRow, cells, image_data, render
from rmd.report.tables import MISSING, fixed
from rmd.sample.found import by_prompt_and_seed, find_samples
from rmd.scores.compbench import CompbenchScores
from rmd.scores.result import RESULT, Making, Result, Score, check_same, read_result
from rmd.scores.text import digits_of, title_of
from rmd.scores.vbench import Totals

VBENCH, COMPBENCH = "vbench.json", "compbench.json"
"""Files of a row's folder with the totals of VBench and T2V-CompBench."""
AVERAGE = "average"
SHOWN = 320
"""Largest side of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        title: its heading.
        digits: number of decimals.
        group: the heading above those of several columns; empty if there is none.
    """

    title: str
    digits: int
    group: str = ""

    @property
    def heading(self) -> str:
        """The heading on one line."""
        return f"{self.group}: {self.title}" if self.group else self.title


@dataclass(frozen=True)
class PaperRow:
    """A model.

    Attributes:
        making: how its pictures or clips were made.
        folder: the folder of its results.
        values: numbers by column, with intervals if they have any.
    """

    making: Making
    folder: Path
    values: Mapping[Column, Score | float] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """Rows with common columns; the first row is the one that speed-ups refer to."""

    rows: Sequence[PaperRow]
    note: str

    @property
    def columns(self) -> list[Column]:
        """The columns of any row, in the order in which they occur."""
        return list(dict.fromkeys(column for row in self.rows for column in row.values))

    def best(self, column: Column) -> float:
        """Return the highest number of a column, as it is printed."""
        return max(round(_mean(row.values[column]), column.digits) for row in self.rows if column in row.values)

    def speedup(self, row: PaperRow) -> float | None:
        """Return how many times as fast as the first row a row is; None if one of them was not measured."""
        first, own = self.rows[0].making.seconds, row.making.seconds
        return None if first is None or own is None else first / own


def paper_table(folders: Sequence[Path]) -> PaperTable:
    """Return the table of several models' results.

    Raises:
        RMDError: a folder has no results, a file is damaged, or two rows have different protocols.
    """
    if not folders:
        raise RMDError("a table needs results: give the folders that rmd eval wrote, one for each model")
    results = {folder: read_result(folder)[0] for folder in folders if (folder / RESULT).is_file()}
    known = list(results.values())
    for other in known[1:]:
        check_same(known[0], other)
    return PaperTable([_row(folder, results.get(folder)) for folder in folders], _note(known))


def _row(folder: Path, result: Result | None) -> PaperRow:
    values: dict[Column, Score | float] = {} if result is None else _scores(result)
    if (folder / VBENCH).is_file():
        totals = read_model(folder / VBENCH, Totals)
        for title, value in (("total", totals.total), ("quality", totals.quality), ("semantic", totals.semantic)):
            values[Column(title, 2, "VBench")] = 100 * value
    if (folder / COMPBENCH).is_file():
        compbench = read_model(folder / COMPBENCH, CompbenchScores)
        values[Column("T2V-CompBench", 2)] = 100 * compbench.average
    if not values:
        raise RMDError(f"{folder} has no results of rmd eval: give a folder with {RESULT}, {VBENCH} or {COMPBENCH}")
    return PaperRow(Making(model=folder.name) if result is None else result.making, folder, values)


def _scores(result: Result) -> dict[Column, Score | float]:
    """Return the scores of a result: of HPS, those of every style and their average."""
    values: dict[Column, Score | float] = {}
    for name, score in result.scores.items():
        title, digits = title_of(name), digits_of(name)
        grouped = result.groups.get(name)
        if grouped is None or not name.startswith("hps"):
            values[Column(title, digits)] = score if grouped is None else grouped.average
            continue
        values |= {Column(group, digits, title): each for group, each in grouped.groups.items()}
        values[Column(AVERAGE, digits, title)] = grouped.average
    return values


def _note(results: Sequence[Result]) -> str:
    """Say what the numbers of pictures or clips are of."""
    if not results:
        return ""
    protocol = results[0].protocol
    missing = max(score.missing for result in results for score in result.scores.values())
    gaps = f"; up to {missing} pictures of a row are missing" if missing else ""
    return (
        f"{protocol.prompts.count} prompts ({protocol.prompts.name}), {protocol.each} of each, "
        f"{protocol.width} x {protocol.height} {protocol.image_format.upper()}{gaps}."
    )


def as_text(table: PaperTable) -> TextTable:
    """Return the table for the terminal; the best number of a column is bold."""
    text = TextTable(box=box.SIMPLE_HEAD, caption=Text(one_line(table.note)), caption_justify="left")
    text.add_column("")
    for heading in _headings(table)[1:]:
        text.add_column(heading, justify="right")
    for row in table.rows:
        name, *costs = _costs(table, row)
        cells = [
            Text(_number(row, column), style="bold" if _is_best(table, row, column) else "") for column in table.columns
        ]
        text.add_row(Text(one_line(name)), *map(Text, costs), *cells)
    return text


def as_markdown(table: PaperTable) -> str:
    """Return the table in Markdown, with a line below it that says what the numbers are of."""
    rows = []
    for row in table.rows:
        numbers = [
            f"**{_number(row, column)}**" if _is_best(table, row, column) else _number(row, column)
            for column in table.columns
        ]
        rows.append([*map(markdown_text, _costs(table, row)), *numbers])
    lines = markdown_lines([markdown_text(heading) for heading in _headings(table)], rows)
    return f"{lines}\n\n{markdown_text(table.note)}\n" if table.note else f"{lines}\n"


def as_latex(table: PaperTable) -> str:
    """Return the table as a tabular that needs no package."""
    rows = []
    for row in table.rows:
        numbers = [
            f"\\textbf{{{_number(row, column)}}}" if _is_best(table, row, column) else latex_text(_number(row, column))
            for column in table.columns
        ]
        rows.append([*map(latex_text, _costs(table, row)), *numbers])
    lines = latex_lines([latex_text(heading) for heading in _headings(table)], rows)
    return f"{latex_comment(table.note)}\n{lines}\n" if table.note else f"{lines}\n"


def _headings(table: PaperTable) -> list[str]:
    return ["", "NFE", "speed-up", *(column.heading for column in table.columns)]


def _costs(table: PaperTable, row: PaperRow) -> tuple[str, str, str]:
    """Return the name of a row, its network evaluations and its speed-up."""
    speedup = table.speedup(row)
    return row.making.model, row.making.nfe or MISSING, MISSING if speedup is None else f"{fixed(speedup)}x"


def _number(row: PaperRow, column: Column) -> str:
    return fixed(_mean(row.values[column]), column.digits) if column in row.values else MISSING


def _is_best(table: PaperTable, row: PaperRow, column: Column) -> bool:
    return column in row.values and round(_mean(row.values[column]), column.digits) == table.best(column)


def _mean(value: Score | float) -> float:
    return value.mean if isinstance(value, Score) else value


def as_page(table: PaperTable, *, pictures: int) -> str:
    """Return a self-contained page with the table, and pictures of the same prompts and seeds.

    Args:
        table: the table.
        pictures: number of prompts of which every row's picture is shown; 0: none.

    Raises:
        RMDError: the pictures of a row are no longer where they were scored, or rows have no picture in common.
    """
    heads = cells(*_headings(table))
    rows = []
    for index, row in enumerate(table.rows):
        numbers = [_cell(row, column) for column in table.columns]
        rows.append(TableRow([*cells(*_costs(table, row)), *numbers], marked=index > 0 and row is table.rows[-1]))
    return render(
        "paper.html.j2", title="Models compared", numbers=HtmlTable(heads, rows), note=table.note,
        models=[row.making.model for row in table.rows], pictures=_pictures(table, pictures) if pictures else [],
    )  # fmt: skip


def _cell(row: PaperRow, column: Column) -> Cell:
    value = row.values.get(column)
    interval = (
        f"{fixed(value.low, column.digits)} to {fixed(value.high, column.digits)}" if isinstance(value, Score) else ""
    )
    return Cell(_number(row, column), interval)


def _pictures(table: PaperTable, count: int) -> list[tuple[str, list[Sample]]]:
    """Return prompts that are spread over all, each with a picture of every row."""
    albums = []
    for row in table.rows:
        known = by_prompt_and_seed(find_samples(row.making.place, suffixes=SUFFIXES)) if row.making.place else None
        if known is None:
            raise RMDError(f"the pictures of {row.making.model} do not say their prompts: give --pictures 0")
        albums.append(known)
    common = [key for key in albums[0] if all(key in album for album in albums[1:])]
    if not common:
        raise RMDError("these models have no picture of the same prompt and seed in common: give --pictures 0")
    chosen = [common[index * len(common) // count] for index in range(min(count, len(common)))]
    return [
        (key[0], [_sample(album[key], row.making.model) for album, row in zip(albums, table.rows, strict=True)])
        for key in chosen
    ]


def _sample(path: Path, model: str) -> Sample:
    with opened(path, "pictures") as image:
        small = as_seen(image)
        small.thumbnail((SHOWN, SHOWN))
        return Sample(image_data("png", png(small)), model)
