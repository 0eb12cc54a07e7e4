"""Clip files contain every frame at its time; what cannot be written is refused before it is computed."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from rmd.common import clips
from rmd.common.clips import check_fps, check_suffix, save_clip
from rmd.common.errors import RMDError


def frames(count: int = 5) -> list[Image.Image]:
    ramp = np.add.outer(np.arange(32), np.arange(48)) * 2
    return [Image.fromarray(np.stack([ramp, ramp, ramp + 20 * i], -1).astype(np.uint8)) for i in range(count)]


@pytest.mark.parametrize("name", ["clip.webp", "clip.GIF"])
def test_animated_pictures_hold_every_frame_and_loop(name: str, tmp_path: Path) -> None:
    save_clip(frames(), tmp_path / name, fps=8)
    with Image.open(tmp_path / name) as clip:
        assert clip.n_frames == 5 and clip.info["loop"] == 0
        for index, expected in enumerate(frames()):
            clip.seek(index)
            difference = np.asarray(clip.convert("RGB")).astype(int) - np.asarray(expected).astype(int)
            assert clip.info["duration"] == pytest.approx(125, abs=5)
            assert np.abs(difference).max() <= (0 if name.endswith("webp") else 24)


def test_mp4_plays_as_long_as_it_should(tmp_path: Path) -> None:
    save_clip(frames(8), tmp_path / "clip.mp4", fps=8)
    clip = iio.imread(tmp_path / "clip.mp4", plugin="FFMPEG")
    assert clip.shape == (8, 32, 48, 3)
    assert np.abs(clip[3].astype(int) - np.asarray(frames(8)[3]).astype(int)).mean() < 6
    assert iio.immeta(tmp_path / "clip.mp4", plugin="FFMPEG")["fps"] == 8


def test_what_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RMDError, match=r"^a clip cannot be written to x\.avi: give a name that ends in \.mp4, "):
        check_suffix(Path("x.avi"))
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    with pytest.raises(RMDError, match=r"^x\.mp4: writing MP4 needs `pip install 'rmd\[video\]'`"):
        check_suffix(Path("x.mp4"))
    check_suffix(Path("x.webp"))


@pytest.mark.parametrize("fps", [3, 7, 24, 30, 50])
def test_a_gif_lasts_as_long_as_it_should_though_it_counts_hundredths_of_a_second(fps: int, tmp_path: Path) -> None:
    save_clip(frames(20), tmp_path / "clip.gif", fps=fps)
    with Image.open(tmp_path / "clip.gif") as clip:
        total = 0
        for index in range(clip.n_frames):
            clip.seek(index)
            total += clip.info["duration"]
    assert clip.n_frames == 20 and total == pytest.approx(20_000 / fps, abs=5)


@pytest.mark.parametrize(("suffix", "fps", "most"), [(".gif", 51, 50), (".webp", 10**9, 1000), (".mp4", 0, 1000)])
def test_a_speed_that_no_clip_has(suffix: str, fps: int, most: int, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=rf"^a {suffix} clip can play at 1 to {most} frames per second, not {fps}$"):
        check_fps(suffix, fps)
    with pytest.raises(RMDError, match="frames per second"):
        save_clip(frames(2), tmp_path / f"clip{suffix}", fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip.webp", "clip.gif", "clip.mp4"])
def test_a_clip_is_written_whole(name: str, tmp_path: Path) -> None:
    save_clip(frames(3), tmp_path / name, fps=8)
    first = (tmp_path / name).read_bytes()
    save_clip(frames(3), tmp_path / name, fps=8)
    assert (tmp_path / name).read_bytes() == first and [path.name for path in tmp_path.iterdir()] == [name]
