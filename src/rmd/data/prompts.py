"""Prompt sources: where a recipe's prompts come from, and in which order a run uses them.

`data.prompts` names a file, a pattern of files, a packaged world, or `NAME` or `NAME:ARGUMENT` of a prompt source of
`PROMPTS`, such as `hf:OWNER/NAME` for a dataset on the Hub.

Reading is strict. A value that is not one caption is refused by its position and type or, if the recipe says so,
skipped and counted; `rmd.data.captions.clean` then strips and filters the others. JourneyDB's annotations are read
without the commands of its image service; its licence does not allow passing them on.
"""

from __future__ import annotations

import glob
import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmd.common.errors import RMDError, did_you_mean, shown
from rmd.common.files import user_path
from rmd.common.plugins import Registry
from rmd.common.typed import Strict, explain
from rmd.core.randomness import permutation
from rmd.data.captions import RECIPE_KEYS, Column, Keys, Reading, Rows, caption_of, clean, key, strip_commands
from rmd.data.formats import read_file
from rmd.models.hub import HUB, no_connection
from rmd.recipes.schema import DataConfig
from rmd.worlds.registry import WORLDS

_WORLD_PROMPTS = 8192
"""Number of captions that are drawn from a packaged world's grammar."""
_EXCLUDE_KEYS = Keys(column=None, skip=None)


class PromptSource(ABC):
    """A source of captions that a recipe names as `NAME` or `NAME:ARGUMENT` in `data.prompts`.

    Another package adds one as an entry point of the group `rmd.prompts` that refers to a subclass. RMD checks, filters
    and counts what it yields just as it does the rows of a file; only the order of a run is RMD's own.

    Attributes:
        argument: the text after the colon, empty if there is none.
        options: the recipe's `data.options`, validated by `Options`.
        data: the recipe's data settings, such as `column` and `split`.
        seed: the recipe's seed, for sources that draw their captions.
        keys: the names of settings, for error messages.
    """

    class Options(Strict):
        """The keys that a source reads from `data.options`: by default none."""

    def __init__(self, argument: str, data: DataConfig, *, seed: int, keys: Keys = RECIPE_KEYS) -> None:
        """Validate the options.

        Raises:
            RMDError: `data.options` has a key that the source does not know, or a value of another type.
        """
        self.argument, self.data, self.seed, self.keys = argument, data, seed, keys
        try:
            self.options: Strict = self.Options.model_validate(dict(data.options))
        except ValidationError as error:
            raise RMDError(f"data.options of {shown(data.prompts)}: {explain(error, self.Options)}") from error

    @abstractmethod
    def captions(self) -> Iterator[object]:
        """Yield the captions in order, the same ones on every call; a value that is not text is refused later."""

    def rows(self) -> Rows:
        """Yield each caption with its position, as error messages show it."""
        for number, caption in enumerate(self.captions(), start=1):
            yield f"{self.data.prompts}, caption {number}", caption


PROMPTS: Registry[type[PromptSource]] = Registry(
    "rmd.prompts", "prompt source", {HUB.removesuffix(":"): "rmd.data.prompts:HubDataset"}
)
"""All prompt sources that are neither files nor packaged worlds, by name."""


class Files(PromptSource):
    """A file of prompts, or all files that match a pattern."""

    def captions(self) -> Iterator[object]:
        """Yield the captions of all files in the order of their names."""
        return (value for _, value in self.rows())

    def rows(self) -> Rows:
        """Yield the rows of all files in the order of their names."""
        for path in _matching_files(self.argument):
            yield from read_file(path, self.data.column, self.keys)


