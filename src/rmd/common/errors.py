"""The exception for errors that users can correct, and small checks that raise it."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Name = TypeVar("Name", bound=str)


class RMDError(Exception):
    """An error that the user can correct: one sentence that says what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


@contextmanager
def located(where: str) -> Iterator[None]:
    """Begin the RMDErrors of the block with `where`, the place that they are about."""
    try:
        yield
    except RMDError as error:
        raise RMDError(f"{where}: {error}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known word most similar to `word`, or `""` if none is similar."""
    near = difflib.get_close_matches(word[:80], list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shown(value: object) -> str:
    """Return a value as an error message quotes it, in at most 60 characters.

    Only the beginning of a value is converted to text, however large or deeply nested it is.
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 12
_SHORT.maxlevel = 3


def one_of(what: str, value: object, known: tuple[Name, ...]) -> Name:
    """Return `value` if it is one of the known names, or else raise RMDError, suggesting the most similar one.

    Args:
        what: what the names are names of, such as "family".
        value: the name that was given.
        known: the names that are allowed.
    """
    for name in known:
        if value == name:
            return name
    guess = did_you_mean(value, known) if isinstance(value, str) else ""
    names = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
    raise RMDError(f"unknown {what} {shown(value)}{guess}: use {names}")


def check_text(what: str, text: str) -> None:
    """Raise RMDError, naming `what`, for a NUL character or a lone surrogate, which files and JSON cannot hold."""
    if "\0" in text:
        raise RMDError(f"{what} contains a NUL character, which must be removed: {shown(text)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RMDError(f"{what} contains a character that is not valid Unicode, which must be removed: {shown(text)}")


def integer(what: str, value: object) -> int:
    """Return `value` if it is an integer (a boolean is not), or else raise RMDError, naming `what`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RMDError(f"{what} must be an integer, got {shown(value)}")
    return value


def finite(what: str, value: object) -> float:
    """Return `value` as a float if it is a finite number (a boolean is not), or else raise RMDError, naming `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RMDError(f"{what} must be a finite number, got {shown(value)}")
    return float(value)
