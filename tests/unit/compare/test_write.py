"""Files of a comparison: every number is in each of them, and a short run says what it is."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from comparisons import result
from PIL import Image
from rich.console import Console

from rmd.compare.cells import Bench, Budget, Cell, CellResult, Training
from rmd.compare.run import TableResult, run_table
from rmd.compare.tables import RMD, TDM, Table
from rmd.compare.write import PAPER, SMALL, as_csv, as_latex, as_page, as_text, write_tables
from rmd.files import read_model

MEASURED = {"sdxl": {"HPSv2.1": "31.93"}, "sd3": {"HPSv2.1": "30.03"}}
TABLE = Table("tiny", "Two methods", "Tab. 0", "Which is better?", (replace(TDM, paper=MEASURED), RMD), against="rmd")
MARKS = {"tdm": (0.6, 0.62, 0.61), "rmd": (0.5, 0.51, 0.52)}
SECONDS = {"tdm": 0.03, "rmd": 0.02}


class Known(Bench):
    """A bench whose cells are known."""

    def path(self, cell: Cell) -> Path:
        path = self.folder / f"{cell.setting.name}.json"
        Image.new("RGB", (128, 64)).save(path.with_suffix(".png"))
        return path

    def result(self, cell: Cell, *, wait: bool = True) -> CellResult:
        marks = MARKS[cell.setting.name][cell.seed]
        return result(marks, name=cell.setting.name, training=Training(iterations=150, evaluations=975))

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


def test_the_csv_has_a_line_for_every_measure(compared: TableResult) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(compared))))
    assert len(rows) == 2 * (6 + 1)  # six measures, and one attribute
    (tdm,) = (row for row in rows if row["row"] == "tdm" and row["measure"] == "attributes")
    assert float(tdm["mean"]) == pytest.approx(0.61) and float(tdm["difference"]) == pytest.approx(0.1)
    (ours,) = (row for row in rows if row["row"] == "rmd" and row["measure"] == "attributes")
    assert ours["difference"] == ours["p"] == ""


def test_latex_escapes_and_carries_the_papers_numbers(compared: TableResult) -> None:
    text = as_latex(compared)
    assert r"61.0\% [58.5, 63.5]*" in text
    assert "31.93" in text and "HPSv2.1" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {9}


def test_the_page_marks_what_is_the_papers_and_what_is_small(compared: TableResult, tmp_path: Path) -> None:
    page = as_page([compared], tmp_path)
    assert "31.93" in page and "30.03" not in page and PAPER in unescape(page)
    assert SMALL not in page
    small = as_page([compared.model_copy(update={"budget": "small"})], tmp_path)
    assert SMALL in small


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
