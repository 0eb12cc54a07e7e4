"""Reads CSV and TSV files as spreadsheets, pandas and shell scripts write them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.data.captions import RECIPE_KEYS, Column, Keys, Rows, Unfit, listed
from rmd.data.formats import MAX_LINE, read_lines

MOST_LINES = 200
"""Most lines that one row may span; a longer row starts with a quote that is never closed."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_table(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the caption column of a table with a header, separated by commas, semicolons, tabs or bars.

    The header decides the delimiter: the usual one of the suffix (tabs in .tsv) if the column is found with it, else
    one with which it is. In a tab-separated file, quotes have a meaning only if they are balanced in the whole file; in
    many such files they are not.

    Raises:
        RMDError: the file is not text, has no header or no such column, or its quotes are not balanced.
    """
    lines = _without_nul(path)
    first = next(lines, "")
    if first.lower().startswith("sep=") and len(first) == 5:  # a line that Excel writes for itself
        delimiter, skipped, first = first[4], 1, next(lines, "")
    else:
        delimiter, skipped = _delimiter(first, path, Column(column, keys)), 0
    if not first.strip():
        raise RMDError(f"{path} has no header: its first line must name the columns")
    if delimiter == "\t" and not _quoted(path, skipped):
        rows = _plain_rows(chain([first], lines), skipped)
    else:
        rows = _quoted_rows(chain([first], lines), delimiter, path, skipped)
    _, header = next(rows)
    names = [name.strip() for name in header]
    caption = Column(column, keys)
    if missing := caption.find(names):
        raise RMDError(f"{path}{missing.sentence} (the fields of its header are separated by {_name(delimiter)})")
    name = caption.name or ""
    if names.count(name) > 1:
        raise RMDError(f"{path} has {names.count(name)} columns {name}: give each its own name")
    place = names.index(name)
    for number, row in rows:
        yield f"{path}, line {number}", row[place] if len(row) == len(names) else _ragged(row, names, delimiter)


def _without_nul(path: Path) -> Iterator[str]:
    """Yield the lines of a table; raise RMDError for a NUL character, which not every version of `csv` reads."""
    for number, line in enumerate(read_lines(path), start=1):
        if "\0" in line:
            raise RMDError(f"{path}, line {number} contains a NUL character: save the table as text")
        yield line


def _ragged(row: list[str], names: list[str], delimiter: str) -> Unfit:
    has = "1 field" if len(row) == 1 else f"{len(row)} fields"
    return Unfit(
        "with another number of fields than the header",
        f" has {has}, but the header has {len(names)} ({listed(names)}): put captions that contain "
        f"{_name(delimiter)} or line ends in quotes",
    )


def _delimiter(header: str, path: Path, column: Column) -> str:
    """Return the delimiter with which a header has the column, preferring the usual one of the file's suffix."""
    usual = "\t" if ".tsv" in path.suffixes[-2:] else ","
    fields = {
        delimiter: [name.strip() for name in next(csv.reader([header[:65536]], delimiter=delimiter), [])]
        for delimiter in (usual, *_DELIMITERS)
    }
    fitting = [delimiter for delimiter, names in fields.items() if Column(column.name, RECIPE_KEYS).find(names) is None]
    # If no delimiter gives the column, the error shows the one that gives the most fields.
    return fitting[0] if fitting else max(fields, key=lambda delimiter: len(fields[delimiter]))


def _quoted_rows(lines: Iterable[str], delimiter: str, path: Path, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the numbers of their first lines; raise RMDError if quotes are not balanced."""
    start = 1 + skipped

    def fed() -> Iterator[str]:
        for number, line in enumerate(lines, start=1 + skipped):
            if number - start >= MOST_LINES:
                raise RMDError(
                    f"{path}: the row that begins in line {start} spans {MOST_LINES} lines: close the quote in it"
                )
            yield line + "\n"

    reader = csv.reader(fed(), delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        start = reader.line_num + 1 + skipped
        usual = csv.field_size_limit(MAX_LINE)  # process-wide: restored at once for other readers
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise RMDError(
                f"{path}: the quotes in the row that begins in line {start} are not balanced ({error}): put a field "
                "that contains quotes in quotes, and double those inside"
            ) from error
        finally:
            csv.field_size_limit(usual)
        if row is None:
            return
        if row:
            yield start, row


def _quoted(path: Path, skipped: int) -> bool:
    """Return whether quotes are balanced in a whole tab-separated file, and every row is then as long as the header."""
    lines = read_lines(path)
    for _ in range(skipped):
        next(lines)
    width = None
    try:
        for _, row in _quoted_rows(lines, "\t", path):
            width = len(row) if width is None else width
            if len(row) != width or any("\t" in field and "\n" in field for field in row):
                return False
    except RMDError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise
        return False
    return True


def _plain_rows(lines: Iterable[str], skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a tab-separated file whose quotes are ordinary characters, except around a whole field."""
    for number, line in enumerate(lines, start=1 + skipped):
        if line:
            yield number, [_unquoted(field) for field in line.split("\t")]


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if whole else field


def _name(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, repr(delimiter))
