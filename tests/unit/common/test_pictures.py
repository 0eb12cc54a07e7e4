"""Grids keep every pixel of their pictures; captions get space of their own."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.pictures import comparison_picture, grid_image, png, to_image, to_uint8

GAP = 4


def noise(count: int, height: int = 6, width: int = 8, seed: int = 0) -> Tensor:
    """Return random pictures (count, 3, height, width) of uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def enlarged(picture: Tensor, scale: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) with every pixel repeated."""
    repeated: NDArray[np.uint8] = picture.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    return repeated


@pytest.mark.parametrize("scale", [1, 3])
def test_grid_places_pictures_row_by_row_and_enlarges_without_smoothing(scale: int) -> None:
    images = noise(5)
    height, width = 6 * scale, 8 * scale
    grid = pixels(grid_image(images, columns=3, scale=scale))
    assert grid.shape == (2 * height + GAP, 3 * width + 2 * GAP, 3)
    for index in range(5):
        top, left = index // 3 * (height + GAP), index % 3 * (width + GAP)
        assert np.array_equal(grid[top : top + height, left : left + width], enlarged(images[index], scale))
    assert (grid[height + GAP :, 2 * (width + GAP) :] == 255).all()  # the place without a picture


def test_grid_is_no_wider_than_its_pictures() -> None:
    assert grid_image(noise(2), columns=9).size == (2 * 8 + GAP, 6)


def test_labels_stand_under_their_pictures_and_change_no_pixel() -> None:
    images = noise(2, 20, 60)
    grid = pixels(grid_image(images, columns=1, labels=["a red ball", "a long caption of many words, on sand"]))
    bar = (len(grid) - GAP) // 2 - 20
    assert np.array_equal(grid[:20], enlarged(images[0], 1))
    assert np.array_equal(grid[20 + bar + GAP :][:20], enlarged(images[1], 1))
    for text in (grid[20 : 20 + bar], grid[-bar:]):
        assert (text < 128).any() and (text[:, :1] == 255).all()


def test_comparison_puts_grids_side_by_side_under_their_captions() -> None:
    grids = {"one": noise(4, 16, 30), "two": noise(4, 16, 30, seed=1)}
    drawn = pixels(comparison_picture(grids, {"one": "Teacher", "two": "Student"}, columns=2, scale=1))
    width, height = 2 * 30 + GAP, 2 * 16 + GAP
    bar = len(drawn) - height
    assert drawn.shape == (bar + height, 2 * width + 4 * GAP, 3)
    for index, grid in enumerate(grids.values()):
        left = index * (width + 4 * GAP)
        assert np.array_equal(drawn[bar:, left : left + width], pixels(grid_image(grid, columns=2)))
        assert (drawn[:bar, left : left + width] < 128).any()


def test_png_keeps_every_pixel() -> None:
    picture = noise(1)[0]
    with Image.open(io.BytesIO(png(to_image(picture)))) as read:
        assert np.array_equal(pixels(read), enlarged(picture, 1))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: grid_image(torch.zeros(2, 3, 4, 4), 2), "got .2, 3, 4, 4. of float32"),
        (lambda: grid_image(noise(1)[0], 2), "got .3, 6, 8. of uint8"),
        (lambda: grid_image(noise(0), 2), "got .0, 3, 6, 8."),
        (lambda: grid_image(noise(2), 0), "at least one column"),
        (lambda: grid_image(noise(2), 2, 0), "a scale of at least 1"),
        (lambda: grid_image(noise(2), 2, labels=["one"]), "2 pictures need 2 labels, but there are 1"),
        (lambda: comparison_picture({}, {}, 2), "at least one grid"),
        (lambda: comparison_picture({"a": noise(2), "b": noise(3)}, {"a": "", "b": ""}, 2), "one shape"),
        (lambda: comparison_picture({"a": noise(2)}, {"b": "B"}, 2), "'a' has no label"),
    ],
)
def test_pictures_say_what_is_wrong(draw: Callable[[], Image.Image], message: str) -> None:
    with pytest.raises(RMDError, match=message):
        draw()


def test_minus_one_to_one_becomes_0_to_255() -> None:
    values = to_uint8(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]))
    assert values.dtype == torch.uint8
    assert values.tolist() == [0, 0, 128, 191, 255, 255]


def test_0_to_1_becomes_0_to_255() -> None:
    values = torch.tensor([-0.1, 0.0, 0.5, 0.999, 1.0, 2.0])
    assert to_uint8(values, low=0).tolist() == [0, 0, 128, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 255, low=0), every)
