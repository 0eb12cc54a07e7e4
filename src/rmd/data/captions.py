"""Defines what one caption is, and which captions are kept.

Only readable text is a caption. Anything else is refused with a reason, never converted. `clean` then strips captions
and leaves out duplicates, captions of the wrong length, and the prompts of benchmarks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from rmd.common.errors import RMDError, shown

COLUMNS = ("prompt", "caption", "text", "Prompt", "Caption", "TEXT")
"""Column names that are tried in this order when no column is named."""
MAX_CHARACTERS = 100_000
"""Longest caption in characters; a longer text is a whole document that lost its line ends."""
# A lone surrogate is half an emoji; a decoder writes U+FFFD for bytes that it cannot read, and U+FFFE is a byte-order
# mark read in the wrong order. All three show that characters were lost before the text was read.
_DAMAGED = re.compile("[\ud800-\udfff\ufffd-\uffff]")
# The control characters that str.split treats as spaces are allowed: tab, line ends, U+001C to U+001F, U+0085.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_INVISIBLE = " \u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Characters that cannot be seen: a text that consists of nothing else is empty."""


@dataclass(frozen=True)
class Unfit:
    """The reason why a value is not one caption.

    Attributes:
        reason: the reason under which skipped rows are counted: "2 not text (number)".
        sentence: the text that follows the row's position in an error message: ": the caption is a number (3), not
            text".
        skippable: whether to suggest that the row may be skipped.
    """

    reason: str
    sentence: str
    skippable: bool = True


Row = tuple[str, object]
"""The position of a caption, as an error message shows it, and its value: anything, None, or `Unfit`."""
Rows = Iterator[Row]


@dataclass(frozen=True)
class Keys:
    """Names, as the user writes them, of the settings that decide about rows; None for a setting the user lacks."""

    column: str | None = "data.column"
    skip: str | None = "data.skip_invalid=true"


RECIPE_KEYS = Keys()
"""The names of these settings in a recipe."""


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
            return Unfit("not text (record)", f": the caption is a record (with {listed(value)}), not text")
        case bytes():
            return Unfit("not text (bytes)", f": the caption is {len(value)} bytes, not text")
        case _:
            return Unfit("not text (other)", f": the caption is of type {type(value).__name__}, not text")


def check_prompts(texts: Iterable[str]) -> list[str]:
    """Return the prompts unchanged.

    Raises:
        RMDError: there are none, or one of them is not text, or is text that no tokenizer or file can hold.
    """
    prompts = list(texts)
    if not prompts:
        raise RMDError("there is no prompt: give at least one")
    for number, text in enumerate(prompts, start=1):
        if not isinstance(text, str):
            raise RMDError(f"a prompt must be text, but prompt {number} is {shown(text)}")
        if isinstance(unfit := _readable(text), Unfit):
            raise RMDError(f"the prompt {shown(text)} cannot be used{unfit.sentence}")
    return prompts


def _readable(text: str) -> str | Unfit:
    if len(text) > MAX_CHARACTERS:
        return Unfit("too large", f": the caption has {len(text)} characters, but at most {MAX_CHARACTERS} are allowed")
    if match := _DAMAGED.search(text):
        code = ord(match[0])
        what = "half of a character (a truncated emoji)" if code < 0xE000 else "a replacement character"
        return Unfit("with damaged characters", f": the caption contains {what}, U+{code:04X}")
    if match := _CONTROL.search(text):
        return Unfit("with control characters", f": the caption contains the control character U+{ord(match[0]):04X}")
    return text


class Column:
    """Finds the caption in the records of one file: in the named column, or else in one with a usual name.

    The first record with such a column decides for the whole file, so that a file never mixes two columns.
    """

    def __init__(self, name: str | None, keys: Keys) -> None:
        self._keys, self._seen = keys, False
        self.name = name

    def of(self, record: object) -> object:
        """Return the value in a record's column, or the reason why there is none."""
        if not isinstance(record, dict):
            return Unfit("neither a prompt nor a record", " is neither a prompt nor a record")
        missing = self.find(record)
        return record[self.name] if missing is None else missing

    def find(self, names: Collection[object]) -> Unfit | None:
        """Find the column among the names; return None, or the reason why it is missing."""
        if self.name is None:
            self.name = next((name for name in COLUMNS if name in names), None)
        if self.name is None:
            advice = f"name one with {self._keys.column}" if self._keys.column else "rename the one with the prompts"
            return Unfit(
                "without a caption", f" has none of the columns prompt, caption, text: {advice}", skippable=False
            )
        if self.name not in names:
            sentence = f" has no column {printable(self.name[:80])}: it has {listed(names)}"
            return Unfit("without a caption", sentence, skippable=self._seen)
        self._seen = True
        return None


def listed(names: Collection[object]) -> str:
    """Return the first few of many names, for an error message."""
    text = ", ".join(printable(str(name)[:40]) for name in islice(names, 12))
    more = len(names) - 12
    return f"{text} and {more} more" if more > 0 else text or "none"


