"""The totals of VBench from the scores of its dimensions.

VBench itself runs in an environment of its own, since its networks need old versions of many packages. What it writes
is read here. Unlike VBench's own script, which takes a missing dimension for 0, a missing one is an error.

Source: Huang et al., VBench: Comprehensive Benchmark Suite for Video Generative Models (CVPR 2024), and the constants
of its leaderboard's script (https://github.com/Vchitect/VBench, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rmd.common.errors import RMDError, shown
from rmd.common.typed import Strict
from rmd.models.hub import read_object

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0
"""Weights of the two groups in the total."""


@dataclass(frozen=True)
class Dimension:
    """A dimension of VBench.

    Attributes:
        name: its name in VBench's files.
        quality: whether it is of the group of quality, and otherwise of semantics.
        low, high: the scores that are mapped to 0 and 1.
        weight: its weight in its group.
    """

    name: str
    quality: bool
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS = (
    Dimension("subject_consistency", True, low=0.1462),
    Dimension("background_consistency", True, low=0.2615),
    Dimension("temporal_flickering", True, low=0.6293),
    Dimension("motion_smoothness", True, low=0.706, high=0.9975),
    Dimension("dynamic_degree", True, weight=0.5),
    Dimension("aesthetic_quality", True),
    Dimension("imaging_quality", True),
    Dimension("object_class", False),
    Dimension("multiple_objects", False),
    Dimension("human_action", False),
    Dimension("color", False),
    Dimension("spatial_relationship", False),
    Dimension("scene", False, high=0.8222),
    Dimension("appearance_style", False, low=0.0009, high=0.2855),
    Dimension("temporal_style", False, high=0.364),
    Dimension("overall_consistency", False, high=0.364),
)


_FOLDERS = {
    "background_consistency": "scene", "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency", "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
}  # fmt: skip
"""Dimensions that are measured on the videos of another one."""


def folder_of(dimension: str) -> str:
    """Return the folder of the videos on which a dimension is measured."""
    return _FOLDERS.get(dimension, dimension)


class Totals(Strict):
    """VBench's totals, as shares; tables print them times 100."""

    total: float
    quality: float
    semantic: float
    dimensions: dict[str, float]
    """Normalised scores of all dimensions."""


def totals(scores: Mapping[str, float]) -> Totals:
    """Return the totals of the raw scores of all dimensions.

    Args:
        scores: raw scores by the names of the dimensions, as shares.

    Raises:
        RMDError: a dimension is missing or unknown, or a score is not a share.
    """
    names = [dimension.name for dimension in DIMENSIONS]
    missing = [name for name in names if name not in scores]
    if missing:
        raise RMDError(
            f"VBench's totals need all {len(names)} dimensions, and {len(missing)} are missing: {', '.join(missing)}"
        )
    unknown = sorted(set(scores) - set(names))
    if unknown:
        raise RMDError(f"VBench has no dimension {', '.join(unknown)}: use the names of its own files")
    wrong = next((name for name in names if not 0 <= scores[name] <= 1), None)
    if wrong is not None:
        raise RMDError(f"the score of {wrong} is {shown(scores[wrong])}, and should lie between 0 and 1")
    normalised = {each.name: (scores[each.name] - each.low) / (each.high - each.low) for each in DIMENSIONS}
    quality, semantic = (_group(normalised, is_quality) for is_quality in (True, False))
    return Totals(total=combined(quality, semantic), quality=quality, semantic=semantic, dimensions=normalised)


def combined(quality: float, semantic: float) -> float:
    """Return the total of the two groups' scores."""
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def read_scores(paths: Sequence[Path]) -> dict[str, float]:
    """Return the raw scores in files that VBench wrote, `*_eval_results.json`.

    Each holds `{dimension: [score, videos]}`; the scores of single videos are not read.

    Raises:
        RMDError: a file cannot be read or is none of VBench's, or two have the same dimension.
    """
    scores: dict[str, float] = {}
    for path in paths:
        for name, value in read_object(path).items():
            score = value[0] if isinstance(value, list) and value else value
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise RMDError(f"{path}: {shown(name)} has no score; give the *_eval_results.json files of VBench")
            if name in scores:
                raise RMDError(f"{path} has {name}, too: give one file for each dimension")
            scores[name] = float(score)
    return scores


def _group(normalised: Mapping[str, float], quality: bool) -> float:
    parts = [each for each in DIMENSIONS if each.quality == quality]
    weights = sum(each.weight for each in parts)
    return fmean(normalised[each.name] * each.weight * len(parts) / weights for each in parts)
