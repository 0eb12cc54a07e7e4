"""The shelf: addresses by content, a limit in bytes, and the formats of pictures and clips."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rmd.ui import shelf as module
from rmd.ui.shelf import Shelf, is_small


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_picture_keeps_every_pixel_and_its_address() -> None:
    shelf, picture = Shelf(), noise(9, 5)
    address = shelf.show(picture, fps=8)
    assert address == shelf.show(picture.copy(), fps=8) and address.startswith("/shelf/")
    found = shelf.get(address.removeprefix("/shelf/"))
    assert found is not None and found[1] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[0]))), np.asarray(picture))
    assert shelf.get("../secret") is None


def test_clips_are_webp_or_mp4_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, frames = Shelf(), [noise(16, 16, seed) for seed in range(3)]
    small = shelf.show(frames, fps=8)
    content, kind = shelf.get(small.removeprefix("/shelf/")) or (b"", "")
    with Image.open(io.BytesIO(content)) as clip:
        clip.load()  # it knows how long a frame is shown once it has been read
        assert (kind, clip.n_frames, clip.info["duration"]) == ("image/webp", 3, 125)
    monkeypatch.setattr(module, "_LARGE", 1)
    large = shelf.show(frames, fps=8)
    assert large.endswith(".mp4") and (shelf.get(large.removeprefix("/shelf/")) or (b"", ""))[1] == "video/mp4"


def test_the_least_recently_used_is_dropped_beyond_the_limit() -> None:
    shelf = Shelf(limit=25)
    first, second = (shelf.put(bytes([i]) * 10, "png").removeprefix("/shelf/") for i in (1, 2))
    assert shelf.get(first) is not None
    third = shelf.put(b"3" * 10, "png").removeprefix("/shelf/")
    assert [shelf.get(name) is None for name in (first, second, third)] == [False, True, False]
    whole = shelf.put(b"4" * 100, "png").removeprefix("/shelf/")
    assert shelf.get(whole) is not None and shelf.get(third) is None  # one file is kept even if it is larger


def test_small_pictures_are_those_whose_pixels_can_be_seen() -> None:
    assert is_small(noise(64, 256)) and not is_small(noise(64, 257)) and is_small([noise(8, 8)])
