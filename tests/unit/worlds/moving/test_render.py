"""Rendered clips: a function of seed and index, anti-aliased, with the object on its path and everything else still."""

from __future__ import annotations

import pytest
import torch

from research.scenes.moving.dataset import make_clips
from rmd.worlds.batch import Batch
from rmd.worlds.moving.path import FRAMES
from rmd.worlds.moving.render import clip_path, render_clips, sample_clips
from rmd.worlds.still.grammar import COLOURS


@pytest.fixture(scope="module")
def clips() -> Batch:
    return sample_clips(range(24), seed=0, training=False)


def test_a_clip_depends_on_seed_and_index_alone(clips: Batch) -> None:
    videos = render_clips(clips, 32)
    assert videos.shape == (24, 3, FRAMES, 32, 32)
    assert float(videos.min()) >= 0 and float(videos.max()) <= 1
    alone = render_clips(sample_clips([7], seed=0, training=False), 32)
    assert torch.equal(alone[0], videos[7])
    assert not torch.equal(render_clips(sample_clips([7], seed=1, training=False), 32)[0], videos[7])


def test_the_background_stands_still_and_the_object_does_not(clips: Batch) -> None:
    videos = render_clips(clips, 64)
    path = clip_path(clips)
    axis = torch.arange(64) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    away = (path.centre[..., 0, None, None] - x) ** 2 + (path.centre[..., 1, None, None] - y) ** 2
    far = (away.sqrt() > 1.35 * path.radius[..., None, None] + 8).all(1)  # outside the object and its shadow
    change = (videos - videos[:, :, :1]).abs().amax((1, 2))
    assert float(change[far].max()) < 0.02  # the shadow is soft
    assert float(change[far].mean()) < 1e-4
    assert float(change.flatten(1).amax(1).min()) > 0.1


def test_the_object_is_where_the_path_says(clips: Batch) -> None:
    # Red objects are found by their redness; white and yellow ones also have much red.
    red = [i for i in range(200) if sample_clips([i], seed=5, training=False).attributes[0, 2] == COLOURS.index("red")]
    chosen = sample_clips(red[:12], seed=5, training=False)
    videos, path = render_clips(chosen, 64), clip_path(chosen)
    redness = (videos[:, 0] - torch.maximum(videos[:, 1], videos[:, 2]) - 0.35).clamp(min=0)
    axis = torch.arange(64) + 0.5
    weight = redness.sum((2, 3))
    centre = torch.stack([(redness.sum(2) * axis).sum(2), (redness.sum(3) * axis).sum(2)], 2) / weight[..., None]
    good = weight > 40
    assert float(good.float().mean()) > 0.8
    assert float((centre - path.centre)[good].norm(dim=1).median()) < 2.0


def test_sizes_agree_and_a_set_holds_what_was_rendered() -> None:
    clips = make_clips(6, seed=2, training=True)
    assert clips.videos.dtype == torch.uint8 and clips.videos.shape == (6, 3, FRAMES, 64, 64)
    assert len(clips) == 6 and clips.path.centre.shape == (6, FRAMES, 2)
    small = make_clips(6, seed=2, training=True, size=32)
    half = torch.nn.functional.avg_pool2d(clips.pixels(torch.arange(6)).flatten(0, 1), 2).unflatten(0, (6, 3))
    assert float((half - small.pixels(torch.arange(6))).abs().mean()) < 0.02
