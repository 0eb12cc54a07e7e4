"""Sets of prompts in groups, such as the four styles of HPDv2's benchmark, and the scores of the groups.

A benchmark prints the mean of every group and the average of these means, in which all groups count alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray

from rmd.common.errors import RMDError
from rmd.common.files import user_path
from rmd.data.captions import Keys, caption_of
from rmd.data.formats import read_file
from rmd.data.images import SUFFIXES
from rmd.data.prompts import read_captions
from rmd.models.hub import hub_errors
from rmd.sample.found import find_samples
from rmd.scores.result import Floats, Grouped, Result, Score, Table, bootstrap_means, interval, summarise

STYLES = ("anime", "concept-art", "paintings", "photo")
"""The styles of HPDv2's benchmark (Wu et al., Human Preference Score v2, 2023), of which each has 800 prompts."""
HPDV2, REPOSITORY, FOLDER = "hpdv2", "zhwang/HPDv2", "benchmark"
"""The name of HPDv2's benchmark, its dataset on the Hub, and the folder of the prompts there."""
GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The tasks of GenEval (Ghosh et al., GenEval, NeurIPS 2023), whose overall score is the average of their scores."""


@dataclass(frozen=True)
class Suite:
    """Prompts in groups.

    Attributes:
        prompts: all prompts; a prompt may occur more than once.
        groups: the number of prompts of each group, in the order of the prompts.
    """

    prompts: tuple[str, ...]
    groups: Mapping[str, int]


def read_suite(folder: str) -> Suite:
    """Read prompts in the layout of HPDv2's benchmark: a folder with a JSON list for each style, STYLE.json.

    Raises:
        RMDError: there is no such folder, a list is missing or damaged, or one of its entries is not a prompt.
    """
    if not user_path(folder).is_dir():
        raise RMDError(f"there is no folder {folder} with the lists of {', '.join(STYLES)}: download them")
    lists = {style: _prompts(user_path(folder) / f"{style}.json") for style in STYLES}
    return Suite(
        tuple(prompt for prompts in lists.values() for prompt in prompts),
        {style: len(prompts) for style, prompts in lists.items()},
    )


def suite_folder(name: str, weights: Path | None = None) -> str:
    """Return the place of a suite's prompts: that of `hpdv2`, which is fetched if necessary, or else the name itself.

    Args:
        name: `hpdv2`, a folder of prompts in its layout, or a file of prompts.
        weights: folder with repositories as OWNER/NAME; None: the Hub.

    Raises:
        RMDError: HPDv2's prompts cannot be fetched, or are not in the folder.
    """
    if name != HPDV2:
        return name
    if weights is not None:
        return str(weights / REPOSITORY / FOLDER)
    with hub_errors(REPOSITORY, "the prompts"):
        files = [hf_hub_download(REPOSITORY, f"{FOLDER}/{style}.json", repo_type="dataset") for style in STYLES]
    return str(Path(files[0]).parent)


def suite_prompts(place: str) -> list[str]:
    """Return the prompts of a place of `suite_folder`, each once: a picture counts wherever its prompt occurs.

    Raises:
        RMDError: they cannot be read.
    """
    texts = read_suite(place).prompts if user_path(place).is_dir() else read_captions(place)
    return list(dict.fromkeys(texts))


def has_styles(place: str) -> bool:
    """Return whether a place is a folder with a folder of pictures for a style, as HPDv2's authors publish them."""
    return any((user_path(place) / style).is_dir() for style in STYLES)


def by_style(place: str, suite: Suite) -> list[Path | None]:
    """Return the pictures of a suite's prompts, None for those that are missing, from folders called like the styles.

    A picture's name is the number of its prompt within the style, from 0, as in `anime/00012.jpg`.

    Raises:
        RMDError: a style has no pictures, a name is not the number of a prompt, or two pictures have the same number.
    """
    found: list[Path | None] = []
    for style, count in suite.groups.items():
        pictures: list[Path | None] = [None] * count
        for path in find_samples(str(user_path(place) / style), suffixes=SUFFIXES):
            number = int(path.stem) if path.stem.isdecimal() else count
            if number >= count:
                raise RMDError(
                    f"{path} is not called like a prompt of {style}: the names are numbers up to {count - 1}"
                )
            if (other := pictures[number]) is not None:
                raise RMDError(f"{other} and {path} belong to the same prompt: remove one of them")
            pictures[number] = path
        found += pictures
    return found


