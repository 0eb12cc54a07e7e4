"""Writes moving scenes as animated WebP files with captions and a contact sheet, and samples as animated grids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rmd.common.clips import save_clip
from rmd.common.errors import RMDError
from rmd.common.files import check_new_folder, new_folder
from rmd.common.pictures import comparison_picture, grid_image, to_image, to_uint8
from rmd.worlds.moving.grammar import CLIP_ATTRIBUTES, clip_attributes_of
from rmd.worlds.moving.path import FPS
from rmd.worlds.moving.render import ClipBatch, clips_of, render_clips, sample_clips

SHEET = "sheet.webp"
SHEET_LIMIT = 32
"""Largest number of clips on the contact sheet."""
COMPARED = 8
"""Number of captions in the animation that shows all samplers side by side."""


def draw_clips(count: int, *, seed: int, text: str | None = None) -> ClipBatch:
    """Draw `count` clips from a seed, with any caption or all with the given one.

    Raises:
        RMDError: the text does not follow the grammar.
    """
    if text is None:
        return sample_clips(range(count), seed=seed, training=False)
    return clips_of([clip_attributes_of(text)] * count, seed=seed)


def write_clips(clips: ClipBatch, folder: Path, *, size: int = 64) -> Path:
    """Write `0000.webp` ..., `captions.jsonl` and `sheet.webp` into `folder`, which must be new or empty.

    Raises:
        RMDError: the folder is not empty, or cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RMDError(f"{folder} exists and is not an empty folder: choose another --out")
    check_new_folder(folder)
    videos = to_uint8(render_clips(clips, size, chunk=max(1, 32 * 64**2 // size**2)), low=0)
    names = [f"{index:04d}.webp" for index in range(len(clips))]
    lines = []
    with new_folder(folder) as partial:
        partial.mkdir(parents=True)
        for name, video, text, values in zip(names, videos, clips.captions, clips.attributes.tolist(), strict=True):
            save_clip([to_image(frame) for frame in video.unbind(1)], partial / name, fps=FPS)
            named = dict(zip(CLIP_ATTRIBUTES, values, strict=True))
            lines.append(json.dumps({"file": name, "caption": text, "attributes": named}) + "\n")
        (partial / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
        shown = min(len(clips), SHEET_LIMIT)
        save_sheet(videos[:shown], clips.captions[:shown], partial / SHEET, scale=max(1, 128 // size))
    return folder


def save_sheet(videos: Tensor, labels: Sequence[str], path: Path, *, columns: int = 8, scale: int = 2) -> None:
    """Write clips (n, 3, T, H, W) uint8 as one animated grid, in which all play at once."""
    frames = [grid_image(frame, columns, scale=scale, labels=labels) for frame in videos.unbind(2)]
    save_clip(frames, path, fps=FPS)


def save_comparison(videos: Mapping[str, Tensor], labels: Mapping[str, str], path: Path, *, columns: int = 2) -> None:
    """Write named grids of clips (n, 3, T, H, W) uint8 side by side as one animation; see `comparison_picture`."""
    times = range(next(iter(videos.values())).shape[2])
    frames = [
        comparison_picture({name: grid[:, :, time] for name, grid in videos.items()}, labels, columns) for time in times
    ]
    save_clip(frames, path, fps=FPS)


def save_sheets(grids: Mapping[str, Tensor], labels: Mapping[str, str], prompts: Sequence[str], folder: Path) -> None:
    """Write the clips of each sampler, (n, 3, T, H, W) uint8 by name, as an animated grid, and all side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, videos in grids.items():
        save_sheet(videos, prompts, folder / f"{name}.webp")
    save_comparison({name: grid[:COMPARED] for name, grid in grids.items()}, labels, folder / "comparison.webp")
