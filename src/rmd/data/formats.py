"""Reads the files in which people keep prompts: text, JSON, JSON lines, tables, Parquet, and webdataset's tars.

A reader yields rows: the position of a value and the value itself, whatever it is; `rmd.data.captions` judges it. RMD
has its own readers because the `datasets` library casts and infers silently (lists and numbers become strings, rows
that do not fit are dropped or joined), names no line in its errors, and reads archives without these limits.

Another package adds a format as an entry point of the group `rmd.formats`, named after the suffix without its dot; the
entry point refers to a `Reader`.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rmd.common.errors import RMDError
from rmd.common.files import reason
from rmd.common.plugins import Registry
from rmd.data.captions import Column, Keys, Rows, Unfit, printable

Reader = Callable[[Path, str | None, Keys], Rows]
"""Yields the rows of a file, given the column that holds the captions (None: a usual one) and the settings' names."""
FORMATS: Registry[Reader] = Registry(
    "rmd.formats",
    "format of prompt files",
    {
        "txt": "rmd.data.formats:read_text",
        "json": "rmd.data.formats:read_json",
        "jsonl": "rmd.data.formats:read_json_lines",
        "ndjson": "rmd.data.formats:read_json_lines",
        "csv": "rmd.data.tables:read_table",
        "tsv": "rmd.data.tables:read_table",
        "parquet": "rmd.data.formats:read_parquet",
        "tar": "rmd.data.formats:read_tar",
    },
)
"""All readers, by the suffix of their files."""
MAX_LINE = 16 * 2**20
"""Longest line in characters: records may carry blobs, but a file without line ends must not be read whole."""
MAX_WHOLE = 2 * 2**30
"""Largest size, in bytes, of a file that has to be read whole."""
MAX_MEMBER = 16 * 2**20
"""Largest size, in bytes, of a caption in an archive, and of an archive's header."""
MAX_PACKED = 16 * 2**30
"""Largest size, in bytes, of any member of a compressed archive, which must be decompressed to get past it."""
_CHUNK = 2**20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
"""Byte-order marks. That of UTF-32 starts with that of UTF-16, which therefore comes later."""
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_JSON_ERRORS = (ValueError, RecursionError)


def read_file(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the rows of a prompt file in the format that its suffix names.

    Raises:
        RMDError: the file is missing, is not a regular file, has no known format, or is damaged.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RMDError(f"{path} is a folder: give a file in it, or a pattern such as {path}/*.txt")
        if not stat.S_ISREG(mode):
            raise RMDError(f"{path} is not a regular file but a device, pipe or socket: give a file")
        yield from FORMATS.get(_format(path))(path, column, keys)
    except FileNotFoundError:
        raise RMDError(f"there is no prompt file {path}: give a text file with one prompt per line") from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise RMDError(f"{path} is damaged or truncated: it cannot be decompressed to its end ({error})") from error
    except tarfile.TarError as error:
        raise RMDError(f"cannot read the prompt file {path}: it is not a tar archive, or it is damaged") from error
    except OSError as error:
        raise RMDError(f"cannot read the prompt file {path}: {reason(error)}") from error


def _format(path: Path) -> str:
    plain = Path(path.name[:-3]) if path.suffix.lower() == ".gz" else path
    name = plain.suffix.lower().removeprefix(".") or "txt"
    name = "tar" if name == "tgz" else name
    if name not in FORMATS.names() or (plain is not path and name == "parquet"):
        known = ", ".join(f".{each}" for each in FORMATS.names())
        raise RMDError(f"{path} has no known format: give a file that ends in {known}")
    return name


# --- text -------------------------------------------------------------------------------------------------------------


def decode(content: bytes, where: str) -> str:
    """Return the text of a small file with newlines as line ends; raise RMDError, naming `where`, if it is not text."""
    return "".join(_decoded(io.BytesIO(content), where))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends, which may be LF, CRLF or CR.

    Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark; other encodings are refused, not guessed. Unicode's line
    separators are ordinary characters of a line.

    Raises:
        RMDError: the file is not text, or a line is longer than 16 million characters.
    """
    rest, number = "", 1
    with _open_binary(path) as file:
        for text in _decoded(file, str(path)):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                yield line.removeprefix("\ufeff")  # byte-order marks inside a file come from concatenated files
            number += len(lines)
            if len(rest) > MAX_LINE:
                raise RMDError(
                    f"{path}, line {number} is longer than {MAX_LINE} characters: check that the file has line ends"
                )
    if rest:
        yield rest.removeprefix("\ufeff")


def _open_binary(path: Path) -> IO[bytes]:
    """Open a file, decompressing it if its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _decoded(file: IO[bytes], where: str) -> Iterator[str]:
    """Yield the text in pieces, with newlines as line ends."""
    chunk = file.read(_CHUNK)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if chunk.startswith(mark)), (b"", "utf-8"))
    # In UTF-16, every other byte of Latin text is zero. A few zeros are a fault of single rows, reported there.
    if not mark and chunk.count(0) * 4 >= len(chunk) > 0:
        raise RMDError(f"{where} is UTF-16 without its byte-order mark, or not text at all: save it as UTF-8 text")
    decoder = codecs.getincrementaldecoder(encoding)()
    ends = io.IncrementalNewlineDecoder(decoder, translate=True)
    done, chunk = len(mark), chunk[len(mark) :]
    while True:
        pending = len(decoder.getstate()[0])
        try:
            yield ends.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at, name = done - pending + error.start, encoding[:6].removesuffix("-").upper()
            raise RMDError(f"{where} is not {name} (byte {at}): save it as UTF-8 text") from error
        if not chunk:
            return
        done += len(chunk)
        chunk = file.read(_CHUNK)