def by_group(result: Result, table: Table, metric: str, *, seed: int = 0) -> Grouped:
    """Return the means of a metric by group of a result's prompts, and their average.

    Args:
        result: a result whose prompts have groups.
        table: its values.
        metric: a column of the table.
        seed: seed of the bootstrap.

    Raises:
        RMDError: the prompts have no groups, or no picture of a group has a value.
    """
    return group_scores(table, metric, result.protocol.prompts.groups, each=result.protocol.each, seed=seed)


def group_scores(table: Table, metric: str, groups: Mapping[str, int], *, each: int, seed: int = 0) -> Grouped:
    """Return the means of a metric by group of prompts, and their average, with intervals over prompts.

    Args:
        table: the values.
        metric: a column of the table.
        groups: the number of prompts of each group, in the order of the prompts.
        each: number of pictures of each prompt.
        seed: seed of the bootstrap, which draws prompts within their groups.

    Raises:
        RMDError: there are no groups, or no picture of a group has a value.
    """
    if not groups:
        raise RMDError("the prompts of this result have no groups: score its pictures with a folder of --prompts")
    scores: dict[str, Score] = {}
    draws: list[Floats] = []
    start = 0
    for name, count in groups.items():
        inside = (table.prompt >= start) & (table.prompt < start + count)
        start += count
        known = inside & np.isfinite(table.values[metric])
        if not known.any():
            raise RMDError(f"no picture of {name} has a value of {metric}: generate some")
        scores[name] = summarise(_rows(table, inside), metric, expected=count * each, seed=seed)
        draws.append(bootstrap_means(table.values[metric][known], table.prompt[known], seed=seed + 1 + len(draws)))
    low, high = interval(np.mean(draws, axis=0))
    average = Score(
        mean=average_of({name: score.mean for name, score in scores.items()}, tuple(scores)), low=low, high=high,
        count=sum(score.count for score in scores.values()), missing=sum(score.missing for score in scores.values()),
    )  # fmt: skip
    return Grouped(groups=scores, average=average)


def average_of(scores: Mapping[str, float], groups: Sequence[str]) -> float:
    """Return the average of the scores of groups, in which all count alike.

    Args:
        scores: the scores by group.
        groups: the groups of the benchmark.

    Raises:
        RMDError: the score of a group is missing, or there is one of another group.
    """
    for name in dict.fromkeys([*groups, *scores]):
        if name not in scores or name not in groups:
            what = "has no score" if name in groups else "is not one of them"
            raise RMDError(f"an average needs the scores of {', '.join(groups)}, but {name} {what}")
    return sum(scores.values()) / len(groups)


def _rows(table: Table, chosen: NDArray[np.bool_]) -> Table:
    """Return some rows of a table."""
    files = [name for name, wanted in zip(table.file, chosen, strict=True) if wanted]
    values = {name: each[chosen] for name, each in table.values.items()}
    return Table(table.prompt[chosen], table.seed[chosen], files, values)


def _prompts(path: Path) -> list[str]:
    """Return the prompts of a list, none of which may be left out, since pictures are called like their numbers."""
    prompts = []
    for where, value in read_file(path, None, Keys(column="the column", skip=None)):
        caption = caption_of(value)
        if not isinstance(caption, str):
            raise RMDError(f"{where}{caption.sentence}; correct it")
        if not caption.strip():
            raise RMDError(f"{where}: the prompt is empty; correct it")
        prompts.append(caption.strip())
    if not prompts:
        raise RMDError(f"{path} has no prompts: download it again")
    return prompts
