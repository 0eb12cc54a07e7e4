"""Video clips as files: MP4 for players, animated WebP and GIF for pages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from diffusers.utils import export_to_video
from PIL import Image

from rmd.errors import RMDError
from rmd.pictures import webp

SUFFIXES = (".mp4", ".webp", ".gif")
"""Of the files that `save_clip` writes."""


def check_suffix(path: Path) -> None:
    """RMDError unless a clip can be written to a file of this name, here."""
    if path.suffix.lower() not in SUFFIXES:
        raise RMDError(f"{path} is no name for a clip: let it end in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4" and (find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None):
        raise RMDError(f"{path}: writing MP4 needs `pip install 'rmd[video]'`; .webp and .gif do not")


def save_clip(frames: Sequence[Image.Image], path: Path, *, fps: int) -> None:
    """Write a clip that plays `fps` frames a second; animated pictures loop for ever.

    WebP is written without loss. MP4 is H.264, whose sides are made multiples of 16; GIF has 256 colours a frame.

    Raises:
        RMDError: no such format, or the packages that write it are not installed; OSError from the disk.
    """
    check_suffix(path)
    if path.suffix.lower() == ".mp4":
        export_to_video(list(frames), str(path), fps=fps, quality=9)
        return
    if path.suffix.lower() == ".webp":
        path.write_bytes(webp(frames, fps=fps))
        return
    first, *rest = frames
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, disposal=2)
