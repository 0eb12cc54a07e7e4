"""Reads the formats in which people keep prompts: text, JSON, JSON lines, CSV, TSV, Parquet, and webdataset's tars.

A reader yields rows: a position and the value found there, whatever it is (`rmd.data.captions` judges the value). RMD
has its own readers because the `datasets` library casts and infers silently: lists and numbers become strings, rows
that do not fit are dropped or joined, and nobody notices before the training run has ended.
"""

from __future__ import annotations

import json
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path
from typing import Any

from rmd.common.errors import RMDError
from rmd.common.files import reason
from rmd.data.captions import Column, Keys, Row, Rows, Unfit, plain
from rmd.data.shards import read_members
from rmd.data.tables import read_table
from rmd.data.text import decode, read_lines, read_whole

FORMATS = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar")
_JSON_ERRORS = (ValueError, RecursionError)


def read_file(path: Path, column: str | None, keys: Keys) -> Rows:
    """Read the rows of a prompt file of any known format.

    Raises:
        RMDError: the file is missing, is not a regular file, has no known format, or is damaged.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RMDError(f"{path} is a folder: give a file in it, or a pattern such as {path}/*.txt")
        if not stat.S_ISREG(mode):
            raise RMDError(f"{path} is no regular file but a device, pipe or socket: give a file")
        yield from _READERS[_format(path)](path, column, keys)
    except FileNotFoundError:
        raise RMDError(f"there is no prompt file {path}: give a text file with one prompt a line") from None
    except (EOFError, zlib.error, LZMAError) as error:
        raise RMDError(f"{path} is damaged or cut short: it cannot be unpacked to its end ({error})") from error
    except tarfile.TarError as error:
        raise RMDError(f"cannot read the prompt file {path}: it is no tar archive, or a damaged one") from error
    except OSError as error:
        raise RMDError(f"cannot read the prompt file {path}: {reason(error)}") from error


def _format(path: Path) -> str:
    plain = Path(path.name[:-3]) if path.suffix.lower() == ".gz" else path
    suffix = plain.suffix.lower() or ".txt"
    suffix = ".tar" if suffix == ".tgz" else suffix
    if suffix not in FORMATS or (plain is not path and suffix == ".parquet"):
        raise RMDError(f"{path} is of no known format: let it end in {', '.join(FORMATS)}")
    return suffix


def _text(path: Path, column: str | None, keys: Keys) -> Rows:
    if column is not None:
        raise RMDError(f"{path} is text, one prompt a line, and has no columns: leave {keys.column} out")
    for number, line in enumerate(read_lines(path), start=1):
        yield f"{path}, line {number}", line


def _json(path: Path, column: str | None, keys: Keys) -> Rows:
    """Read a list of prompts, or of records."""
    try:
        values = json.loads(read_whole(path))
    except _JSON_ERRORS as error:
        lines = "; if it holds one record a line, let its name end in .jsonl" if "Extra data" in str(error) else ""
        raise RMDError(f"{path} is not JSON ({error}): give a list of prompts or of records{lines}") from error
    if not isinstance(values, list):
        raise RMDError(f"{path} holds no list: give a list of prompts or of records")
    found = Column(column, keys)
    for number, value in enumerate(values, start=1):
        yield f"{path}, entry {number}", value if isinstance(value, str) else found.of(value)


def _json_lines(path: Path, column: str | None, keys: Keys) -> Rows:
    found = Column(column, keys)
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            value = _parsed(line, ": one record a line is needed")
            yield f"{path}, line {number}", value if isinstance(value, (str, Unfit)) else found.of(value)


def _parsed(text: str, advice: str = "") -> Any:
    try:
        return json.loads(text)
    except _JSON_ERRORS as error:
        return Unfit("not JSON", f" is not JSON ({error}){advice}")


def _parquet(path: Path, column: str | None, keys: Keys) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError(f"{path}: reading Parquet needs `pip install 'rmd[data]'`") from error
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        found = Column(column, keys)
        if lacking := found.find(names):
            raise RMDError(f"{path}{lacking.sentence}")
        if names.count(found.name) > 1:
            raise RMDError(f"{path} has {names.count(found.name)} columns {found.name}: give each its own name")
        kind = file.schema_arrow.field(found.name).type
        if not _is_text(kind):
            raise RMDError(f"{path}: its column {found.name} is of the type {str(kind)[:60]}, but captions are strings")
        number = 0
        for batch in file.iter_batches(columns=[found.name]):
            for value in _values(batch.column(0)):
                number += 1
                yield f"{path}, row {number}", value
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: in its column names
        reason = plain((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise RMDError(f"{path} is not readable as Parquet: {reason}") from error


def _is_text(kind: Any) -> bool:
    """Return whether an Arrow type is text, either plain or dictionary-encoded."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _values(column: Any) -> Iterator[object]:
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:  # writers of Parquet need not check that strings are UTF-8
        for value in column:
            try:
                yield value.as_py()
            except UnicodeDecodeError as error:
                yield Unfit("not UTF-8", f": the caption is not UTF-8 (byte {error.start})")


def _tar(path: Path, column: str | None, keys: Keys) -> Rows:
    """Read the captions of a webdataset shard: its .txt and .caption members.

    If a column is named, or there are no such members, the captions come from that column, or a usual one, of its .json
    members.
    """
    texts, records = 0, 0
    if column is None:
        for name, content in read_members(path, (".txt", ".caption", ".json"), unread=(".json",)):
            if name.lower().endswith(".json"):
                records += 1
            else:
                texts += 1
                yield f"{path}, {name}", _decoded(content)
    if column is not None or (records and not texts):
        found = Column(column, keys)
        for name, content in read_members(path, (".json",)):
            records += column is not None
            text = _decoded(content)
            value = _parsed(text) if isinstance(text, str) else text
            yield f"{path}, {name}", value if isinstance(value, (str, Unfit)) else found.of(value)
    if not texts and not records:
        wanted = ".json members" if column is not None else ".txt, .caption or .json members"
        advice = f": leave {keys.column} out to read .txt and .caption" if column is not None else ""
        raise RMDError(f"{path} has no {wanted} with captions{advice}")


def _decoded(content: bytes) -> str | Unfit:
    try:
        return decode(content, "")
    except RMDError as error:
        return Unfit("not UTF-8", str(error))


_READERS: dict[str, Callable[[Path, str | None, Keys], Iterator[Row]]] = {
    ".txt": _text, ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": read_table,
    ".tsv": read_table, ".parquet": _parquet, ".tar": _tar,
}  # fmt: skip
