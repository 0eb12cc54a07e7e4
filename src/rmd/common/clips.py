"""Writes and reads video clips: MP4 for players, animated WebP and GIF for web pages."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
from diffusers.utils import export_to_video
from PIL import Image, ImageSequence

from rmd.common.errors import RMDError
from rmd.common.files import replacing
from rmd.common.pictures import webp

SUFFIXES = (".mp4", ".webp", ".gif")
"""Extensions of the files that `save_clip` writes."""
MAX_FPS = {".mp4": 1000, ".webp": 1000, ".gif": 50}
"""Highest frame rate by extension: WebP counts in milliseconds, GIF in hundredths of a second, two at least."""


def check_suffix(path: Path) -> None:
    """Raise RMDError unless the extension of a path is one of `SUFFIXES` and the packages that write it are there."""
    if path.suffix.lower() not in SUFFIXES:
        raise RMDError(f"a clip cannot be written to {path}: give a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4" and (find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None):
        raise RMDError(f"{path}: writing MP4 needs `pip install 'rmd[video]'`; .webp and .gif do not")


def check_fps(suffix: str, fps: int) -> None:
    """Raise RMDError unless files that end in `suffix` can play this many frames per second."""
    if not 1 <= fps <= MAX_FPS[suffix]:
        raise RMDError(f"a {suffix} clip can play at 1 to {MAX_FPS[suffix]} frames per second, not {fps}")


def save_clip(frames: Sequence[Image.Image], path: Path, *, fps: int) -> None:
    """Write a clip atomically; animated pictures loop forever.

    WebP is lossless, MP4 is H.264 with sides rounded to multiples of 16, and GIF has 256 colours per frame.

    Args:
        frames: the frames, all of one size.
        path: a file that ends in one of `SUFFIXES`.
        fps: frames per second.

    Raises:
        RMDError: the format or frame rate is not supported, or the packages that write it are not installed.
        OSError: the disk reports an error.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    check_fps(suffix, fps)
    encode = {".mp4": _mp4, ".webp": webp, ".gif": _gif}[suffix]
    content = encode(frames, fps=fps)
    with replacing(path) as partial:
        partial.write_bytes(content)


@dataclass(frozen=True)
class Clip:
    """The frames of a clip, all of one size, and their number per second."""

    frames: Sequence[Image.Image]
    fps: float


@dataclass(frozen=True)
class ClipShape:
    """The size of a clip in pixels, its number of frames, and their number per second."""

    width: int
    height: int
    frames: int
    fps: float


def read_clip(path: Path) -> Clip:
    """Read a clip of one of `SUFFIXES`.

    Raises:
        RMDError: it is damaged, or the packages that read MP4 are not installed.
    """
    check_suffix(path)
    with _clip_errors(path):
        if path.suffix.lower() == ".mp4":
            return _read_mp4(path)
        with Image.open(path, formats=("WEBP", "GIF")) as image:
            frames, lengths = [], []
            for frame, length in _walk(image):
                frames.append(frame.convert("RGB"))
                lengths.append(length)
            return Clip(frames, _fps(lengths))


def clip_shape(path: Path) -> ClipShape:
    """Return the shape of a clip of one of `SUFFIXES`; that of an MP4 file is what its header says.

    Raises:
        RMDError: it is damaged, or the packages that read MP4 are not installed.
    """
    check_suffix(path)
    with _clip_errors(path):
        if path.suffix.lower() == ".mp4":
            return _mp4_shape(path)
        with Image.open(path, formats=("WEBP", "GIF")) as image:
            lengths = [length for _, length in _walk(image)]
            return ClipShape(*image.size, len(lengths), _fps(lengths))


@contextmanager
def _clip_errors(path: Path) -> Iterator[None]:
    """Turn what the readers of a damaged clip raise into an RMDError."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise RMDError(f"{path} is not a clip, or is damaged: remove it") from error


def copy_mp4(source: Path, target: Path) -> None:
    """Copy an MP4 file without its metadata; its frames are not encoded again.

    Raises:
        RMDError: the file is damaged, or the package that copies it is not installed.
    """
    check_suffix(source)
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [
        get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(source), "-map", "0:v:0", "-c", "copy", "-map_metadata", "-1",
        "-fflags", "+bitexact", "-movflags", "+faststart", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RMDError(f"{source} is not an MP4 clip, or is damaged: remove it")


def _read_mp4(path: Path) -> Clip:
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    frames = [Image.fromarray(np.frombuffer(data, np.uint8).reshape(height, width, 3)) for data in reader]
    if not frames:
        raise ValueError("no frames")
    return Clip(frames, float(about["fps"]))


def _mp4_shape(path: Path) -> ClipShape:
    from imageio_ffmpeg import read_frames

    reader = read_frames(str(path))
    about = next(reader)
    reader.close()
    (width, height), fps = about["size"], float(about["fps"])
    return ClipShape(width, height, round(about["duration"] * fps), fps)


def _fps(lengths: Sequence[float]) -> float:
    """Return the mean number of frames per second, from their lengths in milliseconds."""
    return 1000 / max(fmean(lengths), 1)


def _walk(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    """Yield the frames of an animated picture, and the milliseconds that each is shown."""
    for frame in ImageSequence.Iterator(image):
        frame.load()  # which sets the duration
        yield frame, float(frame.info.get("duration", 100))


def _mp4(frames: Sequence[Image.Image], *, fps: int) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"  # the encoder takes the format from the extension
        export_to_video(list(frames), str(path), fps=fps, quality=9)
        return path.read_bytes()


def _gif(frames: Sequence[Image.Image], *, fps: int) -> bytes:
    first, *rest = frames
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    # Durations are rounded up and down in turn, so that the whole clip has the right length.
    durations = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0, disposal=2)
    return buffer.getvalue()
