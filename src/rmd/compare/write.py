"""Writes a comparison: JSON, CSV and LaTeX a table, one HTML page for all, and a table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich import box
from rich.table import Table as TextTable

from rmd.compare.chart import chart
from rmd.compare.run import Line, Number, TableResult, read_results
from rmd.compare.statistics import MEASURES, Measure, part
from rmd.compare.tables import TABLES
from rmd.report.curves import DARK
from rmd.report.html import folded, image_data, section, table
from rmd.report.tables import fixed, markdown_lines, percent, significant
from rmd.report.template import PAGE, STYLE
from rmd.report.write import write_text

SMALL = (
    "Small budget: one seed and a short training. It shows that everything runs; conclusions need the default budget."
)
PAPER = (
    "Grey columns are the paper's own numbers, of other models and measures: look at their order, not at their size."
)
SIGNIFICANT = 0.05
WIDE = """
main { max-width: 1480px; }
td, th { padding-left: 7px; padding-right: 7px; }
tbody th { white-space: normal; min-width: 12em; line-height: 1.35; }
.samples { max-width: 1000px; margin-bottom: 14px; }
.samples figcaption { margin-bottom: 2px; }
.samples img { display: block; width: 100%; image-rendering: pixelated; }
"""
"""Style of the page of tables, whose rows are longer than a report's."""


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
    found = TextTable(title=_title(result, backbone), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    found.add_column("")
    shown = [measure for measure in MEASURES if measure.name != "frechet_distance"]
    for heading in ("NFE", "s/image", "speed", *(measure.title for measure in shown)):
        found.add_column(heading, justify="right", no_wrap=True)
    for line in result.backbones[backbone]:
        cells = [number_text(m, line.numbers[m.name], interval=m.higher is not None) for m in shown]
        style = "bold" if line.name == result.against else None
        cost = (f"{line.nfe:g}", significant(line.seconds_per_image), _speed(line))
        found.add_row(line.label, *cost, *cells, style=style)
    found.caption = _caption(result)
    return found


def as_csv(result: TableResult) -> str:
    """A line for every row, backbone and measure."""
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
                backbone,
                line.name,
                line.plan,
                line.nfe,
                line.seconds_per_image,
                line.speedup,
                line.iterations,
                line.evaluations,
            ]
            for name, number in (line.numbers | line.parts).items():
                values = [number.mean, number.low, number.high, number.difference, number.p, len(number.values)]
                writer.writerow(["" if value is None else value for value in (*about, name, *values)])
    return out.getvalue()


def as_latex(result: TableResult) -> str:
    """A tabular for every backbone; needs no package."""
    parts = [f"% {_title(result, ', '.join(result.backbones))}", f"% {_caption(result)}"]
    for backbone, lines in result.backbones.items():
        heads = ["NFE", "speed", *(measure.title for measure in MEASURES), *_paper_columns(lines)]
        parts += [f"% {backbone}", f"\\begin{{tabular}}{{l{'r' * len(heads)}}}", "\\hline"]
        parts += [" & ".join(["", *map(_tex, heads)]) + r" \\", "\\hline"]
        for line in lines:
            numbers = [number_text(measure, line.numbers[measure.name]) for measure in MEASURES]
            papers = [line.paper.get(name, "") for name in _paper_columns(lines)]
            cells = [line.label, f"{line.nfe:g}", _speed(line), *numbers, *papers]
            parts.append(" & ".join(map(_tex, cells)) + r" \\")
        parts += ["\\hline", "\\end{tabular}", ""]
    return "\n".join(parts)