class HubDataset(PromptSource):
    """One column of a dataset on the Hugging Face Hub, streamed without running any of its code."""

    def captions(self) -> Iterator[object]:
        """Yield the captions of the split that the recipe names."""
        return (value for _, value in self.rows())

    def rows(self) -> Rows:
        """Yield the rows of the split that the recipe names.

        Only the caption column is fetched if the dataset's files allow that, so that no picture is decoded for it.

        Raises:
            RMDError: the `datasets` library is missing, or the dataset is absent, gated, unreachable or damaged.
        """
        name, source = self.argument, f"{HUB}{self.argument}"
        if len(name) > 200 or name.count("/") != 1 or not all(name.split("/")) or name.startswith((".", "~")):
            raise RMDError(f"{shown(source)} does not name a dataset of the Hub: write hf:OWNER/NAME")
        try:
            import datasets
        except ImportError as error:
            raise RMDError(f"{source}: reading datasets of the Hub needs `pip install 'rmd[data]'`") from error
        if Path(name).exists():  # the library would load it instead, with any loading script in it
            raise RMDError(
                f"{source} is also a folder here, which would be read instead: name its files, or run from another "
                "folder"
            )
        number = 0
        try:
            for value in _hub_values(datasets, source, name, self.data.split, Column(self.data.column, self.keys)):
                number += 1
                yield f"{source}, row {number}", value
        except Exception as error:  # the class of HTTP errors depends on the version of huggingface_hub
            expected = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
            if isinstance(error, RMDError) or not (isinstance(error, expected) or no_connection(error)):
                raise
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            place = f" after row {number}" if number else ""
            gated = "accept its terms on its page, and log in with `hf auth login`"
            advice = gated if "gated" in why else "check its name, the split and the connection"
            raise RMDError(f"cannot read the dataset {name}{place} ({why}): {advice}") from error


def _hub_values(datasets: Any, source: str, name: str, split: str, caption: Column) -> Iterator[object]:
    # Version 3 of the library asks whether to run a dataset's script; later versions run none.
    asks = "trust_remote_code" in signature(datasets.load_dataset).parameters
    rows: Any = datasets.load_dataset(
        name, split=split, streaming=True, **({"trust_remote_code": False} if asks else {})
    )
    if names := getattr(rows, "column_names", None):
        if missing := caption.find(names):
            raise RMDError(f"{source}{missing.sentence}")
        rows = rows.select_columns([caption.name])
    yield from map(caption.of, rows)


def find_source(data: DataConfig, *, seed: int = 0, keys: Keys = RECIPE_KEYS) -> PromptSource:
    """Return the prompt source that a recipe names; nothing is read yet.

    Raises:
        RMDError: the name is ambiguous, the source takes no such options, or its package cannot be imported.
    """
    name, colon, argument = data.prompts.partition(":")
    if name in PROMPTS.names():
        if os.path.exists(data.prompts):
            raise RMDError(f"{data.prompts} is a prompt source and also a file: write ./{data.prompts} for the file")
        source = PROMPTS.get(name)
        if not (isinstance(source, type) and issubclass(source, PromptSource)):
            raise RMDError(f"the prompt source {shown(name)} is not a subclass of PromptSource: update its package")
        return source(argument, data, seed=seed, keys=keys)
    if colon and name.isidentifier() and not os.path.exists(data.prompts) and not glob.has_magic(data.prompts):
        hint = did_you_mean(name, PROMPTS.names())
        raise RMDError(f"{shown(data.prompts)} is neither a file nor a prompt source that is installed{hint}")
    return Files(data.prompts, data, seed=seed, keys=keys)


def read_source(data: DataConfig, *, seed: int = 0, keys: Keys = RECIPE_KEYS) -> Reading:
    """Read the prompts that a recipe names, and keep those that pass its filters.

    Args:
        data: the recipe's data settings.
        seed: the recipe's seed, for sources that draw their captions.
        keys: the names of settings, for error messages.

    Raises:
        RMDError: there is no such source, it cannot be read, or no prompt is left.
    """
    skipped = _Skipped()
    captions = _captions(find_source(data, seed=seed, keys=keys), skipped, skip=data.skip_invalid)
    taken = (strip_commands(text) for text in captions) if data.journeydb else captions
    benchmarks = {key(text) for name in data.exclude for text in _captions_named(name, _EXCLUDE_KEYS)}
    reading = clean(taken, min_chars=data.min_chars, max_chars=data.max_chars, benchmarks=benchmarks)
    left_out = {**skipped.counts, **reading.left_out}
    if not reading.texts:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it is empty"
        first = f"; {skipped.first}" if skipped.first else ""
        raise RMDError(f"{data.prompts} gives no prompts ({why}): check its content and the filters of data{first}")
    return Reading(reading.texts, left_out)


def read_prompts(name: str, column: str | None = None) -> list[str]:
    """Read the prompts of a source that the command line names: stripped, without repetitions, in order.

    Args and errors are those of `read_captions`.
    """
    return list(dict.fromkeys(read_captions(name, column)))


