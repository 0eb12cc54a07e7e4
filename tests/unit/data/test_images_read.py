"""Pictures are read as a person sees them; a picture that cannot be read is refused by name before a run begins."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_recipe
from PIL import Image, ImageDraw

from rmd.common.errors import RMDError
from rmd.core.plan import Stage
from rmd.data import images as module
from rmd.data.images import ImageFolder, as_seen, load_images

SIZE = Stage(1, 24, 24)


def picture(width: int = 48, height: int = 24) -> Image.Image:
    """Return a red picture with a blue patch at the top left."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 3), (20, 40, 220))
    return image


def save(
    folder: Path, image: Image.Image, name: str = "0.png", caption: str | bytes = "a ball", **options: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **options)
    content = caption.encode() if isinstance(caption, str) else caption
    (folder / name).with_suffix(".txt").write_bytes(content)
    return folder / name


def seen(path: Path) -> torch.Tensor:
    """Return the pixels, from 0 to 255, of the only picture of its folder."""
    return (ImageFolder.read(path.parent).pixels(torch.tensor([0]), SIZE)[0] + 1) * 127.5


@pytest.mark.parametrize("name", ["0.png", "0.jpg", "0.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_data_say(orientation: int, name: str, tmp_path: Path) -> None:
    upright = picture(24, 24)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera that is held so has done
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a", stored, name, exif=exif, quality=100)
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float()
    assert (seen(path) - expected).abs().mean() < 10  # a wrong turn: 28 and more


def test_exif_data_that_nobody_can_read_turn_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture(), "0.jpg", exif=b"Exif\0\0" + bytes(range(40)), quality=100)
    assert (seen(path)[0].mean() - 183).abs() < 30


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_grey_keep_their_range(mode: str, tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 65535, 24).astype(np.uint16), (24, 1))
    image = Image.frombytes("I;16", (24, 24), values.tobytes())
    if mode == "I;16":
        pixels = seen(save(tmp_path / "a", image))
    else:
        other = Image.frombytes(mode, (24, 24), values.astype(np.int32 if mode == "I" else ">u2").tobytes())
        pixels = torch.from_numpy(np.array(as_seen(other))).permute(2, 0, 1).float()
    expected = torch.from_numpy(values.astype(np.float32) / 257)
    torch.testing.assert_close(pixels, expected.expand(3, -1, -1), atol=0.6, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "key", "PA", "webp"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    image = picture(24, 24).convert("RGBA")
    image.putalpha(Image.new("L", (24, 24), 255))
    ImageDraw.Draw(image).rectangle((12, 0, 23, 23), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 12, 11, 23), (0, 0, 0, 128))
    name, options = "0.png", {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = image.quantize(16)
    elif mode == "key":  # one colour that is transparent
        image = Image.new("RGB", (24, 24), (1, 2, 3))
        options["transparency"] = (1, 2, 3)
    elif mode == "webp":
        name, options = "0.webp", {"lossless": True}
    if mode == "PA":
        pixels = torch.from_numpy(np.array(as_seen(image.convert("PA")))).permute(2, 0, 1).float()
    else:
        pixels = seen(save(tmp_path / "a", image, name, **options))
    assert (pixels[:, :, 12:] == 255).all()
    if mode not in ("key", "PA"):
        torch.testing.assert_close(pixels[:, 14:, :10], torch.full((3, 10, 10), 127.0), atol=2, rtol=0)


def test_colours_of_print_and_palettes_are_read(tmp_path: Path) -> None:
    expected = torch.from_numpy(np.array(picture(24, 24))).permute(2, 0, 1).float()
    for number, (image, name) in enumerate(
        [(picture(24, 24).convert("CMYK"), "0.jpg"), (picture(24, 24).quantize(4), "0.png")]
    ):
        assert (seen(save(tmp_path / str(number), image, name)) - expected).abs().mean() < 6
    one_bit = Image.new("1", (24, 24), 1)
    assert (seen(save(tmp_path / "bit", one_bit)) == 255).all()


@pytest.mark.parametrize("name", ["0.png", "0.webp"])
def test_of_an_animation_the_first_frame_is_taken(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 24), colour) for colour in ((10, 200, 10), (200, 10, 10))]
    path = save(tmp_path / "a", frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    torch.testing.assert_close(seen(path).mean((1, 2)), torch.tensor([10.0, 200.0, 10.0]), atol=1, rtol=0)


def test_names_in_capitals_and_files_of_macos(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save(folder, picture(), "IMG_1.PNG")
    (folder / "IMG_1.txt").rename(folder / "IMG_1.TXT")
    for name in ("._IMG_1.PNG", ".hidden.png", "._IMG_1.TXT"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "folder.png").mkdir()
    images = ImageFolder.read(folder)
    assert [path.name for path in images.paths] == ["IMG_1.PNG"] and images.captions == ["a ball"]


@pytest.mark.parametrize("name", ["1.gif", "1.avif", "1.TIFF"])
def test_pictures_of_other_formats_are_not_left_out_unsaid(name: str, tmp_path: Path) -> None:
    save(tmp_path / "a", picture())
    (tmp_path / "a" / name).touch()
    with pytest.raises(RMDError, match=rf"RMD does not read the format of .*{name}: convert it to PNG, or remove it$"):
        ImageFolder.read(tmp_path / "a")


def test_a_format_that_hides_behind_another_name_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture())
    picture().save(path, format="WEBP")  # as browsers save them: this one is read
    ImageFolder.read(path.parent)
    picture().save(path, format="GIF")
    with pytest.raises(RMDError, match=r"0\.png is not a picture, or is damaged: remove it$"):
        ImageFolder.read(path.parent)


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        (b"", "0.txt is empty: write the caption of its picture to it"),
        (b" \n\t\n", "0.txt is empty: write the caption of its picture to it"),
        (b"B\xe4r", "0.txt is not UTF-8 (byte 1): save it as UTF-8 text"),
        ("a ball".encode("utf-16-le"), "0.txt is UTF-16 without its byte-order mark"),
        (b"a\0ball", "0.txt: the caption contains the control character U+0000"),
        (b"x" * 200_000, "0.txt: the caption has 200000 characters"),
        (b"x" * 2_000_000, "0.txt is too large for a caption: at most 1 MB"),
    ],
    ids=range(7),
)
def test_captions_that_are_none_are_named(caption: bytes, sentence: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture(), caption=caption)
    with pytest.raises(RMDError) as caught:
        ImageFolder.read(path.parent)
    assert str(caught.value).startswith(f"data.images: {path.with_suffix('.txt').parent / sentence}")


