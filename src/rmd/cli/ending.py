"""Ends a command: prints an error as one sentence, and copes with standard streams that fail."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rmd.common.errors import RMDError
from rmd.common.memory import is_out_of_memory

FAILED, BROKEN_PIPE = 1, 141
"""Exit statuses: for an error, and the one that shells report for a program whose output nobody reads any more."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, lone surrogates, and characters that change the reading order of text."""
_LESS = "use a smaller batch, smaller sides, fewer frames or half precision, or a machine with more memory"


def prepare_streams() -> None:
    """Make sure that the standard streams exist and accept any text.

    Characters that a stream's encoding lacks are written as escapes. A stream that is closed (`>&-`) is connected to
    the null device; otherwise the next file to be opened would get its number, and with it whatever libraries print.
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
    """Raise RMDError if the current folder no longer exists, which would make libraries end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise RMDError(
            "the current folder has been removed: change to another one and run the command again"
        ) from error


@contextmanager
def complete_output() -> Iterator[None]:
    """Flush what the block printed, so that a failure to write it is an error of the command.

    Python itself flushes at exit, which is too late to change the exit status. Output that cannot be written is
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
    """Print the sentence for an error on standard error, if possible."""
    try:
        print(f"rmd: {sentence(error)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Discard what a stream still buffers, which Python would otherwise try to write again at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def sentence(error: Exception) -> str:
    """Return a sentence on what went wrong, as one line of printable characters."""
    text = " ".join(_of(error, " ".join(str(error).split())).split())
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _of(error: Exception, message: str) -> str:
    match error:
        case RMDError():
            return message
        case OSError():
            return _of_system(error, message)
        case MemoryError():
            return f"there is not enough memory: {_LESS}"
        case RuntimeError() if is_out_of_memory(error):
            return f"there is not enough memory: {_LESS} ({message[:200].rstrip('. ')})"
        case RecursionError():
            return "a file or setting is nested too deeply: check those that were given"
        case UnicodeDecodeError():
            return f"a file is not UTF-8 text (at byte {error.start}): save it as UTF-8"
        case UnicodeEncodeError():
            return f"{ascii(error.object[error.start : error.end])[:60]} cannot be encoded: use names without it"
        case ValueError() if "embedded null" in message:
            return "a name or path contains a NUL character: remove it"
        case ImportError():
            return f"a Python package is missing or damaged ({message[:300]}): install RMD again"
    return (
        f"unexpected {type(error).__name__}: {message[:2000]}; "
        "run again as rmd --debug ... for the traceback, and please report it"
    )


def _of_system(error: OSError, message: str) -> str:
    """Return a sentence on an error of the operating system."""
    name = _cut(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else ""
    if error.errno == errno.ENOSPC:
        where = f" for {name}" if name else ""
        return f"the disk is full: there is no space left{where}; free some and run the command again"
    if error.errno == errno.ENOMEM:
        return f"there is not enough memory: {_LESS}"
    if name:
        return f"cannot use {name}: {error.strerror or message}"
    return f"a file cannot be read or written: {error.strerror or message[:500] or type(error).__name__}"


def _cut(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}...{name[-60:]}"
