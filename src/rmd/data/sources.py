"""Reads prompts from the files that people have: text, JSON, CSV, Parquet, webdataset shards, the Hub's datasets.

A reader yields raw prompts; `clean` strips, filters and removes duplicates and the prompts of benchmarks. JourneyDB's
annotations are read with the commands of its image service taken off; its licence does not allow passing them on.
"""

from __future__ import annotations

import csv
import glob
import json
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rmd.errors import RMDError
from rmd.hub import no_connection

HUB = "hf:"
"""Begins the name of a dataset on the Hub: hf:OWNER/NAME."""
COLUMNS = ("prompt", "caption", "text", "Prompt", "Caption", "TEXT")
"""Where a prompt is looked for in a record, in this order, when no column is named."""
FORMATS = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar")
_COMMAND = re.compile(r"(?:^|\s)--\w+(?:\s+[^-\s][^\s]*)?|<?https?://\S+")


@dataclass(frozen=True)
class Source:
    """Where prompts come from and which of them are taken.

    name: a file, a pattern of files (`shards/*.tar`), or `hf:OWNER/NAME`. column: of the records that hold them. split:
    of a dataset on the Hub. journeydb: whether the records are JourneyDB's annotations. shortest, longest: in
    characters. exclude: files of prompts that are left out, those of benchmarks.
    """

    name: str
    column: str | None = None
    split: str = "train"
    journeydb: bool = False
    shortest: int = 1
    longest: int | None = None
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Reading:
    """Prompts in the order of their source, and how many were left out, by reason."""

    texts: list[str]
    left_out: dict[str, int]


def read_source(source: Source, *, limit: int | None = None) -> Reading:
    """Read a source, and keep of its prompts what the source asks for.

    Args:
        limit: of raw prompts, for a look at the beginning.

    Raises:
        RMDError: there is no such source, it cannot be read, or nothing is left.
    """
    raw = islice(read_raw(source), limit)
    taken = (strip_commands(text) for text in raw) if source.journeydb else raw
    benchmarks = {key(text) for name in source.exclude for text in read_raw(Source(name))}
    found = clean(taken, shortest=source.shortest, longest=source.longest, benchmarks=benchmarks)
    if not found.texts:
        why = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items()) or "it is empty"
        raise RMDError(f"{source.name} gives no prompts ({why}): look at the file, or change data's filters")
    return found


