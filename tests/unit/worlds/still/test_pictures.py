"""The files of rendered scenes: pictures, captions and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmd.common.errors import RMDError
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, parse
from rmd.worlds.still.pictures import draw_scenes, write_scenes


def test_files_of_a_folder(tmp_path: Path) -> None:
    folder = write_scenes(draw_scenes(3, seed=4), tmp_path / "a" / "b", size=32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "0000.png", "0001.png", "0002.png", "captions.jsonl", "sheet.png"
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = make_scenes(3, seed=4, training=False, size=32)
    for index, row in enumerate(rows):
        picture = np.asarray(Image.open(folder / row["file"]))
        assert np.array_equal(picture, expected.images[index].permute(1, 2, 0).numpy())
        assert row["caption"] == expected.captions[index]
        scene = parse(row["caption"])
        assert scene is not None
        assert row["attributes"] == dict(zip(ATTRIBUTE_NAMES, scene.to_tuple(), strict=True))
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width >= 3 * 160 and sheet.height > 160


def test_the_sheet_is_limited(tmp_path: Path) -> None:
    folder = write_scenes(draw_scenes(70, seed=0), tmp_path / "it", size=8)
    assert len(list(folder.glob("0*.png"))) == 70
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height < 9 * 300


def test_scenes_of_one_caption() -> None:
    scenes = draw_scenes(3, seed=1, text="a red plain box below a blue dotted star, at night")
    assert set(scenes.captions) == {"a blue dotted star above a red plain box, at night"}
    assert len(scenes.uniform.unique(dim=0)) == 3


def test_a_foreign_caption() -> None:
    with pytest.raises(RMDError, match="'a cat' is not a caption of the scenes: word it like ") as raised:
        draw_scenes(1, seed=0, text="a cat")
    examples = str(raised.value).split("'")[3::2]
    assert len(examples) == 2 and all(parse(text) is not None for text in examples)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_not_touched(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "it"
    if kind == "folder":
        target.mkdir()
    kept = target / "mine" if kind == "folder" else target
    kept.write_text("mine", encoding="utf-8")
    with pytest.raises(RMDError, match="exists and is not an empty folder: choose another --out"):
        write_scenes(draw_scenes(1, seed=0), target)
    assert kept.read_text(encoding="utf-8") == "mine" and len(list(tmp_path.rglob("*"))) == 1 + (kind == "folder")
