"""Results of scoring: their protocol, the score of every picture, and comparisons of results with the same protocol.

A result is a JSON file with means and intervals, and beside it a Parquet file with the value of every picture. Two
results are compared picture by picture, and only if their protocols are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rmd.common.errors import RMDError, shown
from rmd.common.files import disk_errors, locked, read_errors, read_model, replacing, write_text
from rmd.common.typed import Strict
from rmd.common.workers import START_LOCK, WAIT
from rmd.data.prompt_set import PromptSet

Floats = NDArray[np.float64]
DRAWS = 2000
"""Number of draws of the bootstrap."""
RESULT, TABLE = "scores.json", "scores.parquet"
KEYS = ("prompt", "seed", "file")
"""Columns of the table that are no scores: number of the prompt, seed, and name of the picture's file."""


Settings = dict[str, str | int | float | bool]
"""Settings of a metric by name."""


class Network(Strict):
    """A network that a metric uses."""

    name: str
    """Its repository on the Hub, or what its authors call it."""
    files: dict[str, str]
    """SHA-256 of every file that was read, by its name."""


class Preparation(Strict):
    """A metric's value for a picture and a prompt follows from this alone."""

    networks: tuple[Network, ...]
    settings: Settings = Field(default_factory=dict)
    """They say how pictures and texts are prepared."""


class Protocol(Strict):
    """Two results are compared only if they have all of this in common."""

    prompts: PromptSet
    seed: Annotated[int, Field(ge=0)]
    """Seed of the first picture."""
    each: Annotated[int, Field(ge=1)]
    """Number of pictures of each prompt."""
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    image_format: str
    frames: Annotated[int, Field(ge=1)] | None = None
    """Number of frames of a clip."""
    fps: float | None = None
    """Frames per second of a clip."""
    metrics: dict[str, Preparation]
    dtype: str
    """Type in which the metrics' networks compute."""


class Making(Strict):
    """The making of the pictures, which is what is compared."""

    model: str
    """Name of the model."""
    settings: Settings = Field(default_factory=dict)
    """The settings that the pictures' files share, such as the model's folder and the number of steps."""
    nfe: str | None = None
    """Network evaluations per picture: by stage (`2+2`), or with two for each guided step (`25x2`); None: unknown."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Measured seconds per picture in the denoiser; None: not measured."""
    place: str = ""
    """Folder or pattern of the pictures when they were scored."""


class Score(Strict):
    """The mean of a metric over the pictures, with its 95 % interval by a bootstrap over prompts."""

    mean: float
    low: float
    high: float
    count: Annotated[int, Field(ge=1)]
    """Number of pictures that have a value."""
    missing: Annotated[int, Field(ge=0)] = 0
    """Number of pictures of the protocol that do not."""


class Grouped(Strict):
    """The scores of groups of prompts, and their average."""

    groups: dict[str, Score]
    average: Score
    """The mean of the groups' means, however many pictures each has."""


class Result(Strict):
    """The scores of one model's pictures."""

    version: int = 1
    making: Making
    protocol: Protocol
    scores: dict[str, Score]
    groups: dict[str, Grouped] = Field(default_factory=dict)
    """The scores of the groups of prompts by metric, if there are groups."""
    versions: dict[str, str]
    """Versions of the software that computed the scores."""


class Difference(Strict):
    """The difference of a metric's means of two models, on the same prompts and seeds."""

    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    ahead: float
    """Share of the prompts for which ours is higher."""
    count: int
    """Number of prompts."""
    missing: int
    """Pictures of the protocol that one of the two lacks."""


@dataclass(frozen=True)
class Table:
    """The values of all pictures.

    Attributes:
        prompt, seed: (n,) the prompt's number and the seed of each picture.
        file: the names of the files.
        values: (n,) by metric; NaN where a picture has no value.
    """

    prompt: NDArray[np.int64]
    seed: NDArray[np.int64]
    file: Sequence[str]
    values: Mapping[str, Floats]


def summarise(table: Table, metric: str, *, expected: int, seed: int = 0) -> Score:
    """Return the mean of a metric over all pictures, and its interval over prompts.

    Args:
        table: the values.
        metric: a column of it.
        expected: number of pictures that the protocol asks for.
        seed: seed of the bootstrap.

    Raises:
        RMDError: no picture has a value.
    """
    values = table.values[metric]
    known = np.isfinite(values)
    if not known.any():
        raise RMDError(f"no picture has a value of {metric}")
    low, high = bootstrap(values[known], table.prompt[known], seed=seed)
    count = int(known.sum())
    return Score(mean=float(values[known].mean()), low=low, high=high, count=count, missing=expected - count)


def bootstrap(values: Floats, prompts: NDArray[np.int64], *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean, by drawing whole prompts with replacement.

    Args:
        values: (n,) values of pictures.
        prompts: (n,) the prompts that they are of; pictures of one prompt are not independent.
        seed, draws: seed and number of draws.
    """
    return interval(bootstrap_means(values, prompts, seed=seed, draws=draws))


def bootstrap_means(values: Floats, prompts: NDArray[np.int64], *, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Return the means (draws,) of whole prompts drawn with replacement; for the arguments, see `bootstrap`."""
    _, places = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(places, weights=values), np.bincount(places)
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        often = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)))
        means[draw] = (often @ sums) / (often @ counts)
    return means