def read_captions(name: str, column: str | None = None) -> list[str]:
    """Read the prompts of a source that the command line names: stripped, with repetitions, in order.

    Args:
        name: a file, a pattern, or a prompt source.
        column: the column of the records that holds the prompts; None: prompt, caption or text.

    Raises:
        RMDError: the source cannot be read, one of its rows is not one prompt, or it has none.
    """
    captions = _captions_named(name, Keys(column="--column", skip=None), column)
    prompts = [text.strip() for text in captions if text.strip()]
    if not prompts:
        raise RMDError(f"the prompt file {name} has no prompts: write one per line")
    return prompts


@dataclass
class _Skipped:
    """Rows that were skipped because they are not one caption, by reason, and the error that the first would raise."""

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""


def _captions_named(name: str, keys: Keys, column: str | None = None) -> Iterator[str]:
    # Not validated: any text may name a file, and a wrong name is reported when the file is opened.
    data = DataConfig.model_construct(prompts=name, column=column)
    return _captions(find_source(data, keys=keys), _Skipped(), skip=False)


def _captions(source: PromptSource, skipped: _Skipped, *, skip: bool) -> Iterator[str]:
    """Yield the captions of a source as they are written there, and skip or refuse what is not one caption."""
    for where, value in source.rows():
        caption = caption_of(value)
        if isinstance(caption, str):
            yield caption
            continue
        keys = source.keys
        advice = f"; correct it, or skip such rows with {keys.skip}" if keys.skip else "; correct it"
        if not skip:
            raise RMDError(f"{where}{caption.sentence}{advice if caption.skippable else ''}")
        skipped.counts[caption.reason] += 1
        skipped.first = skipped.first or f"{where}{caption.sentence}"


def _matching_files(name: str) -> Sequence[Path]:
    """Return the file of this name, or the files that match it as a pattern, sorted and without hidden ones."""
    path = user_path(name)
    try:
        exists = path.exists()
    except OSError as error:  # the name is longer than a path may be
        raise RMDError(f"{shown(name)} is not a path: {error.strerror}") from error
    if exists or not glob.has_magic(str(path)):
        return [path]
    folder, parts = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while (folder / parts[0]).exists():  # brackets in the name of a folder that exists are not a pattern either
        folder /= parts.pop(0)
    matches = sorted(glob.glob(str(Path(glob.escape(str(folder)), *parts))))  # glob leaves hidden files out
    if not matches:
        raise RMDError(f"no file matches {name}: check the pattern")
    return [Path(match) for match in matches]


# --- the prompts of a run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Prompts, and the order into which a seed puts them: the prompt at position p depends on (seed, p) only."""

    texts: Sequence[str]
    seed: int

    @property
    def key(self) -> str:
        """SHA-256 of the texts in order, in hex."""
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    def batch(self, iteration: int, batch_size: int) -> tuple[list[str], list[int]]:
        """Return the prompts of an iteration, and the global numbers of their samples, from which noise is drawn."""
        samples = range(iteration * batch_size, (iteration + 1) * batch_size)
        return [self.texts[i] for i in positions(len(self.texts), samples, seed=self.seed)], list(samples)


def positions(count: int, samples: Sequence[int], *, seed: int) -> list[int]:
    """Return which of `count` items each global sample gets: every item once per epoch, in a new order every epoch."""
    epochs = dict.fromkeys(p // count for p in samples)
    order = {epoch: permutation(count, seed=seed, epoch=epoch).tolist() for epoch in epochs}
    return [order[p // count][p % count] for p in samples]


def load_prompts(data: DataConfig, *, seed: int, keys: Keys = RECIPE_KEYS) -> Prompts:
    """Load the prompts that a recipe names; those of a packaged world are drawn from its grammar.

    Args:
        data: the recipe's data settings.
        seed: seed of the order of the prompts, and of captions that are drawn.
        keys: the names of settings, for error messages.

    Raises:
        RMDError: the source is missing or cannot be read, or the filters leave no prompt.
    """
    if data.prompts in WORLDS.names():
        if data.options:
            raise RMDError(f"data.options have no effect on the prompts of {data.prompts}: leave them out")
        return Prompts(WORLDS.get(data.prompts).captions(_WORLD_PROMPTS, seed=seed, training=True), seed)
    return Prompts(read_source(data, seed=seed, keys=keys).texts, seed)
