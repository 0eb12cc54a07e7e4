"""T2V-CompBench: the plan of its videos, and the means of its seven categories from what its scripts wrote.

The scripts write a row for every video and, at the end, the mean. Here the mean is computed from the rows by the same
formulas and compared with that last line. A reply of a network that the scripts could not read has no score, which they
leave out silently; here its number stands beside the mean. Missing categories and missing rows are errors.

Source: Sun et al., T2V-CompBench: A Comprehensive Benchmark for Compositional Text-to-video Generation (CVPR 2025), and
its scripts (https://github.com/KaiyueSun98/T2V-CompBench), which have no licence: nothing of them is part of RMD.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import Field

from rmd.common.errors import RMDError, shown
from rmd.common.files import MAX_JSON, read_errors
from rmd.common.typed import Strict
from rmd.core.randomness import check_seeds
from rmd.data.prompt_set import PromptSet
from rmd.data.prompts import read_captions
from rmd.sample.plans import SUFFIX, PlannedVideo, VideoPlan
from rmd.scores.weights import sha256

SIZES = {100: 1, 200: 2}
"""Number of prompts of each category, and the version of the benchmark that has as many."""
LAYOUT = "CATEGORY/NUMBER.mp4"
MEAN = "score:"
"""The first cell of the line that has the mean."""
_CLOSE = 1e-6
"""Largest difference between a mean and the one that a script wrote."""


@dataclass(frozen=True)
class Category:
    """A category of T2V-CompBench.

    Attributes:
        name: the folder of its videos.
        prompts: the file of its prompts.
        meta: the file of its prompts with what the scripts ask about them.
        results: what the names of its result files end in.
        share: maps a row's score to [0, 1].
    """

    name: str
    prompts: str
    meta: str
    results: tuple[str, ...]
    share: Callable[[float], float] = field(default=lambda score: score)


def _motion(score: float) -> float:
    """Return the share of a motion: -1 stands for an object that was not found."""
    return 0.0 if score < 0 else 0.2 + 0.8 * score


CATEGORIES = (
    Category("consistent_attr", "1_consistent_attr.txt", "consistent_attribute_binding.json",
             ("_consistent_attr_score.csv",), lambda score: (score - 1) / 4),
    Category("dynamic_attr", "2_dynamic_attr.txt", "dynamic_attribute_binding.json", ("_dynamic_attr_score.csv",)),
    Category("spatial_relationships", "3_spatial_relationship.txt", "spatial_relationships.json",
             ("_2dvideo.csv", "_3dvideo.csv")),
    Category("motion_binding", "4_motion_binding.txt", "motion_binding.json", ("_score.csv",), _motion),
    Category("action_binding", "5_action_binding.txt", "action_binding.json", ("_action_binding_score.csv",),
             lambda score: score / 5),
    Category("interaction", "6_interaction.txt", "object_interactions.json", ("_object_interactions_score.csv",),
             lambda score: (score - 1) / 4),
    Category("generative_numeracy", "7_numeracy.txt", "generative_numeracy.json", ("_numeracy_video.csv",)),
)  # fmt: skip
NAMES = tuple(category.name for category in CATEGORIES)


class CategoryScore(Strict):
    """The mean of a category, as a share."""

    mean: Annotated[float, Field(ge=0, le=1)]
    count: Annotated[int, Field(ge=1)]
    """Number of videos that have a score."""
    unread: Annotated[int, Field(ge=0)] = 0
    """Number of videos for which a network's reply could not be read."""


class CompbenchScores(Strict):
    """The scores of T2V-CompBench."""

    edition: int
    """Version of the benchmark, by its number of prompts."""
    categories: dict[str, CategoryScore]
    average: float
    """Mean of the seven categories."""


def plan_compbench(prompts: Path, *, seed: int = 0, categories: Sequence[str] = ()) -> VideoPlan:
    """Plan the videos of T2V-CompBench, one of each prompt, each with a seed of its own.

    Args:
        prompts: the folder `prompts` of the benchmark's repository.
        seed: the first seed; each further video of the whole list has the next one.
        categories: plan only the videos of these, with the same seeds; by default all.

    Raises:
        RMDError: a file is missing or has another number of prompts, or a category is unknown.
    """
    texts, sources = {}, {}
    for category in CATEGORIES:
        path = prompts / category.prompts
        if not path.is_file():
            raise RMDError(f"there is no {path}: give the folder `prompts` of T2V-CompBench's repository")
        texts[category.name], sources[path.name] = read_captions(str(path)), sha256(path)
    counts = {len(lines) for lines in texts.values()}
    if len(counts) > 1 or not counts <= SIZES.keys():
        found = ", ".join(f"{name} {len(lines)}" for name, lines in texts.items())
        raise RMDError(f"every category has 100 prompts in version 1 and 200 in version 2, but {prompts} has {found}")
    everything = [text for lines in texts.values() for text in lines]
    check_seeds(seed, len(everything))
    places = [(name, number) for name, lines in texts.items() for number in range(1, len(lines) + 1)]
    videos = tuple(
        PlannedVideo(path=f"{name}/{number:04d}{SUFFIX}", prompt=text, seed=seed + index)
        for index, ((name, number), text) in enumerate(zip(places, everything, strict=True))
    )
    title = f"T2V-CompBench, version {SIZES[counts.pop()]}"
    plan = VideoPlan(
        benchmark="compbench", layout=LAYOUT, prompts=PromptSet.of(everything, title), sources=sources, videos=videos
    )
    return plan.below(categories) if categories else plan


