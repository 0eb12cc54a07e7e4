"""Tables in the paper's layout: their rows and columns, what is best, and that only equal protocols stand together."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from studies import picture

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.common.files import write_text
from rmd.scores.paper import VBENCH, as_latex, as_markdown, as_page, as_text, paper_table
from rmd.scores.result import Grouped, Making, PromptSet, Protocol, Result, Score, Table, write_result
from rmd.scores.vbench import DIMENSIONS, totals

STYLES = ("anime", "photo")


def score(mean: float) -> Score:
    return Score(mean=mean, low=mean - 0.1, high=mean + 0.1, count=4)


def result(folder: Path, name: str, hps: tuple[float, float], clip: float, **making: object) -> Path:
    """Write a result with two styles of HPS, and with CLIP."""
    groups = {style: score(value) for style, value in zip(STYLES, hps, strict=True)}
    average = score(sum(hps) / 2)
    protocol = Protocol(
        prompts=PromptSet(name="suite", sha256="0", count=4, groups={"anime": 2, "photo": 2}), seed=0, each=1, width=8,
        height=8, image_format="png", metrics={}, dtype="float32",
    )  # fmt: skip
    whole = Result(
        making=Making.model_validate({"model": name, **making}), protocol=protocol,
        scores={"hps": average, "clip": score(clip)}, groups={"hps": Grouped(groups=groups, average=average)},
        versions={},
    )  # fmt: skip
    values = {"hps": np.full(4, average.mean), "clip": np.full(4, clip)}
    table = Table(np.arange(4), np.arange(4), [f"{index}.png" for index in range(4)], values)
    write_result(whole, table, folder / name)
    return folder / name


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        result(tmp_path, "teacher", (30.0, 28.0), 35.5, nfe="25x2", seconds=10.0),
        result(tmp_path, "student", (31.234, 28.001), 35.1, nfe="2+2", seconds=0.5),
    ]


def test_the_layout_is_that_of_table_1(folders: list[Path]) -> None:
    text = as_markdown(paper_table(folders))
    head, _, teacher, student, _, note = text.splitlines()
    columns = ["NFE", "speed-up", "HPSv2.1: anime", "HPSv2.1: photo", "HPSv2.1: average", "CLIP score, L/14"]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["", *columns]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (teacher, student)]
    assert cells[0] == ["teacher", "25x2", "1.0x", "30.00", "**28.00**", "29.00", "**35.50**"]
    assert cells[1] == ["student", "2+2", "20.0x", "**31.23**", "**28.00**", "**29.62**", "35.10"]
    assert note.startswith("4 prompts (suite), 1 of each, 8 x 8 PNG")


def test_every_form_has_every_number(folders: list[Path]) -> None:
    table = paper_table(folders)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_text(table))
    latex = as_latex(table)
    assert latex.count("&") == 3 * 6 and r"\textbf{31.23}" in latex
    page = as_page(table, pictures=0)
    for text in (console.export_text(), latex, page):
        assert all(number in text for number in ("25x2", "20.0x", "31.23", "29.62", "35.10"))
    assert "31.13 to 31.33" in page


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    rows = [result(tmp_path, "a", (1.0, 2.0), 3.0), result(tmp_path, "b", (1.0, 2.0), 3.0, seconds=1.0)]
    lines = as_markdown(paper_table(rows)).splitlines()[2:4]
    assert all(line.split("|")[2:4] == [" – ", " – "] for line in lines)


def test_pictures_of_the_same_prompts_stand_side_by_side(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        for seed in range(3):
            picture(tmp_path / "pictures" / name / f"{seed}.png", (seed, 0, 0), prompt=f"prompt {seed}", seed=seed)
        rows.append(result(tmp_path, name, (1.0, 2.0), 3.0, place=str(tmp_path / "pictures" / name)))
    page = as_page(paper_table(rows), pictures=2)
    assert page.count("<img") == 4 and "prompt 0" in page and "prompt 1" in page and "prompt 2" not in page
    (tmp_path / "pictures" / "b" / "2.png").unlink()
    assert as_page(paper_table(rows), pictures=9).count("<img") == 4
    for path in (tmp_path / "pictures" / "b").iterdir():
        path.unlink()
    with pytest.raises(RMDError, match=r"^there are no samples"):
        as_page(paper_table(rows), pictures=1)
    with pytest.raises(RMDError, match=r"^the pictures of c do not say their prompts: give --pictures 0$"):
        as_page(paper_table([result(tmp_path, "c", (1.0, 2.0), 3.0)]), pictures=1)


def test_totals_of_vbench_are_the_columns_of_table_2(tmp_path: Path) -> None:
    found = totals({dimension.name: dimension.high for dimension in DIMENSIONS})
    (tmp_path / "wan").mkdir()
    write_text(tmp_path / "wan" / VBENCH, found.model_dump_json())
    lines = as_markdown(paper_table([tmp_path / "wan"])).splitlines()
    assert "VBench: total | VBench: quality | VBench: semantic" in lines[0]
    assert "| wan | – | – | **100.00** | **100.00** | **100.00** |" in lines


def test_rows_of_other_protocols_and_empty_folders_are_refused(folders: list[Path], tmp_path: Path) -> None:
    path = folders[1] / "scores.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 9'))
    with pytest.raises(RMDError, match=r"^these results cannot be compared: width is 8 in teacher's and 9 in"):
        paper_table(folders)
    with pytest.raises(RMDError, match=r"nothing has no results of rmd eval: give a folder with scores\.json, "):
        paper_table([tmp_path / "nothing"])
    with pytest.raises(RMDError, match=r"^a table needs results: "):
        paper_table([])


def test_the_command_writes_every_form(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(folder) for folder in folders]
    for suffix in ("md", "tex", "html"):
        assert main(["eval", "table", *names, "--out", str(tmp_path / f"t.{suffix}"), "--pictures", "0"]) == 0
        assert "31.23" in (tmp_path / f"t.{suffix}").read_text(encoding="utf-8")
    assert "31.23" in capsys.readouterr().out
    assert main(["eval", "table", *names, "--out", str(tmp_path / "t.pdf")]) == 1
    assert "a table is written to a file that ends in .md, .tex, .html, not to t.pdf" in capsys.readouterr().err
