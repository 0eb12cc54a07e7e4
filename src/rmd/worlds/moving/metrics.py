"""Counts of what a judge reads in clips, and features for distances between clips; neither VBench nor FVD.

attributes: share of frames with the requested background, shape and colour. motion, speed: shares of clips, decided by
`rmd.worlds.moving.motion`. flicker: change between two frames where nothing moves. dynamics: amount of motion relative
to the requested amount. Features are those of frames, and of what changes from frame to frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmd.worlds.base import Measured, share_of
from rmd.worlds.moving.grammar import FRAME_ATTRIBUTES
from rmd.worlds.moving.judge import Track
from rmd.worlds.moving.motion import judge_motion, read_motion

SHOWN = (0, 4, 8)
"""Indices of the frames whose features enter the distances between frames."""


def measure_clips(videos: Tensor, track: Track, attributes: Tensor) -> dict[str, Measured]:
    """Compare clips with their captions; return the measures by the name of their metric.

    Args:
        videos: (n, 3, T, H, W) in [-1, 1].
        track: what the judge read in them.
        attributes: (n, 5) ground truth from the captions, columns as `CLIP_ATTRIBUTES`.
    """
    right = track.named == attributes[:, None, :3]
    frames = right.all(2)
    motion = judge_motion(read_motion(track, attributes[:, 1]), attributes)
    n = len(attributes)
    # The frames of a clip are right or wrong together, so the interval is that of n trials, not of n T.
    share = float(frames.float().mean())
    parts = {name: float(right[..., i].float().mean()) for i, name in enumerate(FRAME_ATTRIBUTES)}
    return {
        "attributes": share_of(round(share * n), n, parts).model_copy(update={"value": share}),
        "motion": share_of(int(motion.motion.sum()), n),
        "speed": share_of(int(motion.speed.sum()), n),
        "dynamics": Measured(value=float(motion.amount.clamp(max=2).mean())),
        "flicker": Measured(value=flicker(videos, track)),
    }


def flicker(videos: Tensor, track: Track) -> float:
    """Return the mean absolute change between frames outside the object and its shadow, in percent of the pixel range.

    Args:
        videos: (n, 3, T, H, W) in [-1, 1].
        track: centre and radius of the object, in canvas units.
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
    """Return the features (3 n, 384) of each clip's `SHOWN` frames; those of a clip are consecutive."""
    return track.features[:, list(SHOWN)].flatten(0, 1)


def change_features(track: Track) -> Tensor:
    """Return the mean absolute change (n, 384) of the features from frame to frame."""
    return track.features.diff(dim=1).abs().mean(1)
