"""What counts as one caption: text that a person can read. Anything else is said by name, never turned into text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from rmd.errors import RMDError, shown

COLUMNS = ("prompt", "caption", "text", "Prompt", "Caption", "TEXT")
"""Names under which a record's caption is looked for, in this order, when no column is named."""
MAX_CHARACTERS = 100_000
"""Longest caption; a longer text is a whole document that lost its line ends."""
# A lone surrogate is half an emoji; U+FFFD stands where a decoder gave up, U+FFFE where it took the wrong byte order.
# All three say that characters were lost before the text came here.
_DAMAGED = re.compile("[\ud800-\udfff\ufffd-\uffff]")
# Those that str.split takes for spaces are left: tab, line ends, U+001C to U+001F, U+0085.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class Unfit:
    """Why something is not one caption.

    Attributes:
        reason: under which it is counted where such rows are left out: "2 not text (number)".
        sentence: what follows the place of the row in an error message: ": the caption is a number (3), not text".
        mendable: whether leaving the row out is worth suggesting.
    """

    reason: str
    sentence: str
    mendable: bool = True


Row = tuple[str, object]
"""Where a caption stands, as an error message has it, and what stands there: any value, None, or why it is unfit."""
Rows = Iterator[Row]


@dataclass(frozen=True)
class Keys:
    """How the settings that decide about rows are called where the user gives them; None: there is no such setting."""

    column: str | None = "data.column"
    skip: str | None = "data.skip_invalid=true"


RECIPE_KEYS = Keys()
"""How a recipe calls them."""


def caption_of(value: object) -> str | Unfit:
    """The caption that a value is: text, or a list of exactly one text. None, a missing value, is an empty caption."""
    match value:
        case Unfit():
            return value
        case None:
            return ""
        case str():
            return _readable(value)
        case [str() as only]:
            return _readable(only)
        case bool():
            return Unfit("not text (true or false)", f": the caption is {str(value).lower()}, not text")
        case int() | float():
            return Unfit("not text (number)", f": the caption is a number ({shown(value)}), not text")
        case list() | tuple():
            return Unfit("not text (list)", f": the caption is a list of {len(value)}, not one text")
        case dict():
            return Unfit("not text (record)", f": the caption is a record (of {listed(value)}), not text")
        case bytes():
            return Unfit("not text (bytes)", f": the caption is {len(value)} bytes, not text")
        case _:
            return Unfit("not text (other)", f": the caption is of type {type(value).__name__}, not text")


def check_prompts(texts: Iterable[str]) -> list[str]:
    """Return the prompts as they are.

    Raises:
        RMDError: there is none, or one of them is not text, or is text that no tokenizer and no file can hold.
    """
    found = list(texts)
    if not found:
        raise RMDError("there is no prompt: give at least one")
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str):
            raise RMDError(f"a prompt must be text, but prompt {number} is {shown(text)}")
        if isinstance(unfit := _readable(text), Unfit):
            raise RMDError(f"the prompt {shown(text)} cannot be used{unfit.sentence}")
    return found


def _readable(text: str) -> str | Unfit:
    if len(text) > MAX_CHARACTERS:
        return Unfit(
            "too large", f": the caption has {len(text)} characters, more than the {MAX_CHARACTERS} that one may have"
        )
    if found := _DAMAGED.search(text):
        code = ord(found[0])
        what = "half of a character (an emoji that was cut)" if code < 0xE000 else "the mark of lost characters"
        return Unfit("with damaged characters", f": the caption holds {what}, U+{code:04X}")
    if found := _CONTROL.search(text):
        return Unfit("with control characters", f": the caption holds the control character U+{ord(found[0]):04X}")
    return text


class Column:
    """Finds the caption in the records of one file: in the column that was named, else in a usual one.

    The first record that has a usual column decides for the whole file, so that a file never mixes two of them.
    """

    def __init__(self, name: str | None, keys: Keys) -> None:
        self._keys, self._found = keys, False
        self.name = name

    def of(self, record: object) -> object:
        """The value in a record's column, or why there is none."""
        if not isinstance(record, dict):
            return Unfit("neither a prompt nor a record", " is neither a prompt nor a record")
        lacking = self.find(record)
        return record[self.name] if lacking is None else lacking

    def find(self, names: Collection[object]) -> Unfit | None:
        """Find the column among names; returns why it is not there, or None."""
        if self.name is None:
            self.name = next((name for name in COLUMNS if name in names), None)
        if self.name is None:
            advice = (
                f"name one with {self._keys.column}" if self._keys.column else "give the one of its prompts such a name"
            )
            return Unfit(
                "without a caption", f" has none of the columns prompt, caption, text: {advice}", mendable=False
            )
        if self.name not in names:
            return Unfit(
                "without a caption",
                f" has no column {plain(self.name[:80])}: it has {listed(names)}",
                mendable=self._found,
            )
        self._found = True
        return None


def listed(names: Collection[object]) -> str:
    """The first names of many, as an error message has them."""
    text = ", ".join(plain(str(name)[:40]) for name in islice(names, 12))
    more = len(names) - 12
    return f"{text} and {more} more" if more > 0 else text or "none"


def plain(name: str) -> str:
    """A name out of a file, without what a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else "?" for c in name)
