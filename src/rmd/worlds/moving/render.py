"""Renders moving scenes: a background of the still scenes, which does not move, and an object on its path.

What the caption leaves open is drawn for each clip from a generator keyed by (seed, index), so clip i does not depend
on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.core.randomness import generator
from rmd.worlds.moving.grammar import ClipAttributes, clip_caption, draw_clip_attributes
from rmd.worlds.moving.path import FRAMES, Path, draw_path
from rmd.worlds.still.render import CANVAS, GRAIN, Uniforms, background, draw_object, pebbles

_NUISANCES = 72
_PATH = slice(64, 72)
"""Columns of the draws that decide the path; the others have the meaning that they have for still scenes."""
_OBJECT = 24
_TILT = 0.7
"""Range of a still object's rotation, in radians."""


@dataclass(frozen=True)
class ClipBatch:
    """n clips: attributes (n, 5) as `CLIP_ATTRIBUTES`, captions, draws (n, 72) in [0, 1) and grain (n, 4, 16, 16)."""

    attributes: Tensor
    captions: list[str]
    uniform: Tensor
    grain: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def path(self, frames: int = FRAMES) -> Path:
        return draw_path(self.attributes, self.uniform[:, _PATH], frames=frames)

    def slice(self, start: int, stop: int) -> ClipBatch:
        return ClipBatch(
            self.attributes[start:stop], self.captions[start:stop], self.uniform[start:stop], self.grain[start:stop]
        )


def sample_clips(indices: Sequence[int], *, seed: int, training: bool) -> ClipBatch:
    """Draw clips by index; `training` leaves out the held-out combinations. Clip i depends only on (seed, i)."""
    attributes, captions, uniform, grain = [], [], [], []
    for index in indices:
        g = generator(seed, "clip", int(index))
        drawn = draw_clip_attributes(g, training=training)
        attributes.append(drawn.to_tuple())
        captions.append(clip_caption(drawn))
        uniform.append(torch.rand(_NUISANCES, generator=g))
        grain.append(torch.randn(GRAIN, 16, 16, generator=g))
    return ClipBatch(torch.tensor(attributes), captions, torch.stack(uniform), torch.stack(grain))


def clips_of(attributes: Sequence[ClipAttributes], *, seed: int) -> ClipBatch:
    """Draw clips with given attributes; what the captions leave open depends on the seed and the position."""
    draws = [generator(seed, "clip-of", i) for i in range(len(attributes))]
    uniform = torch.stack([torch.rand(_NUISANCES, generator=g) for g in draws])
    grain = torch.stack([torch.randn(GRAIN, 16, 16, generator=g) for g in draws])
    captions = [clip_caption(a) for a in attributes]
    return ClipBatch(torch.tensor([a.to_tuple() for a in attributes]), captions, uniform, grain)


def render_clips(clips: ClipBatch, size: int = 64, *, frames: int = FRAMES, chunk: int = 32) -> Tensor:
    """Render to (n, 3, T, size, size) float32 in [0, 1], anti-aliased like the still scenes."""
    parts = [_render_chunk(clips.slice(i, i + chunk), size, frames) for i in range(0, len(clips), chunk)]
    return torch.cat(parts)


def _render_chunk(clips: ClipBatch, size: int, frames: int) -> Tensor:
    n, side = len(clips), 2 * size
    axis = (torch.arange(side) + 0.5) * (CANVAS / side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x.expand(n, side, side), y.expand(n, side, side)
    u = Uniforms(clips.uniform[:, :64])
    edge = CANVAS / size
    turn = 2 * math.pi * u.column(1)
    light = torch.stack([torch.cos(turn), -0.4 - 0.6 * u.column(2)], 1)
    light = light / light.norm(dim=1, keepdim=True)
    still = pebbles(background(clips.attributes[:, 0], clips.grain, u, x, y), u, x, y, edge)
    bright = 0.92 + 0.16 * u.map(3, (n, 1, 1, 1))
    path = clips.path(frames)
    plain = torch.zeros(n, dtype=torch.int64)
    shown = []
    for t in range(frames):
        draws = clips.uniform[:, _OBJECT : _OBJECT + 16].clone()
        draws[:, 0] = path.angle[:, t] / _TILT + 0.5
        picture = draw_object(
            still,
            x,
            y,
            shape=clips.attributes[:, 1],
            colour=clips.attributes[:, 2],
            texture=plain,
            place=torch.cat([path.centre[:, t], path.radius[:, t, None]], 1),
            light=light,
            u=Uniforms(draws),
            edge=edge,
        )
        shown.append(F.avg_pool2d((picture * bright).clamp(0, 1), 2))
    return torch.stack(shown, dim=2)
