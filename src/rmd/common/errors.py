"""The one exception a user of RMD is meant to see, and the small checks that raise it."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable
from typing import TypeVar

Name = TypeVar("Name", bound=str)


class RMDError(Exception):
    """Something the user can put right: one sentence saying what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to `word`, or ``""`` if none is near."""
    near = difflib.get_close_matches(word[:80], list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shown(value: object) -> str:
    """Return `value` as an error message quotes it, in at most 60 characters.

    Only the beginning of a value is ever converted to text, however large or deeply nested it is.
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
    """Return `value` if it is one of the known names; RMDError, naming the nearest, if it is not."""
    for name in known:
        if value == name:
            return name
    guess = did_you_mean(value, known) if isinstance(value, str) else ""
    raise RMDError(f"unknown {what} {shown(value)}{guess}: use one of {', '.join(known)}")


def check_text(what: str, text: str) -> None:
    """Raise RMDError if a text holds what no file, JSON or tokenizer accepts: a NUL character or a lone surrogate."""
    if "\0" in text:
        raise RMDError(f"{what} holds a NUL character: {shown(text)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RMDError(f"{what} holds a character that is not valid Unicode: {shown(text)}")


def integer(what: str, value: object) -> int:
    """Return `value` if it is an integer (True is not); RMDError if it is not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RMDError(f"{what} must be an integer, got {shown(value)}")
    return value


def finite(what: str, value: object) -> float:
    """Return `value` as a float if it is a finite number (True is not); RMDError if it is not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RMDError(f"{what} must be a finite number, got {shown(value)}")
    return float(value)
