"""Measures of a video sampler on judged clips; each is named for what it is, and none is VBench's or FVD.

attributes: share of frames with background, shape and colour as asked. motion, speed: shares of clips, read by
`rmd.worlds.moving.motion`. flicker: how much changes between two frames where nothing moves. dynamics: how much moves,
over what was asked. Kernel distances compare features of frames, and of what changes from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.core.metrics import Interval, wilson
from rmd.worlds.moving.judge import Track
from rmd.worlds.moving.motion import judge_motion, read_motion

SHOWN = (0, 4, 8)
"""Frames of a clip whose features enter the distance of frames."""


@dataclass(frozen=True)
class ClipMeasures:
    """Of n clips; shares with their 95 % intervals, flicker in percent of the range of pixels."""

    attributes: Interval
    attributes_by_name: dict[str, float]
    motion: Interval
    speed: Interval
    flicker: float
    dynamics: float


def measure_clips(videos: Tensor, track: Track, attributes: Tensor) -> ClipMeasures:
    """Compare clips (n, 3, T, H, W) in [-1, 1], and what the judge read in them, with attributes (n, 5)."""
    right = track.named == attributes[:, None, :3]
    frames = right.all(2)
    motion = judge_motion(read_motion(track, attributes[:, 1]), attributes)
    n = len(attributes)
    # frames of a clip stand and fall together: the interval is that of n, not of n T trials
    share = float(frames.float().mean())
    around = wilson(round(share * n), n)
    names = ("background", "shape", "colour")
    return ClipMeasures(
        attributes=Interval(share, around.low, around.high),
        attributes_by_name={name: float(right[..., i].float().mean()) for i, name in enumerate(names)},
        motion=wilson(int(motion.motion.sum()), n),
        speed=wilson(int(motion.speed.sum()), n),
        flicker=flicker(videos, track),
        dynamics=float(motion.amount.clamp(max=2).mean()),
    )


def flicker(videos: Tensor, track: Track) -> float:
    """Mean absolute change from frame to frame outside the object and its shadow, in percent of the pixels' range.

    Args:
        videos: (n, 3, T, H, W) in [-1, 1].
        track: where the object is, in canvas units.
    """
    side = videos.shape[-1]
    axis = (torch.arange(side) + 0.5) * (64 / side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    away = ((track.centre[..., 0, None, None] - x) ** 2 + (track.centre[..., 1, None, None] - y) ** 2).sqrt()
    outside = away > 1.35 * track.radius[..., None, None] + 6
    still = (outside[:, 1:] & outside[:, :-1])[:, None].float()
    change = videos.diff(dim=2).abs()
    return float(50 * (change * still).sum() / (3 * still.sum()).clamp(min=1))


def frame_features(track: Track) -> Tensor:
    """(3 n, 384) features of each clip's `SHOWN` frames, those of a clip in a row."""
    return track.features[:, list(SHOWN)].flatten(0, 1)


def change_features(track: Track) -> Tensor:
    """(n, 384) mean absolute change of the features from frame to frame."""
    return track.features.diff(dim=1).abs().mean(1)
