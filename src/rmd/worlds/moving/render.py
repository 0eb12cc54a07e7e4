"""Renders moving scenes: a background of the still scenes, which does not move, and an object on its path.

What the caption leaves open is drawn for each clip from a generator keyed by (seed, index), so clip i does not depend
on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmd.worlds.batch import Batch, draw_batch
from rmd.worlds.moving.grammar import ClipAttributes, clip_caption, draw_clip_attributes
from rmd.worlds.moving.path import FRAMES, Path, draw_path
from rmd.worlds.still.render import Uniforms, View, draw_object

_NUISANCES = 72
_PATH = slice(64, 72)
"""Columns of the draws that decide the path; the others have the meaning that they have for still scenes."""
_OBJECT = 24
_TILT = 0.7
"""Range of a still object's rotation, in radians."""


def sample_clips(indices: Sequence[int], *, seed: int, training: bool) -> Batch:
    """Draw clips by index; `training` leaves out the held-out combinations. Clip i depends only on (seed, i)."""
    return draw_batch(
        "clip",
        indices,
        lambda _, g: draw_clip_attributes(g, training=training),
        lambda drawn, _: clip_caption(drawn),
        seed=seed,
        draws=_NUISANCES,
    )


def clips_of(attributes: Sequence[ClipAttributes], *, seed: int) -> Batch:
    """Draw clips with given attributes; what the captions leave open depends on the seed and the position."""
    indices = range(len(attributes))
    return draw_batch(
        "clip-of", indices, lambda i, _: attributes[i], lambda a, _: clip_caption(a), seed=seed, draws=_NUISANCES
    )


def clip_path(clips: Batch, frames: int = FRAMES) -> Path:
    """Return the paths of the clips' objects."""
    return draw_path(clips.attributes, clips.uniform[:, _PATH], frames=frames)


def render_clips(clips: Batch, size: int = 64, *, frames: int = FRAMES, chunk: int = 32) -> Tensor:
    """Render to (n, 3, T, size, size) float32 in [0, 1], anti-aliased like the still scenes."""
    return torch.cat([_render_chunk(part, size, frames) for part in clips.split(chunk)])


def _render_chunk(clips: Batch, size: int, frames: int) -> Tensor:
    view, path = View.of(clips, size), clip_path(clips, frames)
    still, n = view.background(clips.attributes[:, 0]), len(clips)
    plain = torch.zeros(n, dtype=torch.int64)
    shown = []
    for t in range(frames):
        draws = clips.uniform[:, _OBJECT : _OBJECT + 16].clone()
        draws[:, 0] = path.angle[:, t] / _TILT + 0.5
        picture = draw_object(
            still,
            view.x,
            view.y,
            shape=clips.attributes[:, 1],
            colour=clips.attributes[:, 2],
            texture=plain,
            place=torch.cat([path.centre[:, t], path.radius[:, t, None]], 1),
            light=view.light,
            u=Uniforms(draws),
            edge=view.edge,
        )
        shown.append(view.finished(picture))
    return torch.stack(shown, dim=2)
