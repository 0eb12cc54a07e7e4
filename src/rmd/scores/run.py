"""Scoring of a folder of pictures or clips: what is expected, what is there, and every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from rmd.common.errors import RMDError, shown
from rmd.common.files import user_path
from rmd.common.workers import ALONE, Worker, own_errors
from rmd.data.prompt_set import PromptSet
from rmd.data.prompts import read_captions
from rmd.evaluation.versions import versions
from rmd.sample.found import by_prompt_and_seed, find_samples
from rmd.scores.journal import Journal, key_of, opened_journal
from rmd.scores.kinds import PICTURES, Kind, common_shape
from rmd.scores.metrics import ImageMetric, Place, Scorer
from rmd.scores.result import Floats, Making, Preparation, Protocol, Result, Table, summarise
from rmd.scores.suites import Suite, by_style, group_scores, has_styles, read_suite
from rmd.scores.video import VideoMetric, VideoScorer
from rmd.scores.weights import sha256

AnyMetric = ImageMetric | VideoMetric
"""A metric of pictures or of clips."""
Progress = Callable[[str, int, int], None]
"""Called with a piece of work, how much of it is done, and its total."""


@dataclass(frozen=True)
class Expected:
    """The pictures or clips of a protocol.

    Attributes:
        prompts: the prompts in their order.
        each: number of pictures of each prompt.
        seed: seed of the first picture; 0 if pictures do not tell.
        files: for every prompt, its pictures with their seeds, of which some may be missing.
        groups: the number of prompts of each group, in the order of the prompts, if there are groups.
        kind: pictures or clips.
    """

    prompts: tuple[str, ...]
    each: int
    seed: int
    files: tuple[tuple[tuple[int, Path], ...], ...]
    groups: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = PICTURES

    @property
    def paths(self) -> list[Path]:
        """The pictures that are there, prompt after prompt."""
        return [path for its in self.files for _, path in its]

    @property
    def missing(self) -> int:
        """Number of pictures that are missing."""
        return len(self.prompts) * self.each - sum(map(len, self.files))


def find_pictures(place: str, prompts: str | None, *, kind: Kind = PICTURES) -> Expected:
    """Find the pictures or clips of a folder with their prompts.

    Pictures of `rmd generate` know their prompts and seeds; a file of prompts then says which ones are expected, and in
    which order. Pictures of other programs need it: they belong to its lines in the order of their names. A folder of
    prompts in HPDv2's layout has groups, and pictures may lie in folders called like these.

    Args:
        place: a folder, or a pattern of files.
        prompts: a file of prompts, a folder of them in HPDv2's layout, or None.
        kind: what is looked for.

    Raises:
        RMDError: there are no pictures; they do not say what their prompts are, or have others than the file; or they
            are more than the prompts.
    """
    if prompts is None or not user_path(prompts).is_dir():
        texts = None if prompts is None else read_captions(prompts)
        return _found(place, prompts, texts, kind, unique=True)
    suite = read_suite(prompts)
    if kind is PICTURES and has_styles(place):
        return in_folders(place, suite)
    return replace(_found(place, prompts, suite.prompts, kind, unique=False), groups=suite.groups)


def in_folders(place: str, suite: Suite) -> Expected:
    """Find the pictures of a suite's prompts in folders called like its styles, one of each prompt.

    Raises:
        RMDError: a folder is missing, or a picture is not called like the number of a prompt.
    """
    files = tuple(() if path is None else ((0, path),) for path in by_style(place, suite))
    return Expected(suite.prompts, 1, 0, files, suite.groups)


def score_pictures(
    expected: Expected, metrics: Sequence[AnyMetric], place: Place, out: Path, *, making: Making,
    prompt_set: str, licence: str | None = None, batch_size: int = 32, allow_missing: bool = False,
    worker: Worker = ALONE, progress: Progress | None = None,
) -> tuple[Result, Table] | None:  # fmt: skip
    """Score a worker's share of pictures, or of clips, with every metric.

    Args:
        expected: the pictures.
        metrics: the metrics.
        place: where networks are found and run.
        out: folder for the journal.
        making: how the pictures were made.
        prompt_set, licence: name and licence of the prompts.
        batch_size: number of pictures that are scored at once.
        allow_missing: whether pictures may be missing; their number is part of the result.
        worker: the worker, which scores the pictures of every n-th prompt.
        progress: receives the number of pictures that are done.

    Returns:
        The result and its table; None if other workers have not finished yet.

    Raises:
        RMDError: a picture is missing or damaged, or pictures differ in size or format; or a network cannot be loaded.
    """
    _check(expected, metrics, allow_missing=allow_missing)  # which is quick, before all pictures are opened
    shape = common_shape(expected.paths, expected.kind)
    found = score_table(
        expected, metrics, place, out, batch_size=batch_size, allow_missing=allow_missing, worker=worker,
        progress=progress,
    )  # fmt: skip
    if found is None:
        return None
    table, preparations = found
    protocol = Protocol(
        prompts=PromptSet.of(expected.prompts, prompt_set, licence, expected.groups), seed=expected.seed,
        each=expected.each, width=shape.width, height=shape.height, image_format=shape.image_format,
        frames=shape.frames, fps=shape.fps, metrics=preparations, dtype=str(place.dtype).removeprefix("torch."),
    )  # fmt: skip
    total = len(expected.prompts) * expected.each
    scores = {metric.name: summarise(table, metric.name, expected=total) for metric in metrics}
    groups = (
        {name: group_scores(table, name, expected.groups, each=expected.each) for name in scores}
        if expected.groups
        else {}
    )
    return Result(making=making, protocol=protocol, scores=scores, groups=groups, versions=versions()), table


def score_table(
    expected: Expected, metrics: Sequence[AnyMetric], place: Place, out: Path, *, batch_size: int = 32,
    allow_missing: bool = False, worker: Worker = ALONE, progress: Progress | None = None,
) -> tuple[Table, dict[str, Preparation]] | None:  # fmt: skip
    """Score a worker's share of pictures of any sizes; for the arguments and errors, see `score_pictures`.

    Returns:
        The values of all pictures, and what decides the values of each metric; None if other workers have not finished
        yet.
    """
    _check(expected, metrics, allow_missing=allow_missing)
    rows = [
        _Row(number, seed, path, expected.prompts[number], sha256(path))
        for number, its in enumerate(expected.files)
        for seed, path in its
    ]
    keys: dict[str, list[str | None]] = {}
    preparations: dict[str, Preparation] = {}
    with ExitStack() as held:
        journal: Journal | None = None
        for metric in metrics:
            scorer = metric.load(place)
            preparations[metric.name] = scorer.preparation
            keys[metric.name] = _keys(metric, scorer, rows, str(place.dtype))
            with own_errors():
                if journal is None:  # only now, since a network that is missing should leave no folder behind
                    journal = held.enter_context(opened_journal(out, worker))
                _score(metric, scorer, journal, rows, keys[metric.name], expected.kind, worker, batch_size, progress)
        if journal is None:
            raise RMDError("no metric is named: name some")
        journal.read()
    values = {name: _values(its, journal) for name, its in keys.items()}
    if any(each is None for each in values.values()):
        return None
    return Table(
        np.asarray([row.number for row in rows]), np.asarray([row.seed for row in rows]),
        [row.path.name for row in rows], {name: each for name, each in values.items() if each is not None},
    ), preparations  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """A picture that is there, with the number of its prompt."""

    number: int
    seed: int
    path: Path
    prompt: str
    digest: str


def _check(expected: Expected, metrics: Sequence[AnyMetric], *, allow_missing: bool) -> None:
    total = len(expected.prompts) * expected.each
    if expected.missing and not allow_missing:
        raise RMDError(
            f"{expected.missing} of {total} {expected.kind.noun} are missing: generate them, or give --allow-missing "
            "to score the others"
        )
    for metric in metrics:
        if metric.together and expected.each < 2:
            raise RMDError(
                f"{metric.title} compares pictures of one prompt with different seeds, and there is one picture of "
                "each prompt: generate more with rmd generate --count 4"
            )


def _keys(metric: AnyMetric, scorer: Scorer | VideoScorer, rows: Sequence[_Row], dtype: str) -> list[str | None]:
    """Return the key of every picture's value; None for a picture alone, of a metric that compares pictures."""
    if not metric.together:
        return [key_of(scorer.preparation, dtype, row.prompt, row.digest) for row in rows]
    others: dict[int, list[_Row]] = {}
    for row in rows:
        others.setdefault(row.number, []).append(row)
    return [
        key_of(scorer.preparation, dtype, row.prompt, row.digest, [o.digest for o in others[row.number] if o != row])
        if len(others[row.number]) > 1
        else None
        for row in rows
    ]


