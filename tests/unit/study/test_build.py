"""A study's folder: what matches what, and nothing in it that tells systems apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence
from studies import albums, picture, small_study

from rmd.common.clips import read_clip, save_clip
from rmd.common.errors import RMDError
from rmd.study.build import build_study
from rmd.study.folder import open_study
from rmd.study.sources import find_items


def test_the_design_names_no_system_and_the_key_does(tmp_path: Path) -> None:
    study = small_study(tmp_path, "alpha", "beta")
    text = (study.folder / "study.json").read_text(encoding="utf-8")
    assert "alpha" not in text and "beta" not in text and str(tmp_path) not in text
    key = study.key()
    assert sorted(key.systems) == ["alpha", "beta"]
    for files, sources in zip(study.design.files, key.sources, strict=True):
        for name, source, system in zip(files, sources, key.systems, strict=True):
            assert Path(source).parent.name == system
            with Image.open(study.media / name) as copy, Image.open(source) as original:
                assert copy.tobytes() == original.tobytes()


def test_files_differ_in_their_pixels_alone(tmp_path: Path) -> None:
    study = small_study(tmp_path, "alpha", "beta")
    times = set()
    for path in study.media.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.size, image.info) == ("PNG", (16, 16), {})
        assert len(path.stem) == 24 and path.suffix == ".png"
        times.add(path.stat().st_mtime)
    assert len(times) == 1
    assert sorted(path.name for path in study.folder.iterdir()) == ["key.json", "media", "study.json"]


def test_a_spoilt_picture_is_made_of_blocks(tmp_path: Path) -> None:
    sources = albums(tmp_path, "a", "b")
    for index in range(6):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "a" / f"{index:05d}-00-x.png")
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "b" / f"{index:05d}-00-x.png")
    (tmp_path / "prompts.txt").write_text("\n".join(f"p{i}" for i in range(6)), encoding="utf-8")
    build_study(sources, tmp_path / "study", prompts=str(tmp_path / "prompts.txt"), tasks=6)
    study = open_study(tmp_path / "study")
    with Image.open(study.media / study.design.checks[0][1]) as spoilt:
        assert len(spoilt.getcolors(64 * 64) or ()) <= 64
    assert study.design.prompts == tuple(f"p{i}" for i in range(6))


def test_the_same_seed_gives_the_same_study(tmp_path: Path) -> None:
    sources = albums(tmp_path, "a", "b", "c")
    one, two = (build_study(sources, tmp_path / name, seed=4, against="c") for name in ("one", "two"))
    assert one == two and len(one.pairs) == 2
    assert build_study(sources, tmp_path / "three", seed=5) != one


def test_samples_are_matched_by_prompt_and_seed_and_the_lowest_seed_is_used(tmp_path: Path) -> None:
    for system in ("a", "b"):
        for seed in (5, 3, 4):
            picture(tmp_path / system / f"{system}{seed}.png", (seed, 0, 0), prompt="a cat", seed=seed)
        picture(tmp_path / system / "x-teacher.png", (9, 9, 9), prompt="a cat", seed=3)
        picture(tmp_path / system / "x-stage1.png", (9, 9, 9), prompt="a cat", seed=3)
    media, (item,) = find_items([("a", str(tmp_path / "a")), ("b", str(tmp_path / "b"))], prompts=None)
    assert media == "pictures" and item.prompt == "a cat"
    assert [path.name for path in item.files] == ["a3.png", "b3.png"]
    _, (beside,) = find_items(
        [("student", str(tmp_path / "a" / "a3.png")), ("teacher", str(tmp_path / "a" / "*-teacher.png"))], prompts=None
    )
    assert [path.name for path in beside.files] == ["a3.png", "x-teacher.png"]


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_clips_keep_their_frames_and_lose_their_metadata(suffix: str, tmp_path: Path) -> None:
    for number, system in enumerate(("a", "b")):
        for index in range(2):
            (tmp_path / system).mkdir(exist_ok=True)
            frames = [Image.new("RGB", (32, 32), (80 * number, 60 * frame, 99)) for frame in range(4)]
            save_clip(frames, tmp_path / system / f"{index}{suffix}", fps=8)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
    sources = [(system, str(tmp_path / system)) for system in ("a", "b")]
    design = build_study(sources, tmp_path / "study", prompts=str(tmp_path / "prompts.txt"), tasks=2, checks=1)
    assert design.media == "clips" and len(design.checks) == 2
    study = open_study(tmp_path / "study")
    key = study.key()
    copy, original = study.media / design.files[0][0], Path(key.sources[0][0])
    assert copy.suffix == (".mp4" if suffix == ".mp4" else ".webp")
    ours, theirs = read_clip(copy), read_clip(original)
    assert [frame.tobytes() for frame in ours.frames] == [frame.tobytes() for frame in theirs.frames]
    assert ours.fps == pytest.approx(theirs.fps, rel=0.02)
    assert b"Lavc" not in original.read_bytes() or b"encoder" not in copy.read_bytes()[-400:]
    spoilt = read_clip(study.media / design.checks[0][1])
    assert len(spoilt.frames) == 4


def test_a_webp_picture_that_does_not_move_is_a_picture(tmp_path: Path) -> None:
    for system in ("a", "b"):
        (tmp_path / system).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / system / "0.webp", lossless=True)
    (tmp_path / "p.txt").write_text("one\n", encoding="utf-8")
    sources = [(system, str(tmp_path / system)) for system in ("a", "b")]
    assert build_study(sources, tmp_path / "s", prompts=str(tmp_path / "p.txt"), tasks=1).media == "pictures"


def wrong_cases(root: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Return arguments of `build_study` by case, and the beginning of the error."""
    a, b = albums(root, "a", "b", prompts=3)
    picture(root / "big" / "0.png", (0, 0, 0), prompt="prompt 0", seed=0, side=20)
    picture(root / "one" / "0.png", (0, 0, 0), prompt="prompt 0", seed=0)
    picture(root / "plain" / "0.png", (0, 0, 0))
    picture(root / "plain2" / "0.png", (0, 0, 0))
    (root / "jpg").mkdir()
    Image.new("RGB", (16, 16)).save(root / "jpg" / "0.jpg")
    (root / "broken").mkdir()
    (root / "broken" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n but no picture")
    (root / "empty").mkdir()
    (root / "two.txt").write_text("one\ntwo\n", encoding="utf-8")
    place = {name: (name, str(root / name)) for name in ("big", "one", "plain", "plain2", "jpg", "broken", "empty")}
    return {
        "one system": ({"sources": [a]}, "a study compares two or more systems with names of their own: "),
        "one name": ({"sources": [a, ("a", b[1])]}, "a study compares two or more systems with names"),
        "nothing": ({"sources": [a, place["empty"]]}, "there are no samples (.png, .jpg, "),
        "formats": ({"sources": [a, place["jpg"]]}, "raters could tell systems by the formats of their files (a has "),
        "sizes": ({"sources": [place["one"], place["big"]]}, "raters could tell systems by their sizes: "),
        "other samples": (
            {"sources": [a, place["one"]]},
            "a and one do not have the same samples: only one has 'prompt 1' with seed 1",
        ),
        "other names": (
            {"sources": [place["plain"], b]},
            "plain and b do not have files of the same names: only one has ",
        ),
        "no prompts": (
            {"sources": [place["plain"], place["plain2"]]}, "these files do not say what their prompts are: "
        ),
        "other prompts": (
            {"sources": [place["plain"], place["plain2"]], "prompts": str(root / "two.txt")},
            f"{root / 'two.txt'} has 2 prompts for 1 files: it needs one for each",
        ),
        "damaged": ({"sources": [place["one"], place["broken"]]}, f"{root / 'broken' / '0.png'} is not a picture"),
        "unknown": ({"sources": [a, b], "against": "c"}, "--against c is none of the systems "),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "one system", "one name", "nothing", "formats", "sizes", "other samples", "other names", "no prompts",
        "other prompts", "damaged", "unknown",
    ],
)  # fmt: skip
def test_one_sentence_and_nothing_half_written(case: str, tmp_path: Path) -> None:
    arguments, sentence = wrong_cases(tmp_path)[case]
    with pytest.raises(RMDError) as error:
        build_study(out=tmp_path / "study", **arguments)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if "study" in path.name]


