"""Writes scenes as PNG files with their captions and a contact sheet, and samples as strips of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rmd.common.files import check_new_folder, new_folder, replacing
from rmd.common.pictures import grid_image, to_image, to_uint8
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, attributes_of
from rmd.worlds.still.render import SceneBatch, render, sample_scenes, scenes_of

SHEET_NAME = "sheet.png"
SHEET_LIMIT = 64
"""Largest number of scenes on the contact sheet."""


def draw_scenes(count: int, *, seed: int, text: str | None = None) -> SceneBatch:
    """Draw `count` scenes from a seed, with any caption or all with the given one.

    Raises:
        RMDError: the text does not follow the grammar.
    """
    if text is None:
        return sample_scenes(range(count), seed=seed, training=False)
    return scenes_of([attributes_of(text)] * count, seed=seed)


def write_scenes(scenes: SceneBatch, folder: Path, *, size: int = 64) -> Path:
    """Write `0000.png` ..., `captions.jsonl` and `sheet.png` into `folder`, which must be new or empty.

    Raises:
        RMDError: the folder is not empty, or cannot be written to.
    """
    check_new_folder(folder)
    images = to_uint8(render(scenes, size, chunk=max(1, 64 * 64**2 // size**2)), low=0)
    names = [f"{index:04d}.png" for index in range(len(scenes))]
    with new_folder(folder) as partial:
        partial.mkdir(parents=True)
        for name, image in zip(names, images, strict=True):
            to_image(image).save(partial / name)
        (partial / "captions.jsonl").write_text("".join(_lines(names, scenes)), encoding="utf-8")
        shown = min(len(scenes), SHEET_LIMIT)
        labels = scenes.captions[:shown]
        grid_image(images[:shown], columns=8, scale=max(1, 160 // size), labels=labels).save(partial / SHEET_NAME)
    return folder


def save_strips(grids: Mapping[str, Tensor], folder: Path) -> None:
    """Write pictures (n, 3, H, W) uint8 side by side at their own size, one PNG file per name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in grids.items():
        strip = torch.cat(list(images), dim=2).permute(1, 2, 0)
        with replacing(folder / f"{name}.png") as partial:
            Image.fromarray(strip.numpy()).save(partial, "PNG")


def _lines(names: Sequence[str], scenes: SceneBatch) -> list[str]:
    named = [dict(zip(ATTRIBUTE_NAMES, row, strict=True)) for row in scenes.attributes.tolist()]
    rows = zip(names, scenes.captions, named, strict=True)
    return [json.dumps({"file": f, "caption": c, "attributes": a}) + "\n" for f, c, a in rows]
