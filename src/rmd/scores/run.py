"""Scoring of a folder of pictures: what is expected, what is there, and the values of every picture.

Values are written to a journal as they are computed, under a key of everything that decides them, so an interrupted
command continues, and a picture that was exchanged is scored again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from rmd.common.errors import RMDError, shown
from rmd.common.files import disk_errors
from rmd.data.images import SUFFIXES, as_seen, opened
from rmd.data.prompts import read_captions
from rmd.evaluation.versions import versions
from rmd.sample.found import by_prompt_and_seed, find_samples
from rmd.scores.metrics import ImageMetric, Place, Scorer
from rmd.scores.result import Making, PromptSet, Protocol, Result, Table, summarise
from rmd.scores.weights import sha256

JOURNAL = "scores.jsonl"
_TURNED = (5, 6, 7, 8)
"""Orientations of EXIF with which a picture is shown with its sides exchanged."""
Progress = Callable[[str, int, int], None]
"""Called with a piece of work, how much of it is done, and its total."""


@dataclass(frozen=True)
class Expected:
    """The pictures of a protocol.

    Attributes:
        prompts: the prompts in their order.
        each: number of pictures of each prompt.
        seed: seed of the first picture; 0 if pictures do not tell.
        files: for every prompt, its pictures with their seeds, of which some may be missing.
    """

    prompts: tuple[str, ...]
    each: int
    seed: int
    files: tuple[tuple[tuple[int, Path], ...], ...]

    @property
    def paths(self) -> list[Path]:
        """The pictures that are there, prompt after prompt."""
        return [path for its in self.files for _, path in its]

    @property
    def missing(self) -> int:
        """Number of pictures that are missing."""
        return len(self.prompts) * self.each - sum(map(len, self.files))


def find_pictures(place: str, prompts: str | None) -> Expected:
    """Find the pictures of a folder with their prompts.

    Pictures of `rmd generate` know their prompts and seeds; a file of prompts then says which ones are expected, and in
    which order. Pictures of other programs need it: they belong to its lines in the order of their names.

    Args:
        place: a folder, or a pattern of files.
        prompts: a file of prompts, or None.

    Raises:
        RMDError: there are no pictures; they do not say what their prompts are, or have others than the file; or they
            are more than the prompts.
    """
    paths = find_samples(place, suffixes=SUFFIXES)
    texts = None if prompts is None else read_captions(prompts)
    known = by_prompt_and_seed(paths)
    if known is None:
        return _by_name(paths, texts, prompts)
    order = list(dict.fromkeys(prompt for prompt, _ in sorted(known, key=lambda key: key[1])))
    wanted = order if texts is None else list(dict.fromkeys(texts))
    strange = next((prompt for prompt in order if prompt not in set(wanted)), None)
    if strange is not None:
        raise RMDError(f"{place} has pictures of a prompt that {prompts} lacks: {shown(strange)}")
    seeds: dict[str, list[tuple[int, Path]]] = {prompt: [] for prompt in wanted}
    for (prompt, seed), path in sorted(known.items(), key=lambda item: item[0][1]):
        seeds[prompt].append((seed, path))
    each = max(map(len, seeds.values()))
    first = min(seed for _, seed in known)
    return Expected(tuple(wanted), each, first, tuple(tuple(seeds[prompt]) for prompt in wanted))


def score_pictures(
    expected: Expected, metrics: Sequence[ImageMetric], place: Place, out: Path, *, making: Making,
    prompt_set: str, licence: str | None = None, batch_size: int = 32, allow_missing: bool = False,
    progress: Progress | None = None,
) -> tuple[Result, Table]:  # fmt: skip
    """Score pictures with every metric.

    Args:
        expected: the pictures.
        metrics: the metrics.
        place: where networks are found and run.
        out: folder for the journal.
        making: how the pictures were made.
        prompt_set, licence: name and licence of the prompts.
        batch_size: number of pictures that are scored at once.
        allow_missing: whether pictures may be missing; their number is part of the result.
        progress: receives the number of pictures that are done.

    Raises:
        RMDError: a picture is missing or damaged, or pictures differ in size or format; or a network cannot be loaded.
    """
    if expected.missing and not allow_missing:
        raise RMDError(
            f"{expected.missing} of {len(expected.prompts) * expected.each} pictures are missing: generate them, or "
            "give --allow-missing to score the others"
        )
    rows = [(number, seed, path) for number, its in enumerate(expected.files) for seed, path in its]
    width, height, image_format = _shape([path for _, _, path in rows])
    hashes = [sha256(path) for _, _, path in rows]
    preparations, values = {}, {}
    for metric in metrics:
        scorer = metric.load(place)
        preparations[metric.name] = scorer.preparation
        texts = [expected.prompts[number] for number, _, _ in rows]
        journal = _Journal(out / JOURNAL, scorer, place)
        values[metric.name] = _scored(metric, scorer, journal, rows, texts, hashes, batch_size, progress)
    table = Table(
        np.asarray([number for number, _, _ in rows]), np.asarray([seed for _, seed, _ in rows]),
        [path.name for _, _, path in rows], values,
    )  # fmt: skip
    protocol = Protocol(
        prompts=_prompt_set(expected.prompts, prompt_set, licence), seed=expected.seed, each=expected.each,
        width=width, height=height, image_format=image_format, metrics=preparations,
        dtype=str(place.dtype).removeprefix("torch."),
    )  # fmt: skip
    total = len(expected.prompts) * expected.each
    scores = {metric.name: summarise(table, metric.name, expected=total) for metric in metrics}
    return Result(making=making, protocol=protocol, scores=scores, versions=versions()), table


def _prompt_set(prompts: Sequence[str], name: str, licence: str | None) -> PromptSet:
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return PromptSet(name=name, sha256=digest, count=len(prompts), licence=licence)


class _Journal:
    """The values that were computed so far, by everything that decides them."""

    def __init__(self, path: Path, scorer: Scorer, place: Place) -> None:
        self.path, self.values = path, dict[str, float]()
        self.prefix = f"{scorer.preparation.model_dump_json()} {place.dtype}"
        self.start = ""
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            self.start = "" if text.endswith("\n") else "\n"  # the last line was not written to its end
            for line in text.splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue
                self.values[str(key)] = float(value)

    def key(self, prompt: str, digest: str) -> str:
        """Return the key of a picture and its prompt."""
        return hashlib.sha256(json.dumps([self.prefix, prompt, digest]).encode()).hexdigest()[:32]

    def add(self, values: dict[str, float]) -> None:
        """Keep values."""
        self.values |= values
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self.start + "".join(json.dumps([key, value]) + "\n" for key, value in values.items()))
        self.start = ""


def _scored(
    metric: ImageMetric, scorer: Scorer, journal: _Journal, rows: Sequence[tuple[int, int, Path]], texts: Sequence[str],
    hashes: Sequence[str], batch_size: int, progress: Progress | None,
) -> np.ndarray:  # fmt: skip
    """Return the values of one metric, of which those in the journal are not computed again."""
    keys = [journal.key(text, digest) for text, digest in zip(texts, hashes, strict=True)]
    left = [index for index, key in enumerate(keys) if key not in journal.values]
    for start in range(0, len(left), batch_size):
        if progress is not None:
            progress(metric.title, len(rows) - len(left) + start, len(rows))
        batch = left[start : start + batch_size]
        scores = scorer([_picture(rows[index][2]) for index in batch], [texts[index] for index in batch])
        if not bool(torch.isfinite(scores).all()):
            raise RMDError(f"{metric.title}: the network gives values that are not finite; use --dtype float32")
        journal.add({keys[index]: float(score) for index, score in zip(batch, scores, strict=True)})
    if progress is not None:
        progress(metric.title, len(rows), len(rows))
    return np.asarray([journal.values[key] for key in keys])


def _by_name(paths: Sequence[Path], texts: Sequence[str] | None, prompts: str | None) -> Expected:
    if texts is None:
        raise RMDError(
            "these pictures do not say what their prompts are: give --prompts FILE, in the order of the names"
        )
    if len(paths) != len(texts):
        raise RMDError(f"{prompts} has {len(texts)} prompts for {len(paths)} pictures: it needs one for each")
    return Expected(tuple(texts), 1, 0, tuple(((0, path),) for path in paths))


def _shape(paths: Sequence[Path]) -> tuple[int, int, str]:
    """Return width, height and format that all pictures share."""
    shapes: dict[tuple[int, int, str], Path] = {}
    for path in paths:
        with opened(path, "pictures") as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
                width, height = height, width
            shapes.setdefault((width, height, (image.format or "").lower()), path)
    if len(shapes) > 1:
        (first, one), (second, two) = list(shapes.items())[:2]
        raise RMDError(
            f"pictures of one result have one size and format: {one} has {_words(first)}, and {two} has "
            f"{_words(second)}"
        )
    return next(iter(shapes))


def _words(shape: tuple[int, int, str]) -> str:
    return f"{shape[0]} x {shape[1]} pixels in {shape[2].upper()}"


def _picture(path: Path) -> Image.Image:
    with opened(path, "pictures") as image:
        return as_seen(image)