def test_a_study_that_lacks_files_is_not_opened(tmp_path: Path) -> None:
    study = small_study(tmp_path, "a", "b")
    (study.media / study.design.files[2][1]).unlink()
    with pytest.raises(RMDError, match=r"media lacks 1 of 24 files, such as .*: build the study again"):
        open_study(study.folder)
    with pytest.raises(RMDError, match=r"has no study\.json: build a study with `rmd study build`"):
        open_study(tmp_path)
    (study.folder / "key.json").write_text(json.dumps({"systems": ["a"], "sources": [], "most_missed": 0.5}))
    with pytest.raises(RMDError, match=r"key\.json does not name the systems of this study: restore the file"):
        study.key()


def test_frames_are_read_in_their_order(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200, 90)]
    save_clip(frames, tmp_path / "x.webp", fps=5)
    clip = read_clip(tmp_path / "x.webp")
    assert [frame.getpixel((0, 0)) for frame in clip.frames] == [(10, 0, 0), (200, 0, 0), (90, 0, 0)]
    assert clip.fps == 5
    with Image.open(tmp_path / "x.webp") as image:
        assert len(list(ImageSequence.Iterator(image))) == 3
    (tmp_path / "y.mp4").write_bytes(b"no clip")
    for name in ("y.mp4", "z.webp"):
        with pytest.raises(RMDError, match=r"is not a clip, or is damaged: remove it$"):
            read_clip(tmp_path / name)
