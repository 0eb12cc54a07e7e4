"""Reads CSV and TSV files as spreadsheets, pandas and shell scripts write them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.data.captions import RECIPE_KEYS, Column, Keys, Rows, Unfit, listed
from rmd.data.text import MAX_LINE, read_lines

MOST_LINES = 200
"""Largest number of lines in a row; a longer row starts with a quote that is never closed."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_table(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the column of a table with a header, whose fields are separated by commas, semicolons, tabs or bars.

    The header decides the delimiter: the file's usual one (tabs in .tsv) if that gives the column, else another one
    that does. In a tab-separated file, quotes have a meaning only if they pair in the whole file; in many such files
    they do not.
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
    found = Column(column, keys)
    if lacking := found.find(names):
        raise RMDError(f"{path}{lacking.sentence} (the fields of its header are parted by {_name(delimiter)})")
    if names.count(found.name or "") > 1:
        raise RMDError(f"{path} has {names.count(found.name or '')} columns {found.name}: give each its own name")
    place = names.index(found.name or "")
    for number, row in rows:
        where = f"{path}, line {number}"
        yield where, row[place] if len(row) == len(names) else _ragged(row, names, delimiter)


def _without_nul(path: Path) -> Iterator[str]:
    """Yield the lines of a table; raise RMDError for a NUL character, which not every version of `csv` reads."""
    for number, line in enumerate(read_lines(path), start=1):
        if "\0" in line:
            raise RMDError(f"{path}, line {number} holds a NUL character: save the table as text")
        yield line


def _ragged(row: list[str], names: list[str], delimiter: str) -> Unfit:
    has = "1 field" if len(row) == 1 else f"{len(row)} fields"
    return Unfit(
        "with another number of fields than the header",
        f" has {has}, but the header has {len(names)} ({listed(names)}): put a caption that holds "
        f"{_name(delimiter)} or line ends in quotes",
    )


def _delimiter(header: str, path: Path, column: Column) -> str:
    """Return the delimiter of a header."""
    usual = "\t" if ".tsv" in path.suffixes[-2:] else ","
    fields = {
        delimiter: [name.strip() for name in next(csv.reader([header[:65536]], delimiter=delimiter), [])]
        for delimiter in (usual, *_DELIMITERS)
    }
    fitting = [delimiter for delimiter, names in fields.items() if Column(column.name, RECIPE_KEYS).find(names) is None]
    # If no delimiter gives the column, the error shows the one that gives the most fields.
    return fitting[0] if fitting else max(fields, key=lambda delimiter: len(fields[delimiter]))


def _quoted_rows(lines: Iterable[str], delimiter: str, path: Path, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the numbers of their first lines; raise RMDError if quotes do not pair."""
    start = 1 + skipped

    def fed() -> Iterator[str]:
        for number, line in enumerate(lines, start=1 + skipped):
            if number - start >= MOST_LINES:
                raise RMDError(
                    f"{path}: the row that begins in line {start} goes on for {MOST_LINES} lines: a quote in it is "
                    "not closed"
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
                f"{path}: the quotes in the row that begins in line {start} do not pair ({error}): put a field that "
                "holds quotes in quotes, and double those inside"
            ) from error
        finally:
            csv.field_size_limit(usual)
        if row is None:
            return
        if row:
            yield start, row


def _quoted(path: Path, skipped: int) -> bool:
    """Return whether quotes pair in a whole tab-separated file, with every row then as long as the header."""
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
