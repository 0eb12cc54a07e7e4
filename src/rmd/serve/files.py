"""Pictures as files: encoded in the format that a request asks for."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from rmd.sample.samplers import Media
from rmd.serve.store import Store

TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4"}
"""Media types by the ends of file names."""


def encode(image: Image.Image, kind: str, quality: int = 100) -> bytes:
    """Return a picture as a file.

    Args:
        image: the picture.
        kind: `png`, `jpeg` or `webp`.
        quality: that of JPEG and WebP, in percent.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {} if kind == "png" else {"quality": quality}
    image.convert("RGB").save(buffer, format=kind.upper(), **options)
    return buffer.getvalue()


def entries(
    pictures: list[Media], seeds: list[int], *, kind: str, quality: int, store: Store | None, base: str
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the `data` of an answer: one entry for each picture, with its seed.

    Args:
        pictures, seeds: the pictures, and the seeds that they were made with.
        kind, quality: as in `encode`.
        store: where pictures are put that the answer gives as addresses; None: it contains the pictures themselves.
        base: beginning of such an address.
    """
    found = []
    for picture, seed in zip(pictures, seeds, strict=True):
        assert isinstance(picture, Image.Image)
        content = encode(picture, kind, quality)
        if store is None:
            found.append({"b64_json": base64.b64encode(content).decode(), "seed": seed})
        else:
            found.append({"url": f"{base}/files/{store.put(content, kind)}", "seed": seed})
    return found