def as_markdown(result: TableResult, backbone: str) -> str:
    """The table of a backbone, with a line below it that says how it was measured."""
    lines = result.backbones[backbone]
    papers = _paper_columns(lines)
    heads = ["", "NFE", "speed", *(measure.title for measure in MEASURES), *(f"paper: {name}" for name in papers)]
    rows = []
    for line in lines:
        numbers = [number_text(measure, line.numbers[measure.name]).replace("*", r"\*") for measure in MEASURES]
        label = f"**{line.label}**" if line.name == result.against else line.label
        rows.append([label, f"{line.nfe:g}", _speed(line), *numbers, *(line.paper.get(name, "") for name in papers)])
    return f"{markdown_lines(heads, rows)}\n\n{_caption(result).replace('*', chr(92) + '*')}\n"


def as_page(results: Sequence[TableResult], folder: Path) -> str:
    """All tables with their pictures on one self-contained page."""
    parts = ["<h1>RMD compared, in miniature</h1>"]
    if any(result.budget == "small" for result in results):
        parts.append(f'<p class="smoke">{SMALL}</p>')
    parts.append(f'<p class="soft">{escape(PAPER)}</p>')
    for result in results:
        for backbone in result.backbones:
            parts.append(section(escape(_title(result, backbone)), _part(result, backbone, folder)))
    return PAGE.substitute(title="RMD compared, in miniature", style=STYLE + WIDE, body="\n".join(parts))


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


def _part(result: TableResult, backbone: str, folder: Path) -> str:
    lines = result.backbones[backbone]
    papers = _paper_columns(lines)
    heads = ["", "NFE", "s/image", "speed", "trained", *(measure.title for measure in MEASURES)]
    heads += [f'<span class="soft">paper: {escape(name)}</span>' for name in papers]
    rows = []
    for line in lines:
        trained = "" if line.iterations is None else f"{line.iterations} it."
        cells = [escape(line.label) + f"<br><small>{escape(line.plan)}</small>", f"{line.nfe:g}"]
        cells += [significant(line.seconds_per_image), _speed(line), trained]
        cells += [_cell(number_text(measure, line.numbers[measure.name])) for measure in MEASURES]
        cells += [f'<span class="soft">{escape(line.paper.get(name, ""))}</span>' for name in papers]
        rows.append((cells, line.name == result.against))
    names = list(lines[0].parts)
    shares = [
        ([escape(line.label), *(_cell(number_text(part(name), line.parts[name])) for name in names)],
         line.name == result.against)
        for line in lines
    ]  # fmt: skip
    by_attribute = folded("each attribute alone", table(["", *(part(name).title for name in names)], shares))
    pictures = "\n".join(
        f'<figure class="samples"><figcaption>{escape(line.label)}</figcaption><img alt="{escape(line.label)}" '
        f'src="{image_data("png", (folder / "pictures" / line.picture).read_bytes())}"></figure>'
        for line in lines
        if line.picture is not None and (folder / "pictures" / line.picture).is_file()
    )
    captions = "<ol>" + "".join(f"<li>{escape(prompt)}</li>" for prompt in lines[0].prompts) + "</ol>"
    question, caption = (f'<p class="soft">{escape(text)}</p>' for text in (result.question, _caption(result)))
    captions = folded("captions, from left to right", captions)
    return question + _chart(result, backbone) + table(heads, rows) + caption + by_attribute + pictures + captions


def _chart(result: TableResult, backbone: str) -> str:
    """The chart of a table that is a grid, for a light and for a dark page."""
    light, dark = chart(result, backbone), chart(result, backbone, theme=DARK)
    if light is None or dark is None:
        return ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{image_data("svg+xml", dark)}">'
        f'<img src="{image_data("svg+xml", light)}" alt="{escape(result.title)}" style="max-width:100%"></picture>'
        "<figcaption>Lines through the means; a dot is a seed.</figcaption></figure>"
    )


def _speed(line: Line) -> str:
    return f"{fixed(line.speedup, 2)}x"


def _cell(text: str) -> str:
    """A number with its interval below it."""
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return escape(text)
    interval, _, star = rest.partition("]")
    return f"{escape(value + star)}<small>[{escape(interval)}]</small>"


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


def _tex(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, "\\" + character)
    return text
