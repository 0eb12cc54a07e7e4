"""Decodes text files: UTF-8, and UTF-16 or UTF-32 with a byte-order mark. Other encodings are refused, not guessed."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from rmd.common.errors import RMDError

MAX_LINE = 16 * 2**20
"""Longest line in characters: records may carry blobs, but a file without line ends is not read whole."""
MAX_WHOLE = 2 * 2**30
"""Largest size, in bytes, of a file that has to be read whole."""
_CHUNK = 2**20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
"""Byte-order marks; that of UTF-32 starts with that of UTF-16, which therefore comes later."""


def decode(content: bytes, where: str) -> str:
    """Return the text of a small file with newlines as line ends; raise RMDError, naming `where`, if it is not text."""
    return "".join(_decoded(io.BytesIO(content), where))


def read_whole(path: Path) -> str:
    """Read the text of a file; raise RMDError if it is not text, or is larger than 2 GB."""
    with open_binary(path) as file:
        content = file.read(MAX_WHOLE + 1)
    if len(content) > MAX_WHOLE:
        raise RMDError(f"{path} is larger than {MAX_WHOLE // 2**30} GB: write it as .jsonl, one record a line")
    return decode(content, str(path))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends, which may be LF, CRLF or CR.

    Unicode's line separators are ordinary characters of a line.

    Raises:
        RMDError: the file is not text, or a line is longer than 16 million characters.
    """
    rest, number = "", 1
    with open_binary(path) as file:
        for text in _decoded(file, str(path)):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                yield line.removeprefix("\ufeff")  # byte-order marks inside a file come from concatenated files
            number += len(lines)
            if len(rest) > MAX_LINE:
                raise RMDError(f"{path}, line {number} is longer than {MAX_LINE} characters: does it lack line ends?")
    if rest:
        yield rest.removeprefix("\ufeff")


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, decompressing it if its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _decoded(file: IO[bytes], where: str) -> Iterator[str]:
    """Yield the text in pieces, with newlines as line ends."""
    chunk = file.read(_CHUNK)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if chunk.startswith(mark)), (b"", "utf-8"))
    # In UTF-16, every other byte of Latin text is zero. A few zeros are a fault of single rows, reported there.
    if not mark and chunk.count(0) * 4 >= len(chunk) > 0:
        raise RMDError(f"{where} is UTF-16 without its byte-order mark, or no text at all: save it as UTF-8 text")
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
