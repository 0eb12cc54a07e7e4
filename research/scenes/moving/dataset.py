"""Rendered clips in memory, with their attributes, captions and the paths of their objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.common.pictures import to_uint8
from rmd.worlds.moving.path import FRAMES, Path
from rmd.worlds.moving.render import clip_path, render_clips, sample_clips


@dataclass(frozen=True)
class ClipSet:
    """n rendered clips.

    Attributes:
        videos: (n, 3, T, side, side), uint8.
        attributes: (n, 5), int64; columns as in `CLIP_ATTRIBUTES`.
        captions: one caption per clip.
        path: the true paths of the objects.
    """

    videos: Tensor
    attributes: Tensor
    captions: list[str]
    path: Path

    def __len__(self) -> int:
        return len(self.captions)

    def pixels(self, index: Tensor) -> Tensor:
        """Return the videos at the given indices as float32 in [-1, 1]."""
        return self.videos[index].float() / 127.5 - 1


def make_clips(count: int, *, seed: int, training: bool, size: int = 64, frames: int = FRAMES) -> ClipSet:
    """Render `count` clips of a seed; `training` leaves out the held-out combinations of attributes."""
    videos, attributes, captions, paths = [], [], list[str](), []
    for start in range(0, count, 64):
        clips = sample_clips(range(start, min(start + 64, count)), seed=seed, training=training)
        videos.append(to_uint8(render_clips(clips, size, frames=frames), low=0))
        attributes.append(clips.attributes)
        captions += clips.captions
        paths.append(clip_path(clips, frames))
    path = Path(*(torch.cat([getattr(p, part) for p in paths]) for part in ("centre", "radius", "angle")))
    return ClipSet(torch.cat(videos), torch.cat(attributes), captions, path)
