"""Converts between tensors and pictures, and draws labelled grids of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rmd.common.errors import RMDError

_PAPER = (255, 255, 255)
_INK = (31, 36, 41)
_GAP = 4
"""Pixels between two pictures; four times as many between two grids."""
_TEXT_SIZE = 13
_LINE = 17
_PADDING = 4


def grid_image(images: Tensor, columns: int, scale: int = 1, labels: Sequence[str] | None = None) -> Image.Image:
    """Draw pictures in a grid, each enlarged without smoothing.

    Args:
        images: (n, 3, H, W) uint8.
        columns: number of pictures in a row; the last row may be shorter.
        scale: number of times that a pixel is repeated in each direction.
        labels: one text for each picture, which is written under it and wrapped to its width.

    Raises:
        RMDError: the images have another shape or type, `columns` or `scale` is not positive, or the number of labels
            is another one.
    """
    _check(images, columns, scale)
    count, _, height, width = images.shape
    if labels is not None and len(labels) != count:
        raise RMDError(f"{count} pictures need {count} labels, but there are {len(labels)}")
    columns = min(columns, count)
    height, width = height * scale, width * scale
    texts = [_wrap(label, width) for label in labels or ()]
    bar = _bar_height(max((len(lines) for lines in texts), default=0))
    rows = -(-count // columns)
    canvas = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + bar + _GAP) - _GAP), _PAPER)
    for index, picture in enumerate(images):
        row, column = divmod(index, columns)
        left, top = column * (width + _GAP), row * (height + bar + _GAP)
        canvas.paste(to_image(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if texts:
            _write(canvas, texts[index], left + width / 2, top + height + _PADDING)
    return canvas


def comparison_picture(
    grids: Mapping[str, Tensor], labels: Mapping[str, str], columns: int, scale: int = 2
) -> Image.Image:
    """Draw grids side by side, each under its caption.

    Args:
        grids: (n, 3, H, W) uint8 by name, all of one shape; pictures at the same index belong to the same prompt.
        labels: the caption of each grid, by name.
        columns: number of pictures in a row of each grid.
        scale: enlargement, as in `grid_image`.

    Raises:
        RMDError: there is no grid, the grids differ in shape, or a grid has no label.
    """
    if not grids or len({grid.shape for grid in grids.values()}) > 1:
        raise RMDError("a comparison needs at least one grid, and all grids must have one shape")
    if missing := [name for name in grids if name not in labels]:
        raise RMDError(f"the grid {missing[0]!r} has no label")
    drawn = [grid_image(grid, columns, scale) for grid in grids.values()]
    width, height = drawn[0].size
    captions = [_wrap(labels[name], width) for name in grids]
    bar = _bar_height(max(len(lines) for lines in captions))
    space = 4 * _GAP
    canvas = Image.new("RGB", (len(drawn) * (width + space) - space, height + bar), _PAPER)
    for index, (picture, lines) in enumerate(zip(drawn, captions, strict=True)):
        left = index * (width + space)
        canvas.paste(picture, (left, bar))
        _write(canvas, lines, left + width / 2, bar - _PADDING - _LINE * len(lines))
    return canvas


def label_rows(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Write one label to the left of every row of a grid that `grid_image` drew without labels.

    Args:
        picture: the grid; its rows are as many as the labels.
        labels: one line for each row, from top to bottom.
    """
    font, (width, height) = _font(), picture.size
    margin = max(round(font.getlength(label)) for label in labels) + 2 * _PADDING
    canvas = Image.new("RGB", (margin + width, height), _PAPER)
    canvas.paste(picture, (margin, 0))
    pitch = (height + _GAP) / len(labels)
    for row, label in enumerate(labels):
        middle = row * pitch + (pitch - _GAP) / 2
        ImageDraw.Draw(canvas).text((margin - _PADDING, middle), label, fill=_INK, font=font, anchor="rm")
    return canvas


def to_uint8(images: Tensor, *, low: Literal[-1, 0] = -1) -> Tensor:
    """Convert images of any shape from the range [low, 1] to uint8, clamping and rounding to the nearest value.

    Decoded images are in [-1, 1], the range of VAEs; rendered ones in [0, 1].
    """
    return ((images.clamp(low, 1) - low) * (255 / (1 - low))).round().to(torch.uint8)


def to_image(picture: Tensor) -> Image.Image:
    """Return a (3, H, W) uint8 picture as a PIL image."""
    return Image.fromarray(np.ascontiguousarray(picture.detach().cpu().permute(1, 2, 0).numpy()))


def from_image(image: Image.Image) -> Tensor:
    """Return a PIL image as a float32 picture (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


def png(image: Image.Image) -> bytes:
    """Return the content of a PNG file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def webp(frames: Sequence[Image.Image], *, fps: float) -> bytes:
    """Return the content of a lossless animated WebP file that loops forever."""
    first, *rest = frames
    buffer = io.BytesIO()
    first.save(
        buffer, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, lossless=True
    )
    return buffer.getvalue()


def check_images(images: Tensor, what: str) -> None:
    """Raise RMDError, naming `what`, unless `images` is a batch (n, 3, H, W) of uint8 pictures."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or images.dtype != torch.uint8:
        raise RMDError(f"{what} must be (n, 3, H, W) of uint8, got {tuple(images.shape)} of {str(images.dtype)[6:]}")


def _check(images: Tensor, columns: int, scale: int) -> None:
    check_images(images, "pictures of a grid")
    if columns < 1 or scale < 1:
        raise RMDError(f"a grid needs at least one column and a scale of at least 1, not {columns} and {scale}")


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_SIZE)  # comes with Pillow, so it is the same on every machine


def _wrap(text: str, width: int) -> list[str]:
    """Break a text into lines that fit the width; a word that is too wide gets a line of its own."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _bar_height(lines: int) -> int:
    return lines * _LINE + 2 * _PADDING if lines else 0


def _write(canvas: Image.Image, lines: Sequence[str], centre: float, top: float) -> None:
    draw, font = ImageDraw.Draw(canvas), _font()
    for number, line in enumerate(lines):
        draw.text((centre, top + number * _LINE), line, fill=_INK, font=font, anchor="ma")
