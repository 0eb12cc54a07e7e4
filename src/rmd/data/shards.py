"""Reads the small files in a tar archive, such as a webdataset shard, one after another without extracting them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rmd.common.errors import RMDError
from rmd.data.captions import plain

MAX_MEMBER = 16 * 2**20
"""Largest size, in bytes, of a member that is read, and of a header."""
MAX_PACKED = 16 * 2**30
"""Largest size, in bytes, of any member of a compressed archive, which must be decompressed to get past it."""
_PACKED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def read_members(path: Path, suffixes: Sequence[str], *, unread: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of an archive's regular files with certain suffixes; those of `unread` come empty.

    Names are cut to their last 120 characters, and characters that a terminal cannot show are replaced. Hidden files,
    files that macOS adds (`._000.txt`, `__MACOSX/`), links and devices are left out.

    Raises:
        RMDError: the archive is damaged, cut short, or several archives in one file, or a member is too large.
        tarfile.TarError: the file is no archive at all.
    """
    with path.open("rb") as stored:
        opener: Any = _PACKED.get(stored.read(2))
        stored.seek(0)
        file = _Bounded(opener(stored) if opener else stored)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := _next(archive)) is not None:
                shown = plain(member.name[-120:])
                where = f"{path}, {shown}"
                if opener and member.size > MAX_PACKED:
                    raise RMDError(f"{where} is larger than {MAX_PACKED // 2**30} GB: unpack the archive")
                suffix = "." + member.name.rpartition(".")[2].lower()
                if not member.isfile() or suffix not in suffixes or hidden(member.name):
                    continue
                if member.size > MAX_MEMBER:
                    raise RMDError(f"{where} is larger than {MAX_MEMBER // 2**20} MB: this is no caption")
                content = None if suffix in unread else archive.extractfile(member)
                yield shown, b"" if content is None else content.read()
            _check_end(file, archive.offset, path)


def hidden(name: str) -> bool:
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
        raise RMDError(f"{path} is cut short: get it again")
    if any(first):
        raise RMDError(f"{path} is damaged behind its first {end} bytes: get it again")
    while rest := file.read(2**20):
        if any(rest):
            raise RMDError(f"{path} is several archives in one file, of which only the first would be read: part them")
