"""Prepares pictures for networks: sizes, crops and margins are exactly those of the published scores."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from rmd.common.errors import RMDError

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's statistics of pictures, by which CLIP's pixels are normalised."""
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels."""
MAX_RATIO = 200
"""Largest ratio of the sides of a picture that is cut into patches."""


def clip_pixels(image: Image.Image, side: int = 224) -> Tensor:
    """Return a picture as CLIP sees it, (3, side, side): the shorter side scaled, the middle cut out.

    Scaling is Pillow's bicubic one, which also smooths.
    """
    width, height = image.size
    short = min(width, height)
    size = (side, int(side * height / width)) if width == short else (int(side * width / height), side)
    scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return _normalised(_tensor(scaled.crop((left, top, left + side, top + side))))


def padded_pixels(image: Image.Image, side: int = 224, *, antialias: bool = True) -> Tensor:
    """Return a picture as HPSv2 sees it, (3, side, side): the longer side scaled, with black margins.

    HPSv2 scales tensors. Whether that smooths depends on the version of torchvision that its authors had, so both ways
    are offered.

    Args:
        image: the picture.
        side: side of the result in pixels.
        antialias: whether scaling smooths.
    """
    pixels = _tensor(image.convert("RGB"))
    height, width = pixels.shape[1:]
    scale = side / max(height, width)
    if scale == 1.0 and height == width:
        return _normalised(pixels)
    size = (round(height * scale), round(width * scale))
    scaled = F.interpolate(pixels[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    down, right = side - size[0], side - size[1]
    return _normalised(F.pad(scaled, (right // 2, right - right // 2, down // 2, down - down // 2)))


def square_pixels(image: Image.Image, side: int = 224, *, first: int = 256) -> Tensor:
    """Return a picture as DMD2's CLIP score sees it: cut to a square, scaled to `first` pixels, and then as CLIP's."""
    short = min(image.size)
    square = ImageOps.fit(image.convert("RGB"), (short, short), Image.Resampling.BICUBIC)
    return clip_pixels(square.resize((first, first), Image.Resampling.LANCZOS), side)


def squashed_pixels(image: Image.Image, side: int = 224, *, statistics: Statistics = (MEAN, DEVIATION)) -> Tensor:
    """Return a whole picture squashed to a square, (3, side, side), by Pillow's bicubic scaling, which smooths."""
    return _normalised(_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)), statistics)


def merged_patches(
    image: Image.Image, *, area: int, patch: int = 14, merge: int = 2, frames: int = 2
) -> tuple[Tensor, tuple[int, int]]:
    """Return a picture as Qwen2-VL sees it: its patches (n, 3 * frames * patch * patch), and their rows and columns.

    The picture is scaled to an area, keeping its shape as far as the sizes of patches allow. Patches that the network
    merges follow each other, and a picture counts as a clip in which all frames are the same.

    Args:
        image: the picture.
        area: the area in pixels.
        patch: side of a patch in pixels.
        merge: number of patches that are merged in each direction.
        frames: number of frames.

    Raises:
        RMDError: one side is more than 200 times the other.
    """
    height, width = _sides(image.height, image.width, area, patch * merge)
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // patch, width // patch
    grid = _normalised(_tensor(scaled)).reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    patches = grid.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 1, patch, patch).expand(-1, -1, frames, -1, -1)
    return patches.flatten(1), (rows, columns)


def _sides(height: int, width: int, area: int, unit: int) -> tuple[int, int]:
    """Return the nearest multiples of a unit with about an area: at most it for large pictures, else at least it."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise RMDError(f"a picture of {width} x {height} pixels is too narrow for this score: leave it out")
    sides = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if math.prod(sides) > area:
        scale = math.sqrt((height * width) / area)
        sides = [math.floor(side / scale / unit) * unit for side in (height, width)]
    elif math.prod(sides) < area:
        scale = math.sqrt(area / (height * width))
        sides = [math.ceil(side * scale / unit) * unit for side in (height, width)]
    return sides[0], sides[1]


def _tensor(image: Image.Image) -> Tensor:
    """Return a picture as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _normalised(pixels: Tensor, statistics: Statistics = (MEAN, DEVIATION)) -> Tensor:
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return (pixels - mean) / deviation
