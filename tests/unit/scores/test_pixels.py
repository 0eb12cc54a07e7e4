"""The preparation of pictures, against that of transformers and against arithmetic that is written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

from rmd.common.errors import RMDError
from rmd.scores.pixels import DEVIATION, MEAN, clip_pixels, merged_patches, padded_pixels, square_pixels


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture of smooth waves and some noise."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [127 + 90 * np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    image = Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def plain(pixels: Tensor) -> Tensor:
    """Return pixels in [0, 1] again."""
    return pixels * torch.tensor(DEVIATION).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.parametrize("size", [(64, 64), (80, 48), (48, 88), (32, 32), (40, 24)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_clip_sees_what_transformers_prepares(size: tuple[int, int], mode: str) -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = picture(*size, mode)
    theirs = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(clip_pixels(image, 32), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 40), (30, 64), (16, 16)])
def test_hpsv2_scales_the_longer_side_and_adds_black_margins(width: int, height: int) -> None:
    seen = plain(padded_pixels(picture(width, height), 32))
    assert seen.shape == (3, 32, 32)
    scale = 32 / max(width, height)
    inner = (round(height * scale), round(width * scale))
    top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[top : top + inner[0], left : left + inner[1]] = False
    assert seen[:, outside].abs().max() < 1e-6 if outside.any() else inner == (32, 32)
    pillow = np.asarray(picture(width, height).resize(inner[::-1], Image.Resampling.BICUBIC), dtype=np.float32) / 255
    inside = seen[:, top : top + inner[0], left : left + inner[1]]
    assert float((inside - torch.from_numpy(pillow).permute(2, 0, 1)).abs().mean()) < 0.01


def test_scaling_without_smoothing_is_another_picture() -> None:
    image = picture(256, 256)
    smooth, rough = (plain(padded_pixels(image, 32, antialias=smoothed)) for smoothed in (True, False))
    assert float((smooth - rough).abs().mean()) > 0.02
    assert float(rough.std()) > float(smooth.std())


def test_a_picture_of_the_right_size_is_not_scaled() -> None:
    image = picture(32, 32)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    for seen in (clip_pixels(image, 32), padded_pixels(image, 32), padded_pixels(image, 32, antialias=False)):
        torch.testing.assert_close(plain(seen), pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
def test_dmd2_sees_a_square_from_the_middle(size: tuple[int, int]) -> None:
    image = picture(*size)
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    square = image.crop((left, top, left + short, top + short)).resize((48, 48), Image.Resampling.LANCZOS)
    torch.testing.assert_close(square_pixels(image, 32, first=48), clip_pixels(square, 32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (200, 60), (31, 90), (112, 112), (12, 40)])
def test_qwen_sees_what_transformers_prepares(size: tuple[int, int]) -> None:
    area = 16 * 28 * 28
    processor = Qwen2VLImageProcessor(size={"shortest_edge": area, "longest_edge": area})
    image = picture(*size)
    theirs = processor(images=image, return_tensors="pt")
    patches, grid = merged_patches(image, area=area)
    assert [1, *grid] == theirs["image_grid_thw"][0].tolist()
    torch.testing.assert_close(patches, theirs["pixel_values"], atol=1e-5, rtol=0)


def test_sides_are_multiples_with_about_the_area() -> None:
    """Large pictures are scaled to at most the area, small ones to at least it."""
    area = 256 * 28 * 28
    sizes = {
        (1024, 1024): (32, 32),
        (512, 512): (32, 32),
        (1280, 720): (42, 24),
        (300, 300): (32, 32),
        (64, 48): (38, 28),
    }
    for (width, height), (columns, rows) in sizes.items():
        _, grid = merged_patches(Image.new("RGB", (width, height)), area=area)
        assert grid == (rows, columns), (width, height, grid)
    with pytest.raises(RMDError, match=r"^a picture of 603 x 3 pixels is too narrow for this score: leave it out$"):
        merged_patches(Image.new("RGB", (603, 3)), area=area)
