"""Ends a command: reports an error as one sentence, and keeps the standard streams from making it worse."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rmd.common.errors import RMDError

FAILED, BROKEN_PIPE = 1, 141
"""Exit statuses: for an error, and the one that shells report for a program whose reader went away."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, lone surrogates, and characters that change the reading order of text."""
_LESS = "use a smaller batch, smaller sides, fewer frames or half precision, or a machine with more memory"


def prepare_streams() -> None:
    """Make standard streams exist and accept any text; characters that an encoding lacks are written as escapes.

    A stream that is closed (`>&-`) is connected to the null device. Otherwise the next file to be opened would get its
    number, and with it whatever libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it stays open
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def check_folder() -> None:
    """Raise RMDError if the current folder no longer exists: libraries that a command loads would end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise RMDError(
            "the current folder has been removed: change to another one and run the command again"
        ) from error


@contextmanager
def complete_output() -> Iterator[None]:
    """Flush what the block printed, so that a failure to write it is an error of the command.

    Python itself flushes when it exits, too late to change the exit status. Output that could not be written is
    dropped.
    """
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _give_up(sys.stdout)
            raise


def say(error: Exception) -> None:
    """Print the sentence for an error on standard error, if that can be written to."""
    try:
        print(f"rmd: {sentence(error)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Discard what a stream still buffers; otherwise Python would try to write it again at exit, and fail again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def sentence(error: Exception) -> str:
    """Return what went wrong, as one line of printable characters."""
    found = " ".join(_of(error, " ".join(str(error).split())).split())
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), found)


def _of(error: Exception, message: str) -> str:
    match error:
        case RMDError():
            return message
        case OSError():
            return _of_system(error, message)
        case MemoryError():
            return f"there is not enough memory: {_LESS}"
        case RuntimeError() if _is_out_of_memory(error, message):
            return f"there is not enough memory: {_LESS} ({message[:200].rstrip('. ')})"
        case RecursionError():
            return "something that was read is nested too deeply: look at the files and settings that were given"
        case UnicodeDecodeError():
            return f"a file is not UTF-8 text (at byte {error.start}): save it as UTF-8"
        case UnicodeEncodeError():
            return (
                f"{ascii(error.object[error.start : error.end])[:60]} cannot be written: use names of plain characters"
            )
        case ValueError() if "embedded null" in message:
            return "a name or path that was given holds a NUL character: leave that out"
        case ImportError():
            return f"a Python package is missing or damaged ({message[:300]}): install RMD again"
    return (
        f"unexpected {type(error).__name__}: {message[:2000]}; "
        "run again with --debug (rmd --debug ...) for the traceback; please report it"
    )


def _of_system(error: OSError, message: str) -> str:
    """Return the sentence for an error of the operating system."""
    name = _cut(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
    if error.errno == errno.ENOSPC:
        where = f" for {name}" if name else ""
        return f"the disk is full: there is no space left{where}; free some and run the command again"
    if error.errno == errno.ENOMEM:
        return f"there is not enough memory: {_LESS}"
    if name:
        return f"cannot use {name}: {error.strerror or message}"
    return f"cannot read or write something: {error.strerror or message[:500] or type(error).__name__}"


def _is_out_of_memory(error: Exception, message: str) -> bool:
    """Return whether torch ran out of memory; compares names, since torch may not be loaded."""
    return type(error).__name__ == "OutOfMemoryError" or "allocate memory" in message or "out of memory" in message


def _cut(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}...{name[-60:]}"