def _score(
    metric: AnyMetric, scorer: Scorer | VideoScorer, journal: Journal, rows: Sequence[_Row], keys: Sequence[str | None],
    kind: Kind, worker: Worker, batch_size: int, progress: Progress | None,
) -> None:  # fmt: skip
    """Compute a worker's values of one metric that are in no journal."""
    mine = [index for index, row in enumerate(rows) if row.number % worker[1] == worker[0] and keys[index] is not None]
    left = [index for index in mine if keys[index] not in journal.values]
    batches = _together(rows, mine, left) if metric.together else _apart(keys, left, batch_size)
    done = len(mine) - sum(map(len, batches))
    for batch in batches:
        if progress is not None:
            progress(metric.title, done, len(mine))
        scores = scorer([kind.read(rows[index].path) for index in batch], [rows[index].prompt for index in batch])
        if not bool(torch.isfinite(scores).all()):
            raise RMDError(f"{metric.title}: the network gives values that are not finite; use --dtype float32")
        journal.add({str(keys[index]): float(score) for index, score in zip(batch, scores, strict=True)})
        done += len(batch)
    if progress is not None and mine:
        progress(metric.title, len(mine), len(mine))


def _apart(keys: Sequence[str | None], left: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of pictures, each picture once even if several prompts are the same."""
    once = list({keys[index]: index for index in left}.values())
    return [once[start : start + batch_size] for start in range(0, len(once), batch_size)]


def _together(rows: Sequence[_Row], mine: Sequence[int], left: Sequence[int]) -> list[list[int]]:
    """Return all pictures of every prompt of which a value is missing."""
    prompts: dict[int, list[int]] = {rows[index].number: [] for index in left}
    for index in mine:
        if rows[index].number in prompts:
            prompts[rows[index].number].append(index)
    return list(prompts.values())


def _values(keys: Sequence[str | None], journal: Journal) -> Floats | None:
    """Return the values, NaN for those without a key; None if one has not been computed yet."""
    if any(key is not None and key not in journal.values for key in keys):
        return None
    return np.asarray([np.nan if key is None else journal.values[key] for key in keys], dtype=np.float64)


def _found(
    place: str, prompts: str | None, texts: Sequence[str] | None, kind: Kind, *, unique: bool
) -> Expected:  # fmt: skip
    """Find pictures in one place.

    Args:
        place: a folder or pattern.
        prompts: the name of the prompts, for error messages.
        texts: the prompts, if they are given.
        kind: what is looked for.
        unique: whether repeated prompts count once, for pictures that know theirs.
    """
    paths = find_samples(place, suffixes=kind.suffixes)
    known = by_prompt_and_seed(paths)
    if known is None:
        return _by_name(paths, texts, prompts, kind)
    order = list(dict.fromkeys(prompt for prompt, _ in sorted(known, key=lambda key: key[1])))
    wanted = order if texts is None else list(dict.fromkeys(texts))
    expected = set(wanted)
    strange = next((prompt for prompt in order if prompt not in expected), None)
    if strange is not None:
        raise RMDError(f"{place} has {kind.noun} of a prompt that {prompts} lacks: {shown(strange)}")
    seeds: dict[str, list[tuple[int, Path]]] = {prompt: [] for prompt in wanted}
    for (prompt, seed), path in sorted(known.items(), key=lambda item: item[0][1]):
        seeds[prompt].append((seed, path))
    each = max(map(len, seeds.values()))
    first = min(seed for _, seed in known)
    listed = wanted if unique or texts is None else texts
    return Expected(tuple(listed), each, first, tuple(tuple(seeds[prompt]) for prompt in listed), kind=kind)


def _by_name(paths: Sequence[Path], texts: Sequence[str] | None, prompts: str | None, kind: Kind) -> Expected:
    if texts is None:
        raise RMDError(
            f"these {kind.noun} do not say what their prompts are: give --prompts FILE, in the order of the names"
        )
    if len(paths) != len(texts):
        raise RMDError(f"{prompts} has {len(texts)} prompts for {len(paths)} {kind.noun}: it needs one for each")
    return Expected(tuple(texts), 1, 0, tuple(((0, path),) for path in paths), kind=kind)
