"""The files of a comparison: every number is in each of them, and a short run is marked as such."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from comparisons import result
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.markdown import one_line
from rmd.compare.cells import Bench, Budget, Cell, CellResult, Training
from rmd.compare.run import TableResult, run_table
from rmd.compare.settings import RMD, TDM, Table
from rmd.compare.write import (
    MISSING,
    SMALL,
    adjusted,
    as_csv,
    as_latex,
    as_markdown,
    as_page,
    as_text,
    csv_text,
    marks,
    write_tables,
)

MEASURED = {"sdxl": {"HPSv2.1": "31.93"}, "sd3": {"HPSv2.1": "30.03"}}
TABLE = Table("tiny", "Two methods", "Tab. 0", "Which is better?", (replace(TDM, paper=MEASURED), RMD), against="rmd")
SHARES = {"tdm": (0.6, 0.62, 0.61), "rmd": (0.5, 0.51, 0.52)}
SECONDS = {"tdm": 0.03, "rmd": 0.02}


class Known(Bench):
    """A bench with chosen results."""

    def path(self, cell: Cell) -> Path:
        path = self.folder / f"{cell.setting.name}.json"
        Image.new("RGB", (128, 64)).save(path.with_suffix(".png"))
        return path

    def result(self, cell: Cell, *, wait: bool = True) -> CellResult:
        share = SHARES[cell.setting.name][cell.seed]
        right = tuple(i < 1000 * share for i in range(1000))
        training = Training(iterations=150, evaluations=975)
        return result(share, right=right, half=0.03, name=cell.setting.name, training=training)

    def seconds(self, cells: Sequence[Cell]) -> list[float]:
        return [SECONDS[cell.setting.name] for cell in cells]


@pytest.fixture
def compared(tmp_path: Path) -> TableResult:
    bench = Known(tmp_path, lambda what, done, total: None)
    return run_table(TABLE, Budget("default", 975, (0, 1, 2), 8), bench, backbones=["sdxl"], folder=tmp_path)


def test_the_terminal_shows_means_intervals_and_what_differs(compared: TableResult) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_text(compared, "sdxl"))
    text = console.export_text()
    assert "Two methods (Tab. 0), sdxl-type teacher" in text
    assert "61.0% [58.5, 63.5]*" in text
    assert "51.0% [48.5, 53.5] " in text
    assert "0.0300   1.00x" in text and "0.0200   1.50x" in text
    assert "3 seeds, 8 samples each" in text and SMALL not in text


def test_rows_within_the_margin_are_marked_as_level(compared: TableResult) -> None:
    tdm, ours = compared.backbones["sdxl"]

    def text(**fields: float) -> str:
        number = tdm.numbers["attributes"].model_copy(update=fields)
        line = tdm.model_copy(update={"numbers": tdm.numbers | {"attributes": number}})
        return as_markdown(compared.model_copy(update={"backbones": {"sdxl": (line, ours)}}), "sdxl")

    assert "within 1 point in all right or 6 in kernel distance (two one-sided tests)" in text()
    assert "61.0% [58.5, 63.5]= |" in text(p=0.4, level=0.04)
    assert "61.0% [58.5, 63.5] |" in text(p=0.4, level=0.06)
    assert r"61.0% [58.5, 63.5]\*= |" in text(p=0.04, level=0.04)


def test_a_table_keeps_the_versions_that_measured_it(compared: TableResult, tmp_path: Path) -> None:
    older = compared.model_copy(update={"versions": compared.versions | {"rmd": "0.0.1"}})
    (tmp_path / "tiny.json").write_text(older.model_dump_json())
    bench, budget = Known(tmp_path, lambda what, done, total: None), Budget("default", 975, (0, 1, 2), 8)

    def again(seeds: int) -> str:
        table = replace(TABLE, seeds=seeds)
        return run_table(table, budget, bench, backbones=["sdxl"], folder=tmp_path).versions["rmd"]

    assert again(3) == "0.0.1"
    assert again(2) == compared.versions["rmd"]


def test_the_csv_has_a_line_for_every_measure(compared: TableResult) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(compared))))
    assert len(rows) == 2 * (6 + 1)  # six metrics and one attribute
    (tdm,) = (row for row in rows if row["row"] == "tdm" and row["measure"] == "attributes")
    assert float(tdm["mean"]) == pytest.approx(0.61) and float(tdm["difference"]) == pytest.approx(0.1)
    (ours,) = (row for row in rows if row["row"] == "rmd" and row["measure"] == "attributes")
    assert ours["difference"] == ours["p"] == ours["p_holm"] == "" and tdm["p"] == tdm["p_holm"] != ""


def test_a_star_is_corrected_for_the_number_of_rows(compared: TableResult) -> None:
    """The smallest p of three rows must be below a third of the level, and the next one below a half."""
    tdm, ours = compared.backbones["sdxl"]

    def rows(*ps: float) -> TableResult:
        number = tdm.numbers["attributes"]
        lines = [
            tdm.model_copy(update={"name": f"r{i}", "numbers": {"attributes": number.model_copy(update={"p": p})}})
            for i, p in enumerate(ps)
        ]  # fmt: skip
        return compared.model_copy(update={"backbones": {"sdxl": (*lines, ours)}})

    assert marks(rows(0.02, 0.02, 0.02), "sdxl") == {}
    assert marks(rows(0.02, 0.01, 0.9), "sdxl") == {("r1", "attributes"): "*", ("r0", "attributes"): "*"}
    assert marks(rows(0.03, 0.01, 0.9), "sdxl") == {("r1", "attributes"): "*"}
    both = rows(0.02, 0.9, 0.9)
    two = both.model_copy(update={"backbones": {"sdxl": both.backbones["sdxl"], "sd3": both.backbones["sdxl"]}})
    assert adjusted(two)["sd3", "r0", "attributes"] == pytest.approx(0.12) and not marks(two, "sd3")
    assert "61.0% [58.5, 63.5]*" in as_markdown(rows(0.01), "sdxl").replace("\\", "")
    assert "*" not in as_markdown(rows(0.06), "sdxl").split("Budget")[0].replace("**", "")


def test_latex_escapes_and_carries_the_papers_numbers(compared: TableResult) -> None:
    text = as_latex(compared)
    assert r"61.0\% [58.5, 63.5]*" in text
    assert "31.93" in text and "HPSv2.1" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {9}


def test_the_page_marks_what_is_the_papers_and_what_is_small(compared: TableResult, tmp_path: Path) -> None:
    page = as_page([compared], tmp_path)
    assert "31.93" in page and "30.03" not in page and "Grey columns are the paper's own numbers" in unescape(page)
    assert SMALL not in page
    small = as_page([compared.model_copy(update={"budget": "small"})], tmp_path)
    assert SMALL in small


def test_a_metric_that_a_row_lacks_is_a_dash_and_an_unknown_one_is_shown(compared: TableResult, tmp_path: Path) -> None:
    tdm, ours = compared.backbones["sdxl"]
    fewer = tdm.model_copy(update={"numbers": {k: v for k, v in tdm.numbers.items() if k != "diversity"}})
    more = ours.model_copy(update={"numbers": ours.numbers | {"of_tomorrow": ours.numbers["diversity"]}})
    given = compared.model_copy(update={"backbones": {"sdxl": (fewer, more)}})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_text(given, "sdxl"))
    page = as_page([given], tmp_path)
    for text in (console.export_text(), as_latex(given), as_markdown(given, "sdxl"), page):
        assert "of tomorrow" in text and text.count(MISSING) == 2
    assert {row["measure"] for row in csv.DictReader(io.StringIO(as_csv(given)))} >= {"diversity", "of_tomorrow"}
    write_tables([given], tmp_path)
    assert read_model(tmp_path / "tiny.json", TableResult) == given


def test_what_is_written_reads_back(compared: TableResult, tmp_path: Path) -> None:
    page = write_tables([compared], tmp_path)
    assert page == tmp_path / "compare.html"
    again = read_model(tmp_path / "tiny.json", TableResult)
    assert again.model_dump() == compared.model_dump()
    assert {path.suffix for path in tmp_path.glob("tiny.*")} == {".json", ".csv", ".tex"}


def test_the_page_is_of_all_tables_of_its_folder_in_their_order(compared: TableResult, tmp_path: Path) -> None:
    names = ("tiny", "stages", "main", "thresholds")
    for name in names:
        page = write_tables([compared.model_copy(update={"name": name, "title": f"about {name}"})], tmp_path)
    text = page.read_text(encoding="utf-8")
    places = [text.index(f"about {name}") for name in ("main", "thresholds", "stages", "tiny")]
    assert places == sorted(places)


def test_pictures_that_are_gone_are_left_out(compared: TableResult, tmp_path: Path) -> None:
    lines = tuple(line.model_copy(update={"picture": None}) for line in compared.backbones["sdxl"])
    without = compared.model_copy(update={"backbones": {"sdxl": lines}})
    assert "<figure class=" in as_page([compared], tmp_path)
    assert "<figure class=" not in as_page([without], tmp_path)
    shutil.rmtree(tmp_path / "pictures")
    assert "<figure class=" not in as_page([compared], tmp_path)


HOSTILE = (
    "</title></style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% for x in () %}",
    "| a | b |\n| --- | --- |",
    "[bold]x[/] [/not closed]",
    "\\input{/etc/passwd} $x$ & % # _ { } ~ ^ \\\\",
    "[2cm]",
    "*",
    "\n\n\\end{tabular}",
    "=cmd|' /C calc'!A0",
    "\x1b[31m\x1b]0;title\x07",
)


def with_names(result: TableResult, name: str) -> TableResult:
    """Return a table with a name in every text field except its own name, which is that of its file."""
    lines = tuple(
        line.model_copy(
            update={
                "label": name, "plan": name, "prompts": (name, name), "paper": {name: name},
                "parts": {name: line.parts["layout"]},
            }
        )
        for line in result.backbones["sdxl"]
    )  # fmt: skip
    return result.model_copy(
        update={"title": name, "source": name, "question": name, "budget": name, "backbones": {name: lines}}
    )


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_text_in_every_file(name: str, compared: TableResult, tmp_path: Path) -> None:
    given, plain = with_names(compared, name), with_names(compared, "plain")
    page, other = (Elements(as_page([result], tmp_path)) for result in (given, plain))
    assert page.tags == other.tags and page.text.count(name) >= 8
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(as_text(given, name))
    assert one_line(name) in console.export_text()
    tokens, expected = (MarkdownIt("gfm-like", {"linkify": False}).parse(as_markdown(result, backbone))
                       for result, backbone in ((given, name), (plain, "plain")))  # fmt: skip
    assert [token.tag for token in tokens] == [token.tag for token in expected]
    assert one_line(name) in "".join(c.content for token in tokens for c in token.children or ())
    assert {row["row"] for row in csv.DictReader(io.StringIO(as_csv(given)))} == {"tdm", "rmd"}


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_keeps_its_rows_with_any_name(name: str, compared: TableResult) -> None:
    lines, plain = (as_latex(with_names(compared, text)).splitlines() for text in (name, "plain"))
    assert len(lines) == len(plain)
    for line, other in zip(lines, plain, strict=True):
        assert line.startswith("% ") == other.startswith("% ")
        assert line.replace(r"\&", "").count("&") == other.count("&") or line.startswith("% ")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1"])
def test_no_text_of_the_csv_is_a_formula(text: str, compared: TableResult) -> None:
    assert csv_text(text) == f"'{one_line(text)}"
    line = compared.backbones["sdxl"][0].model_copy(update={"name": text, "plan": text})
    given = compared.model_copy(update={"backbones": {text: (line,)}})
    for row in csv.reader(io.StringIO(as_csv(given), newline="")):
        assert not any(cell.strip()[:1] in ("=", "+", "@") for cell in row)
        assert row[:3] == ["backbone", "row", "plan"] or row[:3] == [csv_text(text)] * 3


def test_numbers_and_usual_names_are_written_as_they_are(compared: TableResult) -> None:
    assert [csv_text(text) for text in ("", "rmd", "32x32 x2", "a=b", "1-2")] == ["", "rmd", "32x32 x2", "a=b", "1-2"]
    rows = list(csv.DictReader(io.StringIO(as_csv(compared))))
    gaps = [float(row["difference"]) for row in rows if row["difference"]]
    assert min(gaps) <= 0 <= max(gaps)


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/passwd", "a/b.png", "..", "notes.txt"])
def test_a_picture_lies_in_the_folder_of_pictures(picture: str, compared: TableResult, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    lines = tuple(line.model_copy(update={"picture": picture}) for line in compared.backbones["sdxl"])
    with pytest.raises(RMDError, match=r"^the row 'tdm' names .* as its picture, which is not a PNG file in"):
        as_page([compared.model_copy(update={"backbones": {"sdxl": lines}})], tmp_path)
