"""Defines what counts as one caption: readable text. Anything else is refused with a reason, never converted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from rmd.common.errors import RMDError, shown

COLUMNS = ("prompt", "caption", "text", "Prompt", "Caption", "TEXT")
"""Column names that are tried in this order when no column is named."""
MAX_CHARACTERS = 100_000
"""Longest caption, in characters; a longer text is a whole document that lost its line ends."""
# A lone surrogate is half an emoji; a decoder writes U+FFFD for bytes that it cannot read, and U+FFFE is a byte-order
# mark read in the wrong order. All three show that characters were lost before the text was read.
_DAMAGED = re.compile("[\ud800-\udfff\ufffd-\uffff]")
# Characters that str.split treats as spaces are left: tab, line ends, U+001C to U+001F, U+0085.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


@dataclass(frozen=True)
class Unfit:
    """The reason why something is not one caption.

    Attributes:
        reason: the reason under which skipped rows are counted: "2 not text (number)".
        sentence: the text that follows the row's position in an error message: ": the caption is a number (3), not
            text".
        mendable: whether it is worth suggesting to skip the row.
    """

    reason: str
    sentence: str
    mendable: bool = True


Row = tuple[str, object]
"""The position of a caption, as an error message shows it, and its value: anything, None, or why it is unfit."""
Rows = Iterator[Row]


@dataclass(frozen=True)
class Keys:
    """The user's names for the settings that decide about rows; None means that there is no such setting."""

    column: str | None = "data.column"
    skip: str | None = "data.skip_invalid=true"


RECIPE_KEYS = Keys()
"""Names of these settings in a recipe."""


def caption_of(value: object) -> str | Unfit:
    """Return the caption in a value: text, or a list of exactly one text. None (missing) is an empty caption."""
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
    """Return the prompts unchanged.

    Raises:
        RMDError: there are none, or one of them is not text, or is text that no tokenizer or file can hold.
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
    """Finds the caption in the records of one file: in the named column, or else in a usual one.

    The first record with a usual column decides for the whole file, so that a file never mixes two columns.
    """

    def __init__(self, name: str | None, keys: Keys) -> None:
        self._keys, self._found = keys, False
        self.name = name

    def of(self, record: object) -> object:
        """Return the value in a record's column, or the reason why there is none."""
        if not isinstance(record, dict):
            return Unfit("neither a prompt nor a record", " is neither a prompt nor a record")
        lacking = self.find(record)
        return record[self.name] if lacking is None else lacking

    def find(self, names: Collection[object]) -> Unfit | None:
        """Find the column among the names; return None, or the reason why it is not there."""
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
    """Return the first few of many names, for an error message."""
    text = ", ".join(plain(str(name)[:40]) for name in islice(names, 12))
    more = len(names) - 12
    return f"{text} and {more} more" if more > 0 else text or "none"


def plain(name: str) -> str:
    """Return a name from a file without characters that a terminal would interpret or cannot show."""
    return "".join(c if c.isprintable() else "?" for c in name)
