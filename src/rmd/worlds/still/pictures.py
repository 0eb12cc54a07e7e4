"""Scenes as files: a PNG each, their captions, and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rmd.common.errors import RMDError
from rmd.common.files import check_new_folder, new_folder
from rmd.common.pictures import grid_image, to_image, to_uint8
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, Attributes, parse
from rmd.worlds.still.render import SceneBatch, render, sample_scenes, scenes_of

SHEET_NAME = "sheet.png"
SHEET_LIMIT = 64
"""Scenes on the contact sheet at most: a sheet of thousands could not be looked at."""
_EXAMPLES = "'a big red striped ball on the left, on sand' or 'a red plain box above a blue dotted star, at night'"


def draw_scenes(count: int, *, seed: int, text: str | None = None) -> SceneBatch:
    """`count` scenes of a seed: any of the grammar, or all of one caption.

    Raises:
        RMDError: the text is not a caption of the grammar.
    """
    if text is None:
        return sample_scenes(range(count), seed=seed, training=False)
    return scenes_of([attributes_of(text)] * count, seed=seed)


def attributes_of(text: str) -> Attributes:
    """What a caption names; RMDError, with an example, when it is not of the grammar."""
    found = parse(text)
    if found is None:
        raise RMDError(f"{text!r} is not a caption of the scenes: word it like {_EXAMPLES}")
    return found


def write_scenes(scenes: SceneBatch, folder: Path, *, size: int = 64) -> Path:
    """Write `0000.png` ..., `captions.jsonl` and `sheet.png` into `folder`, which must be new or empty.

    Raises:
        RMDError: the folder holds something, or cannot be written.
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


def _lines(names: Sequence[str], scenes: SceneBatch) -> list[str]:
    named = [dict(zip(ATTRIBUTE_NAMES, row, strict=True)) for row in scenes.attributes.tolist()]
    rows = zip(names, scenes.captions, named, strict=True)
    return [json.dumps({"file": f, "caption": c, "attributes": a}) + "\n" for f, c, a in rows]