def clean(
    texts: Iterable[str], *, shortest: int = 1, longest: int | None = None, benchmarks: Collection[str] = frozenset()
) -> Reading:
    """Strip prompts and leave out those that are empty, too short or long, there already, or of a benchmark.

    Two prompts are the same when they differ in case, spaces and punctuation only.
    """
    kept, seen = list[str](), set[str]()
    out = dict.fromkeys(("empty", "too short", "too long", "of a benchmark", "there twice"), 0)
    for raw in texts:
        text = " ".join(raw.split())
        name = key(text)
        reason = (
            "empty" if not text
            else "too short" if len(text) < shortest
            else "too long" if longest is not None and len(text) > longest
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
    """What two prompts that are the same have in common: letters and digits, lowered."""
    return "".join(re.findall(r"\w+", text.casefold())) or text.strip()


def strip_commands(text: str) -> str:
    """A prompt of an image service without its commands (`--ar 3:2 --v 5`) and addresses of pictures."""
    return " ".join(_COMMAND.sub(" ", text).split())


def read_raw(source: Source) -> Iterator[str]:
    """Every prompt of a source as it stands there.

    Raises:
        RMDError: there is no such source, or it cannot be read.
    """
    if source.name.startswith(HUB):
        yield from _hub(source)
        return
    paths = sorted(glob.glob(source.name)) if glob.has_magic(source.name) else [source.name]
    if not paths:
        raise RMDError(f"no file matches {source.name}: check the pattern")
    for name in paths:
        path = Path(name)
        suffix = path.suffix.lower() or ".txt"
        if suffix not in FORMATS:
            raise RMDError(f"{path} is of no known format: let it end in {', '.join(FORMATS)}")
        try:
            yield from _READERS[suffix](path, source)
        except FileNotFoundError:
            raise RMDError(f"there is no prompt file {path}: give a text file with one prompt a line") from None
        except UnicodeDecodeError as error:
            raise RMDError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8 text") from error
        except (OSError, tarfile.TarError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no tar archive"
            raise RMDError(f"cannot read the prompt file {path}: {reason}") from error


def _lines(path: Path, source: Source) -> Iterator[str]:
    text = path.read_text(encoding="utf-8-sig")
    if text:
        yield from text.removesuffix("\n").split("\n")


def _json(path: Path, source: Source) -> Iterator[str]:
    """A list of prompts, or of records."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise RMDError(f"{path} is not JSON ({error}): give a list of prompts or of records") from error
    if not isinstance(values, list):
        raise RMDError(f"{path} holds no list: give a list of prompts or of records")
    for number, value in enumerate(values, start=1):
        yield value if isinstance(value, str) else _of_record(value, f"{path}, entry {number}", source)


def _json_lines(path: Path, source: Source) -> Iterator[str]:
    for number, line in enumerate(_lines(path, source), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise RMDError(f"{path}, line {number} is not JSON ({error}): one record a line is needed") from error
            yield value if isinstance(value, str) else _of_record(value, f"{path}, line {number}", source)


def _table(path: Path, source: Source) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for number, row in enumerate(rows, start=2):
            yield _of_record(row, f"{path}, line {number}", source)


def _parquet(path: Path, source: Source) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError(f"{path}: reading Parquet needs `pip install 'rmd[data]'`") from error
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        file = parquet.ParquetFile(path)
        column = _column(file.schema_arrow.names, str(path), source)
        for batch in file.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (pyarrow.ArrowException, OSError) as error:
        raise RMDError(f"{path} is not readable as Parquet: {error}") from error


def _tar(path: Path, source: Source) -> Iterator[str]:
    """Captions of a webdataset shard: one a sample, from its .txt or .caption, or a column of its .json."""
    with tarfile.open(path) as shard:
        for member in shard:
            content = shard.extractfile(member) if member.isfile() else None
            suffix = member.name.rpartition(".")[2].lower()
            if content is not None and suffix in (("json",) if source.column else ("txt", "caption")):
                text = content.read().decode("utf-8")
                yield text if suffix != "json" else _of_record(json.loads(text), f"{path}, {member.name}", source)


def _hub(source: Source) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise RMDError(f"{source.name}: reading the Hub's datasets needs `pip install 'rmd[data]'`") from error
    name = source.name.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, split=source.split, streaming=True)
        for number, row in enumerate(rows):
            yield _of_record(row, f"{source.name}, row {number}", source)
    except Exception as error:  # the HTTP library, and so its errors' class, depends on the version of huggingface_hub
        told = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
        if not (isinstance(error, told) or no_connection(error)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RMDError(f"cannot read the dataset {name} ({reason}): check name, split and connection") from error


def _of_record(record: Any, where: str, source: Source) -> str:
    if not isinstance(record, dict):
        raise RMDError(f"{where} is neither a prompt nor a record")
    value = record.get(_column(list(record), where, source))
    return "" if value is None else str(value)


def _column(names: Sequence[str], where: str, source: Source) -> str:
    if source.column is not None:
        if source.column in names:
            return source.column
        raise RMDError(f"{where} has no column {source.column}: it has {', '.join(map(str, names))}")
    for name in COLUMNS:
        if name in names:
            return name
    raise RMDError(f"{where} has none of the columns prompt, caption, text: name one with data.column")


_READERS: dict[str, Callable[[Path, Source], Iterator[str]]] = {
    ".txt": _lines, ".json": _json, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _table, ".tsv": _table,
    ".parquet": _parquet, ".tar": _tar,
}  # fmt: skip
