"""Reads prompts from users' files, and selects those that a source asks for.

Reading is strict. A value that is not one caption is refused by file, row and type or, if the source says so, skipped
and counted; `clean` then strips and filters, and removes duplicates and the prompts of benchmarks. JourneyDB's
annotations are read without the commands of its image service; its licence does not allow passing them on.
"""

from __future__ import annotations

import glob
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rmd.common.errors import RMDError, shown
from rmd.common.files import user_path
from rmd.data.captions import RECIPE_KEYS, Keys, Rows, caption_of
from rmd.data.commands import strip_commands
from rmd.data.formats import read_file
from rmd.data.hub_rows import read_dataset
from rmd.models.hub import HUB

_EXCLUDE_KEYS = Keys(column=None, skip=None)
# Invisible characters: a text of nothing else is no prompt.
_INVISIBLE = " \u200b\u200c\u200d\u200e\u200f\u2060\ufeff"


@dataclass(frozen=True)
class Source:
    """A source of prompts, and the rules by which prompts are selected.

    Attributes:
        name: a file, a pattern of files (`shards/*.tar`), or `hf:OWNER/NAME`.
        column: the column of the records that holds the prompts; None: prompt, caption or text.
        split: the split of a dataset on the Hub.
        journeydb: whether to remove the commands of an image service from the prompts.
        skip_invalid: whether to skip rows that are not one caption; otherwise the first of them is an error.
        min_chars, max_chars: the allowed length of a prompt in characters.
        exclude: files of prompts to leave out, such as those of benchmarks.
        keys: names of these settings in errors.
    """

    name: str
    column: str | None = None
    split: str = "train"
    journeydb: bool = False
    skip_invalid: bool = False
    min_chars: int = 1
    max_chars: int | None = None
    exclude: Sequence[str] = ()
    keys: Keys = RECIPE_KEYS


@dataclass(frozen=True)
class Reading:
    """Prompts in the order of their source, and how many were left out, by reason."""

    texts: list[str]
    left_out: dict[str, int]


@dataclass
class _Invalid:
    """Rows that were skipped because they are not one caption, by reason, and the error that the first would raise."""

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""


def read_source(source: Source, *, limit: int | None = None) -> Reading:
    """Read a source, and keep of its prompts what the source asks for.

    Args:
        limit: of raw prompts, for a look at the beginning.

    Raises:
        RMDError: there is no such source, it cannot be read, or nothing is left.
    """
    invalid = _Invalid()
    raw = islice(_captions(source, invalid), limit)
    taken = (strip_commands(text) for text in raw) if source.journeydb else raw
    benchmarks = {key(text) for name in source.exclude for text in read_raw(Source(name, keys=_EXCLUDE_KEYS))}
    found = clean(taken, min_chars=source.min_chars, max_chars=source.max_chars, benchmarks=benchmarks)
    left_out = {**invalid.counts, **found.left_out}
    if not found.texts:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it is empty"
        first = f"; {invalid.first}" if invalid.first else ""
        raise RMDError(f"{source.name} gives no prompts ({why}): look at the file, or change data's filters{first}")
    return Reading(found.texts, left_out)


def clean(
    texts: Iterable[str], *, min_chars: int = 1, max_chars: int | None = None, benchmarks: Collection[str] = frozenset()
) -> Reading:
    """Strip prompts and leave out those that are empty, too short or long, there already, or of a benchmark.

    Two prompts are the same when they differ in case, spaces and punctuation only.
    """
    kept, seen = list[str](), set[str]()
    out = dict.fromkeys(("empty", "too short", "too long", "of a benchmark", "there twice"), 0)
    for raw in texts:
        text = " ".join(raw.replace("\ufeff", "").split())
        name = key(text)
        reason = (
            "empty" if not text.strip(_INVISIBLE)
            else "too short" if len(text) < min_chars
            else "too long" if max_chars is not None and len(text) > max_chars
            else "of a benchmark" if name in benchmarks
            else "there twice" if name in seen
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
    # In many scripts, marks are the vowels, and \\w does not match them: without marks, different words would be equal.
    plain = unicodedata.normalize("NFKC", text.casefold())
    kept = (c for c in plain if c.isalnum() or c == "_" or unicodedata.category(c).startswith("M"))
    return "".join(kept) or plain.strip()


def read_raw(source: Source) -> Iterator[str]:
    """Yield every prompt of a source as it is written there.

    Raises:
        RMDError: there is no such source, it cannot be read, or a row of it is not one caption.
    """
    return _captions(source, _Invalid())


def _captions(source: Source, invalid: _Invalid) -> Iterator[str]:
    for where, value in _rows(source):
        found = caption_of(value)
        if isinstance(found, str):
            yield found
            continue
        advice = f"; mend it, or leave such rows out with {source.keys.skip}" if source.keys.skip else "; mend it"
        sentence = f"{where}{found.sentence}{advice if found.mendable else ''}"
        if not source.skip_invalid:
            raise RMDError(sentence)
        invalid.counts[found.reason] += 1
        invalid.first = invalid.first or f"{where}{found.sentence}"


def _rows(source: Source) -> Rows:
    if source.name.startswith(HUB):
        yield from read_dataset(source.name, source.split, source.column, source.keys)
        return
    for path in _files(source.name):
        yield from read_file(path, source.column, source.keys)


def _files(name: str) -> Sequence[Path]:
    """Return the file of a name, or the files that match it, sorted by name and without hidden ones."""
    path = user_path(name)
    try:
        there = path.exists()
    except OSError as error:  # the name is longer than a path may be
        raise RMDError(f"{shown(name)} is no path: {error.strerror}") from error
    if there or not glob.has_magic(str(path)):
        return [path]
    folder, parts = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while (folder / parts[0]).exists():  # brackets in the name of a folder that exists are no pattern either
        folder /= parts.pop(0)
    found = sorted(glob.glob(str(Path(glob.escape(str(folder)), *parts))))  # glob leaves hidden files out
    if not found:
        raise RMDError(f"no file matches {name}: check the pattern")
    return [Path(match) for match in found]