def read_results(paths: Sequence[Path]) -> dict[str, CategoryScore]:
    """Return the means of the categories whose result files are given.

    Raises:
        RMDError: a file cannot be read, is none of T2V-CompBench's, is incomplete, or is given twice.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        category, ending = _category_of(path)
        if ending in found.setdefault(category.name, {}):
            raise RMDError(f"{path} has {category.name}, too: give one file for each category")
        found[category.name][ending] = path
    scores = {}
    for category in CATEGORIES:
        files = found.get(category.name, {})
        if files:
            missing = [ending for ending in category.results if ending not in files]
            if missing:
                raise RMDError(f"{category.name} needs a file *{missing[0]} beside {next(iter(files.values()))}")
            scores[category.name] = category_score(category, [files[ending] for ending in category.results])
    return scores


def totals(scores: dict[str, CategoryScore]) -> CompbenchScores:
    """Return the scores with their average.

    Raises:
        RMDError: a category is missing, or two have different numbers of videos.
    """
    missing = [name for name in NAMES if name not in scores]
    if missing:
        raise RMDError(
            f"T2V-CompBench's average needs all {len(NAMES)} categories, and {len(missing)} are missing: "
            f"{', '.join(missing)}"
        )
    sizes = {score.count + score.unread for score in scores.values()}
    if len(sizes) > 1:
        raise RMDError("the categories are of two versions of T2V-CompBench: some have 100 videos, and others 200")
    ordered = {name: scores[name] for name in NAMES}
    average = fmean(score.mean for score in ordered.values())
    return CompbenchScores(edition=SIZES[sizes.pop()], categories=ordered, average=average)


def category_score(category: Category, paths: Sequence[Path]) -> CategoryScore:
    """Return the mean of a category from its result files.

    Raises:
        RMDError: a file is incomplete or damaged, or its last line has another mean than its rows.
    """
    shares: list[float] = []
    unread, said = 0, None
    for path in paths:
        for row in _rows(path):
            if row[0].strip() == MEAN:
                said = _number(row[-1])
                continue
            score = _number(row[-1])
            unread += score is None
            shares += [] if score is None else [category.share(score)]
    last = paths[-1]
    if len(shares) + unread not in SIZES:
        raise RMDError(
            f"{last} is of {len(shares) + unread} videos, and a category has 100 in version 1 and 200 in version 2: "
            "let its script finish"
        )
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise RMDError(f"{last} has a score out of its range: give the file that T2V-CompBench's script wrote")
    mean = math.fsum(shares) / len(shares)
    if said is not None and abs(said - mean) > _CLOSE:
        raise RMDError(
            f"the last line of {last} says {said:g}, but its rows have a mean of {mean:g}: run its script again"
        )
    return CategoryScore(mean=mean, count=len(shares), unread=unread)


def _category_of(path: Path) -> tuple[Category, str]:
    """Return the category of a result file, and the ending that tells; the longest one that fits."""
    endings = [(ending, category) for category in CATEGORIES for ending in category.results]
    for ending, category in sorted(endings, key=lambda pair: -len(pair[0])):
        if path.name.endswith(ending):
            return category, ending
    known = ", ".join(f"*{ending}" for ending, _ in endings)
    raise RMDError(f"{path} is no result of T2V-CompBench, whose files are called {known}")


def _rows(path: Path) -> list[list[str]]:
    """Return the rows of a result file without its head and empty lines."""
    with read_errors(path):
        if path.stat().st_size > MAX_JSON:
            raise RMDError(
                f"{path} is too large for a result of T2V-CompBench: at most {MAX_JSON // 2**20} MB are read"
            )
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.reader(file) if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise RMDError(f"{path} is not a CSV file: {error}") from error
    if not rows or not re.fullmatch(r"(?i)score(_1)?", rows[0][-1].strip()):
        head = shown(rows[0][-1]) if rows else "nothing"
        raise RMDError(f"{path} has {head} where the head of its last column should be Score: give another file")
    return rows[1:]


def _number(text: str) -> float | None:
    """Return a score, or None if the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
