"""The kinds of samples that are scored, pictures and clips: how they are read, and the shape that a result's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from rmd.common import clips
from rmd.common.errors import RMDError
from rmd.data.images import SUFFIXES, as_seen, opened

_TURNED = (5, 6, 7, 8)
"""Orientations of EXIF with which a picture is shown with its sides exchanged."""


@dataclass(frozen=True)
class Shape:
    """The size in pixels and the format of a sample; of a clip, also its number of frames, and theirs per second."""

    width: int
    height: int
    image_format: str
    frames: int | None = None
    fps: float | None = None

    def __str__(self) -> str:
        length = "" if self.frames is None else f", {self.frames} frames at {self.fps:g} per second"
        return f"{self.width} x {self.height} pixels{length} in {self.image_format.upper()}"


@dataclass(frozen=True)
class Kind:
    """A kind of samples.

    Attributes:
        noun: what messages call them.
        suffixes: what their names end in.
        shape: returns the shape of a file.
        read: reads a file, as metrics of this kind take it.
    """

    noun: str
    suffixes: tuple[str, ...]
    shape: Callable[[Path], Shape]
    read: Callable[[Path], Any]


def common_shape(paths: Sequence[Path], kind: Kind) -> Shape:
    """Return the shape that all samples share.

    Raises:
        RMDError: two of them differ, or one is damaged.
    """
    shapes: dict[Shape, Path] = {}
    for path in paths:
        shapes.setdefault(kind.shape(path), path)
    if len(shapes) > 1:
        (first, one), (second, two) = list(shapes.items())[:2]
        raise RMDError(f"{kind.noun} of one result have one size and format: {one} has {first}, and {two} has {second}")
    return next(iter(shapes))


def _picture_shape(path: Path) -> Shape:
    with opened(path, "pictures") as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
            width, height = height, width
        return Shape(width, height, (image.format or "").lower())


def _picture(path: Path) -> Image.Image:
    with opened(path, "pictures") as image:
        return as_seen(image)


def _clip_shape(path: Path) -> Shape:
    found = clips.clip_shape(path)
    suffix = path.suffix.lower().removeprefix(".")
    return Shape(found.width, found.height, suffix, found.frames, round(found.fps, 3))


PICTURES = Kind("pictures", SUFFIXES, _picture_shape, _picture)
CLIPS = Kind("clips", clips.SUFFIXES, _clip_shape, clips.read_clip)
