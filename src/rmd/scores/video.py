"""Metrics of clips by features of their frames and by pixels: near to five of VBench's dimensions, and not VBench.

Formulas are VBench's where it has one, but networks and preparation are others, and no prompt list is asked for. The
values order checkpoints of one model; they cannot be compared with published ones.

Source of the formulas: Huang et al., VBench: Comprehensive Benchmark Suite for Video Generative Models (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rmd.common.clips import Clip
from rmd.common.errors import RMDError
from rmd.scores.distances import DISTANCES
from rmd.scores.metrics import METRICS, Metric, Place
from rmd.scores.result import Preparation, Settings

PREFIX = "vbench-lite-"
"""The names of these metrics begin with it."""
AT_ONCE = 32
"""Largest number of frames that a network sees at once."""
RATE = 8
"""Frames per second at which motion is measured, as VBench does."""
MOVING_SHARE = 0.05
"""Share of the pixels, those that change most, whose change is the motion of two frames."""


class VideoScorer(Protocol):
    """A metric of clips that is ready to score."""

    @property
    def preparation(self) -> Preparation:
        """Everything that decides a value."""

    def __call__(self, clips: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        """Return the scores (n,) in float32 of n clips for their prompts."""


VideoMetric = Metric[VideoScorer]
"""A metric of clips."""


@dataclass(frozen=True)
class ByFrames:
    """A score that follows from the frames of a clip alone.

    Attributes:
        of: returns the score of a clip.
        preparation: everything that decides a value.
    """

    of: Callable[[Clip], float]
    preparation: Preparation

    def __call__(self, clips: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
        """Return the scores (n,) of clips; the prompts are not read.

        Raises:
            RMDError: a clip is too short.
        """
        return torch.tensor([self.of(clip) for clip in clips], dtype=torch.float32)


def consistency(features: Tensor) -> float:
    """Return the mean similarity of each frame with the first one and with the one before it, in [0, 1].

    The similarity of two frames is the cosine of their features, or 0 where that is negative; the first frame, which
    has none before it, does not count.

    Args:
        features: features (n, d) of n >= 2 frames in their order.
    """
    unit = F.normalize(features.double(), dim=-1)
    first, previous = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(-1)
    return float((first.clamp(min=0) + previous.clamp(min=0)).mean() / 2)


def steadiness(clip: Clip) -> float:
    """Return how little each frame differs from the next: (255 - mean absolute difference) / 255, in [0, 1].

    VBench calls it temporal flickering, and asks for it of clips without motion only. Higher is steadier.

    Raises:
        RMDError: the clip has a single frame.
    """
    frames = [np.asarray(frame.convert("RGB")).astype(np.int16) for frame in _frames(clip, 1)]
    return 1 - float(np.mean([np.abs(a - b).mean() for a, b in pairwise(frames)])) / 255


def motion(clip: Clip) -> float:
    """Return how much the pixels change that change most, in [0, 1].

    Frames are taken at about 8 per second, as VBench takes them. Of two frames in a row, it is the mean absolute
    difference in luminance of the 5 % of the pixels with the largest one; of a clip, the mean over its pairs. A clip
    that stands still has 0. Unlike optical flow, this cannot tell motion from flicker or a change of light.

    Raises:
        RMDError: the clip has fewer than two frames at that rate.
    """
    frames = [
        np.asarray(frame.convert("L")).astype(np.int16) for frame in _frames(clip, max(1, round(clip.fps / RATE)))
    ]
    return float(np.mean([_largest(np.abs(a - b)) for a, b in pairwise(frames)])) / 255


def _largest(changes: NDArray[np.int16]) -> float:
    """Return the mean of the largest 5 % of the values, of one at least."""
    values = changes.ravel()
    count = max(1, int(values.size * MOVING_SHARE))
    return float(np.partition(values, values.size - count)[-count:].mean())


def _frames(clip: Clip, interval: int) -> Sequence[Image.Image]:
    """Return every frame whose number is a multiple of the interval, of which there must be two."""
    if len(clip.frames) <= interval:
        raise RMDError(
            f"a clip of {len(clip.frames)} frames at {clip.fps:g} per second is too short: this metric needs at least "
            f"{interval + 1}"
        )
    return clip.frames[::interval]


def _consistent(distance: str, similarity: str) -> Callable[[Place], VideoScorer]:
    """Return the loader of a consistency by the features of a distance."""

    def load(place: Place) -> VideoScorer:
        features = DISTANCES[distance].features(place)
        settings: Settings = {**features.preparation.settings, "measure": similarity}

        def of(clip: Clip) -> float:
            frames = _frames(clip, 1)
            parts = [features.of(frames[start : start + AT_ONCE]) for start in range(0, len(frames), AT_ONCE)]
            return consistency(torch.cat(parts))

        return ByFrames(of, features.preparation.model_copy(update={"settings": settings}))

    return load


def _by_pixels(of: Callable[[Clip], float], measure: str) -> Callable[[Place], VideoScorer]:
    return lambda place: ByFrames(of, Preparation(networks=(), settings={"measure": measure}))


def _aesthetic(place: Place) -> VideoScorer:
    scorer = METRICS["aesthetic-v1"].load(place)
    settings: Settings = {**scorer.preparation.settings, "measure": "mean over frames, divided by 10"}

    def of(clip: Clip) -> float:
        starts = range(0, len(clip.frames), AT_ONCE)
        parts = (clip.frames[start : start + AT_ONCE] for start in starts)
        return float(torch.cat([scorer(part, [""] * len(part)) for part in parts]).mean()) / 10

    return ByFrames(of, scorer.preparation.model_copy(update={"settings": settings}))


_COSINES = "cosine to the first and to the previous frame"
VIDEO_METRICS = {
    metric.name: metric
    for metric in (
        VideoMetric(f"{PREFIX}subject-consistency", "VBench-lite: subject consistency",
                    _consistent("fd-dinov2", _COSINES), digits=4),
        VideoMetric(f"{PREFIX}background-consistency", "VBench-lite: background consistency",
                    _consistent("cmmd", _COSINES), digits=4),
        VideoMetric(f"{PREFIX}temporal-flickering", "VBench-lite: temporal flickering",
                    _by_pixels(steadiness, "mean absolute difference of adjacent frames"), digits=4),
        VideoMetric(f"{PREFIX}dynamic-degree", "VBench-lite: dynamic degree",
                    _by_pixels(motion, "largest 5 % of differences in luminance, 8 frames per second"), digits=4),
        VideoMetric(f"{PREFIX}aesthetic", "VBench-lite: aesthetic quality", _aesthetic, digits=4),
    )
}  # fmt: skip
"""All metrics of clips by name."""
