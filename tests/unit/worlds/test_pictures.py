"""The files of rendered scenes: pictures, captions and the contact sheet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmd.common.errors import RMDError
from rmd.worlds.moving.grammar import parse_clip
from rmd.worlds.registry import WORLDS
from rmd.worlds.still.dataset import make_scenes
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, parse


def draw(count: int, folder: Path, *, seed: int = 0, size: int, text: str | None = None) -> Path:
    return WORLDS.get("scenes").draw(count, seed=seed, text=text, folder=folder, size=size).parent


def test_files_of_a_folder(tmp_path: Path) -> None:
    folder = draw(3, tmp_path / "a" / "b", seed=4, size=32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "0000.png", "0001.png", "0002.png", "captions.jsonl", "sheet.png"
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = make_scenes(3, seed=4, training=False, size=32)
    for index, row in enumerate(rows):
        picture = np.asarray(Image.open(folder / row["file"]))
        assert np.array_equal(picture, expected.images[index].permute(1, 2, 0).numpy())
        assert row["caption"] == expected.captions[index]
        named = parse(row["caption"])
        assert named is not None
        assert row["attributes"] == dict(zip(ATTRIBUTE_NAMES, named.to_tuple(), strict=True))
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width >= 3 * 160 and sheet.height > 160


def test_the_sheet_is_limited(tmp_path: Path) -> None:
    folder = draw(70, tmp_path / "it", size=8)
    assert len(list(folder.glob("0*.png"))) == 70
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.height < 9 * 300


def test_scenes_of_one_caption(tmp_path: Path) -> None:
    folder = draw(3, tmp_path / "it", size=8, text="a red plain box below a blue dotted star, at night")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["caption"] for row in rows} == {"a blue dotted star above a red plain box, at night"}
    assert len({(folder / row["file"]).read_bytes() for row in rows}) == 3


@pytest.mark.parametrize(("name", "parses"), [("scenes", parse), ("moving-scenes", parse_clip)])
def test_a_foreign_caption(name: str, parses: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"'a cat' is not a caption of the .*scenes: word it like ") as raised:
        WORLDS.get(name).draw(1, seed=0, text="a cat", folder=tmp_path / "it", size=8)
    examples = str(raised.value).split("'")[3::2]
    assert len(examples) == 2 and all(parses(text) is not None for text in examples)


@pytest.mark.parametrize("name", ["scenes", "moving-scenes"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_is_not_touched(kind: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "it"
    if kind == "folder":
        target.mkdir()
    kept = target / "mine" if kind == "folder" else target
    kept.write_text("mine", encoding="utf-8")
    with pytest.raises(RMDError, match="exists and is not an empty folder: choose another --out"):
        WORLDS.get(name).draw(1, seed=0, text=None, folder=target, size=8)
    assert kept.read_text(encoding="utf-8") == "mine" and len(list(tmp_path.rglob("*"))) == 1 + (kind == "folder")
