"""Writes rendered scenes as PNG files and clips as WebP files, with their captions and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rmd.common.clips import save_clip
from rmd.common.files import new_folder, replacing
from rmd.common.pictures import grid_image, to_image
from rmd.worlds.batch import Batch

FPS = 8
"""Frames per second at which clips are played."""


def write_samples(
    batch: Batch, samples: Tensor, names: Sequence[str], folder: Path, *, sheet: int, width: int
) -> Path:  # fmt: skip
    """Write `0000.png` or `0000.webp` ..., `captions.jsonl` and a contact sheet into a new folder.

    Args:
        batch: what was rendered.
        samples: pictures (n, 3, H, W) or clips (n, 3, T, H, W), uint8.
        names: the names of the attributes.
        folder: the folder, which must be new or empty.
        sheet: largest number of samples on the contact sheet.
        width: width in pixels to which small samples are enlarged on it.

    Returns:
        The path of the contact sheet.

    Raises:
        RMDError: the folder is not empty, or cannot be written to.
    """
    suffix = "png" if samples.ndim == 4 else "webp"
    lines = []
    with new_folder(folder) as partial:
        partial.mkdir(parents=True)
        for index, (sample, caption, values) in enumerate(
            zip(samples, batch.captions, batch.attributes.tolist(), strict=True)
        ):
            name = f"{index:04d}.{suffix}"
            if sample.ndim == 3:
                to_image(sample).save(partial / name)
            else:
                save_clip([to_image(frame) for frame in sample.unbind(1)], partial / name, fps=FPS)
            named = dict(zip(names, values, strict=True))
            lines.append(json.dumps({"file": name, "caption": caption, "attributes": named}) + "\n")
        (partial / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
        scale = max(1, width // samples.shape[-1])
        save_grid(samples[:sheet], batch.captions[:sheet], partial / f"sheet.{suffix}", scale=scale)
    return folder / f"sheet.{suffix}"


def save_grid(samples: Tensor, labels: Sequence[str], path: Path, *, scale: int) -> None:
    """Write samples (uint8) as one grid of labelled pictures, or as one of clips in which all play at once."""
    if samples.ndim == 4:
        with replacing(path) as partial:
            grid_image(samples, columns=8, scale=scale, labels=labels).save(partial, "PNG")
    else:
        frames = [grid_image(frame, columns=8, scale=scale, labels=labels) for frame in samples.unbind(2)]
        save_clip(frames, path, fps=FPS)
