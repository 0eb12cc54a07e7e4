"""The pictures and clips that the page shows, in memory; their addresses are derived from their content."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from rmd.common.clips import save_clip
from rmd.common.pictures import webp
from rmd.sample.samplers import Media

PLACE = "/shelf"
"""The addresses of what is on a shelf begin with this."""
TYPES = {"png": "image/png", "svg": "image/svg+xml", "webp": "image/webp", "mp4": "video/mp4"}
"""Media types by the suffix of an address."""
LIMIT = 256 * 2**20
"""Bytes that a shelf holds; beyond them, what was not asked for longest is dropped."""
SMALL = 256
"""Longest side of pictures that are enlarged without smoothing."""
_LARGE = 8 * 2**20
"""Pixels of all frames above which a clip is an MP4 file, if one can be written: lossless WebP would take minutes."""


def is_small(media: Media) -> bool:
    """Return whether pixels should be seen as they are when a picture or a clip is enlarged."""
    return max((media if isinstance(media, Image.Image) else media[0]).size) <= SMALL


class Shelf:
    """Keeps files in memory under addresses that are derived from their content; usable from several threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        """Create an empty shelf.

        Args:
            limit: number of bytes that it holds.
        """
        self._limit, self._size = limit, 0
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, content: bytes, suffix: str) -> str:
        """Keep a file, and return its address, such as `/shelf/0123456789abcdef.png`.

        Args:
            content: the file.
            suffix: one of `TYPES`.
        """
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
        with self._lock:
            if name not in self._files:
                self._files[name] = content
                self._size += len(content)
            self._files.move_to_end(name)
            while self._size > self._limit and len(self._files) > 1:
                self._size -= len(self._files.popitem(last=False)[1])
        return f"{PLACE}/{name}"

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return a file and its media type by the last part of its address; None if it is not, or no longer, here."""
        with self._lock:
            content = self._files.get(name)
            if content is None:
                return None
            self._files.move_to_end(name)
        return content, TYPES[name.rpartition(".")[2]]

    def show(self, media: Media, *, fps: int) -> str:
        """Keep a picture, or the frames of a clip that plays at `fps` frames per second, and return its address."""
        if isinstance(media, Image.Image):
            buffer = io.BytesIO()
            media.save(buffer, format="PNG", compress_level=3)
            return self.put(buffer.getvalue(), "png")
        width, height = media[0].size
        if width * height * len(media) > _LARGE and find_spec("imageio_ffmpeg") is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip.mp4"
                save_clip(media, path, fps=fps)
                return self.put(path.read_bytes(), "mp4")
        return self.put(webp(media, fps=fps), "webp")
