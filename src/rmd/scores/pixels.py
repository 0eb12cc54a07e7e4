"""Prepares pictures for networks: sizes, crops and margins are exactly those of the published scores."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's statistics of pictures, by which CLIP's pixels are normalised."""
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels."""


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


def _tensor(image: Image.Image) -> Tensor:
    """Return a picture as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def _normalised(pixels: Tensor, statistics: Statistics = (MEAN, DEVIATION)) -> Tensor:
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return (pixels - mean) / deviation