def printable(name: str) -> str:
    """Return a name from a file with `?` for characters that a terminal would interpret or cannot show."""
    return "".join(c if c.isprintable() else "?" for c in name)


# --- which captions are kept ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """Prompts in the order of their source, and how many were left out, by reason."""

    texts: list[str]
    left_out: dict[str, int]


def clean(
    texts: Iterable[str], *, min_chars: int = 1, max_chars: int | None = None, benchmarks: Collection[str] = frozenset()
) -> Reading:
    """Strip prompts, and leave out those that are empty, too short or too long, duplicates, or in a benchmark.

    Two prompts are duplicates if they differ in case, spaces and punctuation only.

    Args:
        texts: prompts as they are written in their source.
        min_chars: smallest length of a stripped prompt in characters.
        max_chars: largest length in characters; None: no limit.
        benchmarks: the keys (see `key`) of prompts to leave out.
    """
    kept, seen = list[str](), set[str]()
    out = dict.fromkeys(("empty", "too short", "too long", "in a benchmark", "duplicate"), 0)
    for raw in texts:
        text = " ".join(raw.replace("\ufeff", "").split())
        name = key(text)
        reason = (
            "empty" if not text.strip(_INVISIBLE)
            else "too short" if len(text) < min_chars
            else "too long" if max_chars is not None and len(text) > max_chars
            else "in a benchmark" if name in benchmarks
            else "duplicate" if name in seen
            else None
        )  # fmt: skip
        if reason is None:
            kept.append(text)
            seen.add(name)
        else:
            out[reason] += 1
    return Reading(kept, {reason: count for reason, count in out.items() if count})


def key(text: str) -> str:
    """Return the key by which duplicates are found: letters with their marks, and digits, in lower case."""
    if text.isascii():
        return "".join(re.findall(r"\w+", text.lower())) or text.strip()
    # In many scripts the vowels are marks, which \w does not match: without marks, different words would be equal.
    plain = unicodedata.normalize("NFKC", text.casefold())
    kept = (c for c in plain if c.isalnum() or c == "_" or unicodedata.category(c).startswith("M"))
    return "".join(kept) or plain.strip()


# --- commands of an image service, as in `--ar 3:2 --v 5 --no text, watermark` ----------------------------------------

_URL = r"<?https?://\S+"
_START = r"(?:^|(?<=[\s,.]))"
_HYPHENS = rf"{_START}--"
_DASH = rf"{_START}(?:--|[—–―])"  # phones turn two hyphens into one long dash
_LAST = r"(?=\s*(?:$|--\w|[—–―]\w))"  # only commands follow
_NUMBERS = (
    "(?:ar|aspect|v|version|niji|s|stylize|c|chaos|w|weird|q|quality|seed|sameseed|stop|iw|sw|cw|ow|sv|r|repeat|h|height|"
    "motion|bs|exp)"
)
_FLAGS = (
    "(?:niji|tile|video|hd|test|testp|creative|upbeta|uplight|upanime|upexp|beta|turbo|fast|relax|draft|raw|public|"
    "stealth|loop)"
)
_COMMANDS = re.compile(
    "|".join(
        (
            rf"{_DASH}no\b.*?(?=\s*(?:$|--\w|\s[—–―]\w))",  # all words up to the next command
            rf"{_DASH}(?:sref|cref|oref|dref|p|profile|personalize)\b(?:[\s,]+(?:{_URL}|random\b\S*|\S*\d\S*))*",
            rf"(?:{_DASH}|(?<=[^\s-])--){_NUMBERS}\s*[\d.]\S*",
            rf"{_DASH}(?:style|mode|end)\s+[^\s—–―-]\S*",
            rf"{_HYPHENS}{_FLAGS}\b|{_DASH}{_FLAGS}\b{_LAST}",
            rf"{_HYPHENS}\w[\w-]*(?:\s+[^\s—–―-]\S*)?",  # any other command: a word and its value
            _URL,
        )
    ),
    re.IGNORECASE | re.DOTALL,
)
_WEIGHT = re.compile(r"::\s*(-?\d*\.?\d+)?")


def strip_commands(text: str) -> str:
    """Return an image service's prompt without its commands and image addresses.

    Weights are removed as well (`cat::2 dog` becomes "cat, dog"), together with the parts of negative weight, which say
    what the picture must not show.
    """
    plain = " ".join(_COMMANDS.sub(" ", text).split())
    if "::" not in plain:
        return plain
    pieces = _WEIGHT.split(plain)  # part, weight, part, weight, ..., last part
    parts = [
        part.strip(" ,")
        for part, weight in zip(pieces[::2], [*pieces[1::2], None], strict=True)
        if weight is None or not weight.startswith("-")
    ]
    return ", ".join(part for part in parts if part)