def test_captions_of_several_lines_are_one_caption(tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture(), caption="\ufeffa ball,\r\non sand\r\n")
    assert ImageFolder.read(path.parent).captions == ["a ball, on sand"]


def png_of_any_size(width: int, height: int) -> bytes:
    """Return the content of a PNG file that claims a size but has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_400, 30_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_name(side: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture())
    path.write_bytes(png_of_any_size(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RMDError, match=r"0\.png .*too large.*: scale it down$|0\.png is not a picture"):
            ImageFolder.read(path.parent)


def test_a_large_picture_that_a_camera_makes_is_welcome(tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture())
    path.write_bytes(png_of_any_size(11_648, 8_736))  # Pillow warns of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ImageFolder.read(path.parent).paths) == 1


@pytest.mark.parametrize("name", ["0.png", "0.jpg", "0.webp"])
def test_a_picture_that_is_cut_short_is_refused_before_a_run(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a", Image.effect_noise((200, 200), 90).convert("RGB"), name)
    whole = path.read_bytes()
    for part in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(RMDError, match=rf"{name} is not a picture, or is damaged"):
            ImageFolder.read(path.parent)
    path.write_bytes(whole + bytes(100_000))  # padding is no damage
    ImageFolder.read(path.parent)


def test_only_headers_and_ends_are_read_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a", picture())
    monkeypatch.setattr(Image.Image, "load", None)
    ImageFolder.read(path.parent)


def test_any_damage_ends_in_one_sentence(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name in ("0.png", "0.jpg", "0.webp"):
        path = save(tmp_path / name[2:], picture(), name, exif=Image.Exif())
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(draw.choice([1, 2, 8])):
                content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(bytes(content))
            try:
                seen(path)
            except RMDError as error:
                assert "\n" not in str(error) and str(path) in str(error)


def test_a_picture_without_damage_is_what_it_was_before(tmp_path: Path) -> None:
    """Plain pictures keep their bits, so that a run that uses them can be resumed."""
    path = save(tmp_path / "a", picture(), "0.png")
    with Image.open(path) as image:
        expected = module.ImageOps.fit(image.convert("RGB"), (24, 24))
    torch.testing.assert_close(seen(path), torch.from_numpy(np.array(expected)).permute(2, 0, 1).float())


def test_pictures_of_phones_that_hold_a_second_one_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a", picture(), "0.jpg")
    picture().save(path, format="MPO", save_all=True, append_images=[picture()])
    assert len(ImageFolder.read(path.parent).paths) == 1


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "pictures", picture())
    recipe = make_recipe(
        "scenes", plan={"sides": [32], "thresholds": []}, crossing={"within": "fresh"},
        method={"name": "dmd2", "tau": "all", "adversarial": 0.1}, data={"images": "~/pictures"},
    )  # fmt: skip
    images = load_images(recipe)
    assert images is not None and images.batch([0])[1] == ["a ball"]