def interval(means: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of drawn means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def compare(ours: tuple[Result, Table], theirs: tuple[Result, Table], *, seed: int = 0) -> dict[str, Difference]:
    """Compare two results picture by picture; return the differences by metric.

    Raises:
        RMDError: their protocols differ, or they have no picture in common.
    """
    (first, a), (second, b) = ours, theirs
    check_same(first, second)
    return {metric: _difference(a, b, metric, first.protocol, seed) for metric in first.scores}


def check_same(ours: Result, theirs: Result) -> None:
    """Raise RMDError, naming the first difference, unless two results have the same protocol."""
    found = next(differences(ours.protocol.model_dump(), theirs.protocol.model_dump()), None)
    if found is not None:
        where, one, other = found
        raise RMDError(
            f"these results cannot be compared: {where} is {shown(one)} in {ours.making.model}'s and {shown(other)} "
            f"in {theirs.making.model}'s; score both in the same way"
        )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two nested mappings differ, as a dotted path, with both values; None stands for a missing one."""
    for key in dict.fromkeys([*ours, *theirs]):
        one, other, path = ours.get(key), theirs.get(key), f"{where}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, f"{path}.")
        elif one != other:
            yield path, one, other


def write_result(result: Result, table: Table, folder: Path) -> None:
    """Write a result's two files, unless another worker did; the JSON file comes last and says that both are complete.

    Raises:
        RMDError: pyarrow is not installed, or the files cannot be written.
    """
    pa, parquet = tables()
    columns = {"prompt": table.prompt, "seed": table.seed, "file": list(table.file), **table.values}
    with locked(folder, START_LOCK, wait=WAIT), disk_errors(folder):
        if _same(result, table, folder):
            return
        with replacing(folder / TABLE) as partial:
            parquet.write_table(pa.table(columns), partial)
        write_text(folder / RESULT, result.model_dump_json(indent=1) + "\n")


def read_result(folder: Path) -> tuple[Result, Table]:
    """Read a result and its table.

    Raises:
        RMDError: a file is missing or damaged, or they do not belong together.
    """
    if not (folder / RESULT).is_file():
        raise RMDError(f"{folder} has no {RESULT}: score its pictures first")
    result, path = read_model(folder / RESULT, Result), folder / TABLE
    pa, parquet = tables()
    try:
        with read_errors(path):
            columns = parquet.read_table(path).to_pydict()
        table = Table(
            np.asarray(columns.pop("prompt"), dtype=np.int64), np.asarray(columns.pop("seed"), dtype=np.int64),
            [str(name) for name in columns.pop("file")],
            {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()},
        )  # fmt: skip
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RMDError(f"{path} is damaged: score the pictures again") from error
    counts = {name: int(np.isfinite(values).sum()) for name, values in table.values.items()}
    if counts != {name: score.count for name, score in result.scores.items()}:
        raise RMDError(f"{path} does not belong to {folder / RESULT}: score the pictures again")
    return result, table


def _same(result: Result, table: Table, folder: Path) -> bool:
    """Return whether a folder holds this result and its table already."""
    try:
        found, values = read_result(folder)
    except RMDError:
        return False
    return (
        found == result
        and list(values.file) == list(table.file)
        and all(np.array_equal(values.values[name], each, equal_nan=True) for name, each in table.values.items())
    )


def _difference(a: Table, b: Table, metric: str, protocol: Protocol, seed: int) -> Difference:
    """Compare the pictures of the same prompts and seeds."""
    values = [
        {(int(p), int(s)): v for p, s, v in zip(t.prompt, t.seed, t.values[metric], strict=True) if np.isfinite(v)}
        for t in (a, b)
    ]
    keys = sorted(values[0].keys() & values[1].keys())
    if not keys:
        raise RMDError(f"these results have no picture with a value of {metric} in common")
    ours, theirs = (np.asarray([each[key] for key in keys]) for each in values)
    prompts = np.asarray([prompt for prompt, _ in keys])
    gaps = ours - theirs
    low, high = bootstrap(gaps, prompts, seed=seed)
    by_prompt = [gaps[prompts == number].mean() for number in np.unique(prompts)]
    return Difference(
        ours=float(ours.mean()), theirs=float(theirs.mean()), difference=float(gaps.mean()), low=low, high=high,
        ahead=float(np.mean([gap > 0 for gap in by_prompt])), count=len(by_prompt),
        missing=protocol.prompts.count * protocol.each - len(keys),
    )  # fmt: skip


def tables() -> tuple[Any, Any]:
    """Return pyarrow and its module of Parquet files, with which values are kept.

    Raises:
        RMDError: the package is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RMDError("the scores of single pictures need one more package: pip install 'rmd[data]'") from error
    return pyarrow, parquet
