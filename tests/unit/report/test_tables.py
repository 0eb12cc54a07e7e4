"""Numbers and tables as text, for terminals of any width and for Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import NAMES, moving, printed, report, row, write

from rmd.common.markdown import one_line
from rmd.evaluation.rows import Check, Report
from rmd.report import markdown_table
from rmd.report.tables import MISSING, SMOKE, decimals, duration, fixed, percent, significant


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6))
def test_significant_digits_are_right_and_plain(value: float) -> None:
    text = significant(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)
    assert float(text) == pytest.approx(value, rel=5.1e-3)


def test_numbers_as_written() -> None:
    assert [significant(v) for v in (0, 0.0047812, 19.13, 1234.5)] == ["0", "0.00478", "19.1", "1234"]
    assert [fixed(-0.04), fixed(0.25, 2), percent(0.9756), percent(1)] == ["0.0", "0.25", "97.6%", "100.0%"]
    assert [decimals((-0.5, 0.4)), decimals((-20.0, 1.0)), decimals((90.0, 113.0))] == [2, 1, 0]
    assert [duration(s) for s in (48.4, 683.2, 7385, 59.7)] == ["48 s", "11 min 23 s", "2 h 3 min", "1 min 0 s"]


def test_printed_table_is_whole_in_100_columns() -> None:
    lines = printed(report()).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    by_name = {words[0]: line for line in lines if (words := line.split()) and words[0] in NAMES}
    assert tuple(by_name) == NAMES
    assert by_name["rmd"].split() == [
        "rmd",
        "14",
        "0.0182",
        "5.0x",
        "59.1%",
        "407",
        "[361,",
        "453]",
        "247",
        "0.62",
        "17.3",
    ]
    assert by_name["teacher"].split()[5:8] == ["-0.04", "[-0.50,", "0.46]"]
    assert "pass  speed-up: 19.1 (target: at least 15)" in lines
    assert "MISS  minutes <all>: 11.4 (target: below 10)" in lines


def test_a_printed_table_has_any_name_and_no_terminal_codes() -> None:
    for name in ("[bold]x[/] [/not closed]", "\x1b[31m red \x1b]0;title\x07", "a\nb", "\u202e"):
        rows = [row(name, 0), *report().rows[1:]]
        checks = [Check(name=name, target=name, measured=1.0, passed=True)]
        said = printed(report().model_copy(update={"rows": rows, "checks": checks}), 200)
        assert one_line(name) in said and "\x1b" not in said and "\x07" not in said
        assert len(said.splitlines()) == len(printed(report().model_copy(update={"checks": checks}), 200).splitlines())


def test_a_row_without_a_metric_has_a_dash_in_every_table(tmp_path: Path) -> None:
    given = report()
    few = {name: each for name, each in given.rows[1].measures.items() if name != "diversity"}
    rows = [given.rows[0], given.rows[1].model_copy(update={"measures": few}), *given.rows[2:]]
    fewer = given.model_copy(update={"rows": rows})
    assert printed(fewer).count(MISSING) == 1 and markdown_table(fewer).count(MISSING) == 1
    assert write(tmp_path, fewer).text.count(MISSING) == 1
    none = given.model_copy(update={"rows": [each.model_copy(update={"measures": {}}) for each in given.rows]})
    assert "diversity" not in printed(none).lower() and write(tmp_path, none).text


def test_smoke_run_is_printed_as_one() -> None:
    assert printed(report(quick=True)).startswith(SMOKE)
    assert SMOKE not in printed(report())


def test_markdown_table_has_a_cell_for_every_measure() -> None:
    data = report().model_dump()
    data["rows"][0]["label"] = "a | b"
    head, rule, *body = markdown_table(Report.model_validate(data)).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (head, rule, *body)]
    assert {len(line) for line in cells} == {9}
    assert head.startswith("|  | NFE | s/image | speed-up | all right | kernel distance | to the teacher |")
    assert set(rule) == set("| -:")
    assert cells[2][0] == " a \\| b "
    assert cells[6][:2] == [" **Label of rmd \\<4>** ", " **14** "]


@pytest.mark.parametrize("width", range(48, 100, 4))
@pytest.mark.parametrize("moves", [False, True])
def test_a_narrow_console_gets_every_number_whole(width: int, moves: bool) -> None:
    given = moving() if moves else report()
    wide, narrow = (printed(given, columns).partition("NFE: ")[0].splitlines() for columns in (200, width))
    assert max(map(len, narrow)) <= width
    for name in NAMES:
        whole, parts = (
            [word for line in lines if line.startswith(f"{name} ") for word in line.split()[1:]]
            for lines in (wide, narrow)
        )
        assert parts == whole
