"""Tables as spreadsheets and scripts write them; anything that would join or split rows is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.data import tables
from rmd.data.captions import RECIPE_KEYS
from rmd.data.formats import read_file
from rmd.data.prompts import read_source
from rmd.recipes.schema import DataConfig


def written(folder: Path, content: str, name: str = "p.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def texts(path: Path, **options: object) -> list[str]:
    return read_source(DataConfig(prompts=str(path), **options)).texts  # type: ignore[arg-type]  # options of one test each


def test_large_fields_are_read_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = written(tmp_path, 'prompt,blob\na cat,"' + "x" * 140_000 + '"\na dog,y\n')
    rows = read_file(path, None, RECIPE_KEYS)
    assert next(rows) == (f"{path}, line 2", "a cat")
    assert csv.field_size_limit() == before  # between two rows, too
    assert [value for _, value in rows] == ["a dog"] and csv.field_size_limit() == before
    with pytest.raises(RMDError):
        texts(written(tmp_path, 'prompt\n"a'))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
def test_the_header_says_what_parts_the_fields(delimiter: str, name: str, tmp_path: Path) -> None:
    rows = [["id", "prompt", "score"], ["1", "a cat: big", "0.5"], ["2", "a dog", "0"]]
    content = "\n".join(delimiter.join(row) for row in rows)
    assert texts(written(tmp_path, content, name)) == ["a cat: big", "a dog"]
    with pytest.raises(RMDError, match=r"has no column x: it has id, prompt, score \(the fields .* separated by "):
        texts(written(tmp_path, content, name), column="x")


def test_a_column_that_is_not_found_tells_the_delimiter_that_was_assumed(tmp_path: Path) -> None:
    with pytest.raises(
        RMDError, match=r"has no column x: it has a b \(the fields of its header are separated by commas\)$"
    ):
        texts(written(tmp_path, "a b\n1\n"), column="x")


def test_the_line_that_excel_writes_for_itself_is_obeyed(tmp_path: Path) -> None:
    assert texts(written(tmp_path, "sep=;\r\nid;prompt\r\n1;a cat, big\r\n")) == ["a cat, big"]


def test_names_of_columns_may_have_spaces_around_them(tmp_path: Path) -> None:
    assert texts(written(tmp_path, 'id, prompt\n1, "a cat, big"\n2, a dog\n')) == ["a cat, big", "a dog"]


def test_stray_quotes_in_a_file_of_tabs_are_letters(tmp_path: Path) -> None:
    path = written(tmp_path, 'caption\timage\n"a cat\ty\na dog"\tz\n5" tall\tw\n"whole ""field"""\tv\n', "p.tsv")
    assert texts(path) == ['"a cat', 'a dog"', '5" tall', 'whole "field"']


def test_quotes_in_a_file_of_tabs_are_obeyed_if_all_of_them_pair(tmp_path: Path) -> None:
    path = written(tmp_path, 'id\tcaption\n1\t"a cat\nsitting"\n2\t"a ""big"" dog"\n3\t"a\tcow"\n', "p.tsv")
    assert texts(path) == ["a cat sitting", 'a "big" dog', "a cow"]
    path = written(tmp_path, 'id\tcaption\n1\t"a cat\nsitting"\n2\t"a dog\n', "p.tsv")
    with pytest.raises(RMDError, match=r"p\.tsv, line 3 has 1 field, but the header has 2"):
        texts(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('prompt\na cat\n"a dog\na cow\n', "the quotes in the row that begins in line 3 are not balanced"),
        ('prompt,x\n"a cat,1\n"a dog,2\n', "the quotes in the row that begins in line 2 are not balanced"),
        ('prompt,x\n"a cat" on a mat,1\n', "the quotes in the row that begins in line 2 are not balanced"),
        (
            'prompt,x\n"a cat,1\n' + "a dog,2\n" * 400,
            "the row that begins in line 2 spans 200 lines: close",
        ),
        ("", "has no header: its first line must name the columns"),
        ("\n\n", "has no header: its first line must name the columns"),
        ("prompt,id,prompt\na,1,b\n", "has 2 columns prompt: give each its own name"),
        ("prompt,,\na,1,b\n", None),
        ("id\n1\n", "has none of the columns prompt, caption, text: name one with data.column"),
        ("prompt\n", "gives no prompts (it is empty)"),
    ],
    ids=range(10),
)
def test_what_is_wrong_in_a_table_is_reported(content: str, sentence: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    if sentence is None:
        assert texts(path) == ["a"]
        return
    for skip in (False, True):  # joined rows are not left out: nobody knows where the next one begins
        with pytest.raises(RMDError) as caught:
            texts(path, skip_invalid=skip)
        message = str(caught.value)
        assert message.startswith(str(path)) and sentence in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("row", "fields"), [("a cat, sitting,1", 3), ("a cat", 1), ("a cat,1,", 3)], ids=["more", "fewer", "empty"]
)
def test_rows_that_are_not_as_long_as_the_header_are_refused_or_counted(row: str, fields: int, tmp_path: Path) -> None:
    path = written(tmp_path, f"prompt,x\na dog,1\n\n{row}\na cow,2\n")
    with pytest.raises(
        RMDError, match=rf"p\.csv, line 4 has {fields} fields?, but the header has 2 \(prompt, x\): put"
    ):
        texts(path)
    reading = read_source(DataConfig(prompts=str(path), skip_invalid=True))
    assert reading.texts == ["a dog", "a cow"]
    assert reading.left_out == {"with another number of fields than the header": 1}


def test_a_caption_with_a_comma_in_a_table_of_one_column_is_never_cut(tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"line 2 has 2 fields, but the header has 1"):
        texts(written(tmp_path, "prompt\na cat, sitting\n"))


FIELDS = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=6), st.sampled_from([",", ";", "\t", "|"]), st.booleans())
def test_what_a_writer_of_csv_writes_comes_back(rows: list[tuple[str, str]], delimiter: str, every: bool) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL)
    writer.writerows([("id", "prompt"), *rows])
    lines = iter(file.getvalue().replace("\r\n", "\n").split("\n"))
    read = list(tables._quoted_rows(lines, delimiter, Path("x")))[1:]
    # Spaces at the beginning of a field mean nothing to a caption.
    assert [[field.strip() for field in row] for _, row in read] == [[field.strip() for field in row] for row in rows]


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
@pytest.mark.parametrize("text", ["cap\0tion\na cat\n", "caption\na c\0at\n"])
def test_a_nul_character_is_refused_by_line(name: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, name)
    number = 1 + text[: text.index("\0")].count("\n")
    with pytest.raises(RMDError, match=rf"{name}, line {number} contains a NUL character: save the table as text$"):
        texts(path)
