"""Tar archives: made on a Mac, compressed, truncated, damaged, or malicious; their members are only read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.data import formats
from rmd.data.formats import read_members
from rmd.data.prompts import read_source
from rmd.recipes.schema import DataConfig

MAC = b"\0\5\x16\7\0\2\0\0Mac OS X\xa3\xb0"


def packed(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shard(folder: Path, *members: tuple[str, bytes], name: str = "x.tar") -> Path:
    (folder / name).write_bytes(packed(*members))
    return folder / name


def texts(path: Path, column: str | None = None) -> list[str]:
    return read_source(DataConfig(prompts=str(path), column=column)).texts


@pytest.mark.parametrize("suffix", ["txt", "caption", "TXT", "json"])
def test_files_that_macos_adds_and_hidden_ones_are_skipped(suffix: str, tmp_path: Path) -> None:
    caption = b'{"caption": "a cat"}' if suffix == "json" else b"a cat"
    path = shard(
        tmp_path,
        (f"./._000.{suffix}", MAC),
        (f"./000.{suffix}", caption),
        (f"__MACOSX/000.{suffix}", MAC),
        (f"a/.hidden/000.{suffix}", MAC),
        (f".000.{suffix}", MAC),
    )
    assert texts(path) == ["a cat"]


def test_captions_of_json_members_are_found_without_a_column(tmp_path: Path) -> None:
    path = shard(tmp_path, ("000.json", b'{"caption": "a cat"}'), ("000.jpg", b"\xff"), ("001.json", b'"a dog"'))
    assert texts(path) == ["a cat", "a dog"] == texts(path, "caption")
    path = shard(tmp_path, ("000.json", b'{"title": "a cat"}'))
    with pytest.raises(RMDError, match=r"000\.json has none of the columns .*: name one with data\.column$"):
        texts(path)
    assert texts(path, "title") == ["a cat"]


def test_text_members_come_before_those_of_json(tmp_path: Path) -> None:
    path = shard(tmp_path, ("0.json", b'{"caption": "other"}'), ("0.txt", b"a cat"), ("1.json", b"no JSON"))
    assert texts(path) == ["a cat"]


@pytest.mark.parametrize(
    ("name", "content", "sentence", "reason"),
    [
        ("001.json", b'{"caption": "a cat"', "001.json is not JSON (", "not JSON"),
        ("001.json", b"{" * 9, "001.json is not JSON (", "not JSON"),
        ("001.json", b"\xff", "001.json is not UTF-8 (byte 0)", "not UTF-8"),
        ("001.json", b'{"caption": 3}', "001.json: the caption is a number (3), not text", "not text (number)"),
        ("001.json", b"[]", "001.json is neither a prompt nor a record", "neither a prompt nor a record"),
        ("001.json", b"{}", "001.json has no column caption: it has none", "without a caption"),
    ],
)
def test_a_broken_member_is_named_or_counted(
    name: str, content: bytes, sentence: str, reason: str, tmp_path: Path
) -> None:
    path = shard(tmp_path, ("000.json", b'{"caption": "a dog"}'), (name, content))
    for column in (None, "caption"):
        with pytest.raises(RMDError) as caught:
            texts(path, column)
        assert str(caught.value).startswith(f"{path}, {sentence}")
        reading = read_source(DataConfig(prompts=str(path), column=column, skip_invalid=True))
        assert reading.texts == ["a dog"] and reading.left_out == {reason: 1}


def test_text_members_may_be_of_any_encoding_with_a_mark(tmp_path: Path) -> None:
    path = shard(tmp_path, ("0.txt", "\ufeffa cat".encode()), ("1.txt", "zwei Bälle".encode("utf-16")))
    assert texts(path) == ["a cat", "zwei Bälle"]
    path = shard(tmp_path, ("0.txt", "a cat".encode("utf-16-le")))
    with pytest.raises(RMDError, match=r"x\.tar, 0\.txt is UTF-16 without its byte-order mark"):
        texts(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "X.TAR"])
def test_packed_archives_are_read_under_any_of_their_names(
    pack: Callable[[bytes], bytes], name: str, tmp_path: Path
) -> None:
    whole = pack(packed(("0.txt", b"a cat"), ("1.txt", b"a dog")))
    (tmp_path / name).write_bytes(whole)
    assert texts(tmp_path / name) == ["a cat", "a dog"]
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RMDError, match=r"damaged or truncated|not a tar archive"):
        texts(tmp_path / name)


def test_an_archive_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = packed(("0.txt", b"a cat"), ("1.txt", b"a dog" * 300), ("2.txt", b"a cow"))
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in (*range(1, end, 97), *range(512, end + 1, 512)):
        (tmp_path / "x.tar").write_bytes(whole[:size])
        with pytest.raises(RMDError, match=r"x\.tar is truncated|not a tar archive, or it is damaged"):
            texts(tmp_path / "x.tar")


def test_an_archive_that_is_damaged_inside_or_goes_on_is_refused(tmp_path: Path) -> None:
    whole = bytearray(packed(("0.txt", b"a cat"), ("1.txt", b"a dog")))
    whole[1024 + 3] ^= 1  # in the name of the second header
    (tmp_path / "x.tar").write_bytes(bytes(whole))
    with pytest.raises(RMDError, match=r"x\.tar is damaged after its first 1024 bytes"):
        texts(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(packed(("0.txt", b"a cat")) + packed(("1.txt", b"a dog")))
    with pytest.raises(RMDError, match=r"x\.tar consists of several archives"):
        texts(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(RMDError, match=r"it is not a tar archive"):
        texts(tmp_path / "x.tar")


def test_members_that_are_too_large_are_refused_and_others_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_MEMBER", 2**20)
    path = shard(tmp_path, ("0.jpg", bytes(3 * 2**20)), ("0.txt", b"a cat"))
    assert texts(path) == ["a cat"]
    with pytest.raises(RMDError, match=r"x\.tar, 0\.txt is larger than .* MB and cannot be a caption"):
        texts(shard(tmp_path, ("0.txt", b"a cat " * 400_000)))
    monkeypatch.setattr(formats, "MAX_PACKED", 50_000)
    (tmp_path / "x.tar").write_bytes(gzip.compress(packed(("0.jpg", bytes(100_000)), ("0.txt", b"a cat"))))
    with pytest.raises(RMDError, match=r"x\.tar, 0\.jpg is larger than .* GB: decompress the archive"):
        texts(tmp_path / "x.tar")


def test_a_header_that_claims_any_size_costs_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 7 * 2**30
    (tmp_path / "x.tar").write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(64 * 2**20)))
    with pytest.raises(RMDError, match="it is not a tar archive, or it is damaged"):
        texts(tmp_path / "x.tar")


def test_links_devices_and_paths_that_lead_out_are_harmless(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, target in (
            ("a.txt", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.txt", tarfile.LNKTYPE, "a.txt"),
            ("c.txt", tarfile.CHRTYPE, ""),
            ("d.txt", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("../../out.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"a cat"))
    (tmp_path / "x.tar").write_bytes(file.getvalue())
    assert texts(tmp_path / "x.tar") == ["a cat"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_any_damage_ends_in_one_sentence_or_in_the_same_names(tmp_path: Path) -> None:
    whole = packed(("0.txt", b"a cat"), ("x" * 150 + ".txt", b"a dog"), ("2.txt", b"a cow"))
    draw, path, begun = random.Random(0), tmp_path / "x.tar", time.monotonic()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(bytes(content))
        try:
            list(read_members(path, (".txt",)))
            read_source(DataConfig(prompts=str(path)))
        except (RMDError, tarfile.TarError) as error:
            assert "\n" not in str(error) or isinstance(error, tarfile.TarError)
    assert time.monotonic() - begun < 30