def read_text(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the lines of a text file; each is a prompt."""
    if column is not None:
        raise RMDError(f"{path} is text with one prompt per line and has no columns: leave {keys.column} out")
    for number, line in enumerate(read_lines(path), start=1):
        yield f"{path}, line {number}", line


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_json(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the entries of a JSON file that holds a list of prompts, or of records."""
    with _open_binary(path) as file:
        content = file.read(MAX_WHOLE + 1)
    if len(content) > MAX_WHOLE:
        raise RMDError(f"{path} is larger than {MAX_WHOLE // 2**30} GB: write it as .jsonl, one record per line")
    text = decode(content, str(path))
    del content
    try:
        values = json.loads(text)
    except _JSON_ERRORS as error:
        lines = "; if it holds one record per line, rename it to .jsonl" if "Extra data" in str(error) else ""
        raise RMDError(f"{path} is not JSON ({error}): give a list of prompts or of records{lines}") from error
    if not isinstance(values, list):
        raise RMDError(f"{path} does not hold a list: give a list of prompts or of records")
    caption = Column(column, keys)
    for number, value in enumerate(values, start=1):
        yield f"{path}, entry {number}", value if isinstance(value, str) else caption.of(value)


def read_json_lines(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the lines of a file with one JSON record, or one quoted prompt, per line."""
    caption = Column(column, keys)
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            value = _parsed(line, ": one record per line is needed")
            yield f"{path}, line {number}", value if isinstance(value, (str, Unfit)) else caption.of(value)


def _parsed(text: str, advice: str = "") -> Any:
    try:
        return json.loads(text)
    except _JSON_ERRORS as error:
        return Unfit("not JSON", f" is not JSON ({error}){advice}")


# --- Parquet ----------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the values of a Parquet file's column of strings; other types are refused before a row is read."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError(f"{path}: reading Parquet needs `pip install 'rmd[data]'`") from error
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        caption = Column(column, keys)
        if missing := caption.find(names):
            raise RMDError(f"{path}{missing.sentence}")
        if names.count(caption.name) > 1:
            raise RMDError(f"{path} has {names.count(caption.name)} columns {caption.name}: give each its own name")
        kind = file.schema_arrow.field(caption.name).type
        if not _is_text(kind):
            raise RMDError(f"{path}: its column {caption.name} has type {str(kind)[:60]}, but captions are strings")
        number = 0
        for batch in file.iter_batches(columns=[caption.name]):
            for value in _values(batch.column(0)):
                number += 1
                yield f"{path}, row {number}", value
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: in its column names
        why = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise RMDError(f"{path} is not readable as Parquet: {why}") from error


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


# --- tar archives -----------------------------------------------------------------------------------------------------


def read_tar(path: Path, column: str | None, keys: Keys) -> Rows:
    """Yield the captions of a webdataset shard: its .txt and .caption members.

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
                yield f"{path}, {name}", _member_text(content)
    if column is not None or (records and not texts):
        caption = Column(column, keys)
        for name, content in read_members(path, (".json",)):
            records += column is not None
            text = _member_text(content)
            value = _parsed(text) if isinstance(text, str) else text
            yield f"{path}, {name}", value if isinstance(value, (str, Unfit)) else caption.of(value)
    if not texts and not records:
        wanted = ".json members" if column is not None else ".txt, .caption or .json members"
        advice = f": leave {keys.column} out to read .txt and .caption" if column is not None else ""
        raise RMDError(f"{path} has no {wanted} with captions{advice}")


def _member_text(content: bytes) -> str | Unfit:
    try:
        return decode(content, "")
    except RMDError as error:
        return Unfit("not UTF-8", str(error))


def read_members(path: Path, suffixes: Sequence[str], *, unread: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of an archive's regular files with certain suffixes, without extracting anything.

    Names are cut to their last 120 characters, and characters that a terminal cannot show are replaced. Hidden files,
    files that macOS adds (`._000.txt`, `__MACOSX/`), links and devices are left out.

    Args:
        path: the archive, which may be compressed.
        suffixes: suffixes of the files to yield.
        unread: those of the suffixes whose files are yielded without their contents.

    Raises:
        RMDError: the archive is damaged, truncated, or several archives in one file, or a member is too large.
        tarfile.TarError: the file is not an archive at all.
    """
    with path.open("rb") as stored:
        opener: Any = _COMPRESSED.get(stored.read(2))
        stored.seek(0)
        file = _Bounded(opener(stored) if opener else stored)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := _next(archive)) is not None:
                name = printable(member.name[-120:])
                where = f"{path}, {name}"
                if opener and member.size > MAX_PACKED:
                    raise RMDError(f"{where} is larger than {MAX_PACKED // 2**30} GB: decompress the archive")
                suffix = "." + member.name.rpartition(".")[2].lower()
                if not member.isfile() or suffix not in suffixes or is_hidden(member.name):
                    continue
                if member.size > MAX_MEMBER:
                    raise RMDError(
                        f"{where} is larger than {MAX_MEMBER // 2**20} MB and cannot be a caption: remove it"
                    )
                content = None if suffix in unread else archive.extractfile(member)
                yield name, b"" if content is None else content.read()
            _check_end(file, archive.offset, path)


def is_hidden(name: str) -> bool:
    """Return whether a path is hidden, or belongs to the files that macOS adds to archives and foreign disks."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


class _Bounded(io.BufferedReader):
    """A file that refuses large reads: a header may claim any size, which `tarfile` would read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_MEMBER + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member; raise tarfile.ReadError for a header that leads nowhere."""
    before = archive.offset
    try:
        member = archive.next()
    except (ValueError, OverflowError, IndexError) as error:  # invalid numbers and names in a header
        raise tarfile.ReadError(str(error)) from error
    if member is not None and archive.offset < before:
        raise tarfile.ReadError("a header points back")
    archive.members = []  # type: ignore[attr-defined]  # not in its stubs; it would keep every header in memory
    return member


def _check_end(file: IO[bytes], end: int, path: Path) -> None:
    """Raise RMDError unless an archive ends with blocks of zeros; `tarfile` accepts anything else as its end, too."""
    file.seek(end)
    first = file.read(tarfile.BLOCKSIZE)
    if len(first) < tarfile.BLOCKSIZE:
        raise RMDError(f"{path} is truncated: download it again")
    if any(first):
        raise RMDError(f"{path} is damaged after its first {end} bytes: download it again")
    while rest := file.read(2**20):
        if any(rest):
            raise RMDError(
                f"{path} consists of several archives, and only the first would be read: split it into separate files"
            )
