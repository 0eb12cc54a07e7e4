"""The pictures of a run: every pixel is where it belongs."""

from __future__ import annotations

import numpy as np
import torch
from helpers import PROMPTS, LinearBackbone, cascade, make_batch, make_method
from PIL import Image
from torch import Tensor

from research.sampling import sample_images
from rmd.common.pictures import to_uint8
from rmd.train.panels import PANEL_ROWS, sample_panel, score_panel

GAP = 4


def cell(picture: Image.Image, row: int, column: int, side: int) -> Tensor:
    """Return the picture (3, side, side) in a cell of a grid."""
    top, left = row * (side + GAP), column * (side + GAP)
    pixels = np.asarray(picture)[top : top + side, left : left + side]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_the_sample_panel_shows_the_prompts_with_the_student() -> None:
    backbone = LinearBackbone()
    plan = cascade(backbone)
    picture = sample_panel(backbone, backbone.denoiser, plan, backbone.encode(PROMPTS), seed=3, at_once=8)
    images = to_uint8(sample_images(backbone, backbone.denoiser, plan, PROMPTS, seed=3))
    assert picture.size == (2 * 32 + GAP, 2 * 32 + GAP)
    for index in range(4):
        assert torch.equal(cell(picture, index // 2, index % 2, 32), images[index])
    fewer = sample_panel(backbone, backbone.denoiser, plan, backbone.encode(PROMPTS), seed=3, at_once=3)
    assert np.array_equal(np.asarray(fewer), np.asarray(picture))
    one = sample_panel(backbone, backbone.denoiser, plan, backbone.encode(PROMPTS[:1]), seed=3, at_once=8)
    assert one.size == (32, 32)


def test_the_score_panel_has_a_row_for_each_thing_it_names() -> None:
    backbone = LinearBackbone()
    method = make_method(backbone, cascade(backbone), guidance=4.0)
    _, rollout = method.student_loss(make_batch(backbone, count=3), method.plan.steps[2])
    picture = score_panel(backbone, rollout)
    size = (3 * (32 + GAP) - GAP, len(PANEL_ROWS) * (32 + GAP) - GAP)
    margin = picture.width - size[0]
    for row in range(len(PANEL_ROWS)):  # its name stands beside it
        assert np.asarray(picture)[row * (32 + GAP) : row * (32 + GAP) + 32, :margin].min() < 64
    picture = picture.crop((margin, 0, *picture.size))
    assert picture.size == size
    gap = 4 * (rollout.f_real - rollout.f_fake)
    rows = dict(zip(PANEL_ROWS, (rollout.y, rollout.x_tau, rollout.f_real, rollout.f_fake, gap), strict=True))
    assert list(rows) == ["student x0", "noised", "teacher x0", "fake x0", "difference x4"]
    for row, latents in enumerate(rows.values()):
        for column in range(3):
            expected = to_uint8(backbone.decode(latents[column : column + 1]))[0]
            assert torch.equal(cell(picture, row, column, 32), expected)
