"""Text files: encodings, line ends, limits, names, and files that are not text at all."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.data import formats as module
from rmd.data.formats import decode, read_lines
from rmd.data.prompts import load_prompts, read_source
from rmd.recipes.schema import DataConfig

TEXTS = ["a red ball", "zwei Bälle 🐱", "日本の猫"]


def written(folder: Path, content: bytes, name: str = "p.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_with_a_mark_and_line_ends_of_all_systems(encoding: str, end: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = written(tmp_path, (mark + end.join(TEXTS) + end).encode(encoding))
    assert list(read_lines(path)) == TEXTS
    lines = end.join(json.dumps({"prompt": text}, ensure_ascii=False) for text in TEXTS)
    table = "id,prompt" + end + end.join(f"{i},{text}" for i, text in enumerate(TEXTS))
    for name, content in (("p.jsonl", lines), ("p.csv", table)):
        path = written(tmp_path, (mark + content).encode(encoding), name)
        assert read_source(DataConfig(prompts=str(path))).texts == TEXTS


@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), max_size=6)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8-sig", "utf-16"]),
    chunk=st.integers(1, 9),
)
def test_lines_do_not_depend_on_where_a_piece_ends(texts: list[str], end: str, encoding: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk + 4)  # a mark lies within the first piece
        text = decode(end.join(texts).encode(encoding), "x")
    assert text == "\n".join(texts)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a red ball\n".encode("utf-16-le"), "is UTF-16 without its byte-order mark, or not text at all: save it as"),
        ("a red ball\n".encode("utf-16-be"), "is UTF-16 without its byte-order mark, or not text at all: save it as"),
        (bytes(5000), "is UTF-16 without its byte-order mark, or not text at all: save it as UTF-8 text"),
        (b"a ball\n" + "B\xe4r".encode("latin-1"), "is not UTF-8 (byte 8): save it as UTF-8 text"),
        (b"\xef\xbb\xbfa" + b"\xff", "is not UTF-8 (byte 4): save it as UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8 (byte 0): save it as UTF-8 text"),
        (b"\xff\xfea\0b", "is not UTF-16 (byte 4): save it as UTF-8 text"),
        (b"a" * 3_000_000 + b"\xff", "is not UTF-8 (byte 3000000): save it as UTF-8 text"),
        ("ab\ud83e".encode("utf-8", "surrogatepass"), "is not UTF-8 (byte 2): save it as UTF-8 text"),
    ],
    ids=range(9),
)
def test_other_encodings_and_binary_files_are_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    for skip in (False, True):
        with pytest.raises(RMDError) as caught:
            read_source(DataConfig(prompts=str(path), skip_invalid=skip))
        assert str(caught.value).startswith(f"{path} {sentence}")


def test_a_single_zero_byte_is_a_fault_of_its_row(tmp_path: Path) -> None:
    path = written(tmp_path, b"a red ball\na blue\0 ball\n")
    with pytest.raises(RMDError, match=r"p\.txt, line 2: the caption contains the control character U\+0000"):
        read_source(DataConfig(prompts=str(path)))


def test_unicode_separators_are_no_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "a\u2028b\u2029c\u0085d\x0be\x1cf\nsecond".encode())
    assert read_source(DataConfig(prompts=str(path))).texts == ["a b c d e f", "second"]


def test_marks_inside_a_file_are_taken_off(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffa cat\n\ufeffa dog\na \ufeffcow\n".encode())
    assert read_source(DataConfig(prompts=str(path))).texts == ["a cat", "a dog", "a cow"]
    path = written(tmp_path, '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n'.encode(), "p.jsonl")
    assert read_source(DataConfig(prompts=str(path))).texts == ["a", "b"]


def test_text_of_invisible_characters_alone_is_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "\u200b\n\u200e\u200d \u2060\na 👩\u200d🎨\n".encode())
    reading = read_source(DataConfig(prompts=str(path)))
    assert reading.texts == ["a 👩\u200d🎨"] and reading.left_out == {"empty": 2}


def test_packed_text_is_unpacked(tmp_path: Path) -> None:
    packed = gzip.compress("\n".join(TEXTS).encode())
    assert read_source(DataConfig(prompts=str(written(tmp_path, packed, "p.txt.gz")))).texts == TEXTS
    for content in (packed[:-9], packed[:20], b"\x1f\x8b" + bytes(20), b"plain"):
        with pytest.raises(RMDError, match=r"p\.txt\.gz"):
            read_source(DataConfig(prompts=str(written(tmp_path, content, "p.txt.gz"))))


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.tsv"])
def test_a_file_without_line_ends_is_not_read_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 100_000)
    monkeypatch.setattr(module, "_CHUNK", 4096)
    path = written(tmp_path, b'"prompt"\n' + b"a cat " * 1_000_000, name)
    with pytest.raises(RMDError, match=rf"{name}, line 2 is longer than 100000 characters: check that"):
        read_source(DataConfig(prompts=str(path)))


def test_a_json_file_too_large_to_be_read_whole_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WHOLE", 100)
    with pytest.raises(RMDError, match=r"p\.json is larger than .*: write it as \.jsonl"):
        read_source(DataConfig(prompts=str(written(tmp_path, b'["a"]' + b" " * 100, "p.json"))))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "is not JSON (Extra data: "),
        ("p.json", b"[" * 100_000, "is not JSON ("),
        ("p.jsonl", b"[" * 100_000, ", line 1 is not JSON ("),
        ("p.jsonl", b"1" * 5000, ", line 1 is not JSON ("),
    ],
)
def test_json_that_is_none(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(RMDError) as caught:
        read_source(DataConfig(prompts=str(path)))
    assert str(caught.value).startswith(f"{path}{'' if sentence.startswith(',') else ' '}{sentence}")
    assert ("rename it to .jsonl" in str(caught.value)) == ("Extra" in sentence)


def test_an_existing_path_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "[set] one"
    folder.mkdir()
    written(folder, b"a cat", "prompts [v2].txt")
    written(folder, b"a dog", "prompts 3.txt")
    assert read_source(DataConfig(prompts=str(folder / "prompts [v2].txt"))).texts == ["a cat"]
    assert read_source(DataConfig(prompts=str(folder / "prompts *.txt"))).texts == ["a dog", "a cat"]
    assert read_source(DataConfig(prompts=str(folder / "prompts [0-9].txt"))).texts == ["a dog"]
    with pytest.raises(RMDError, match=r"^no file matches .*\[x\]\.txt: check the pattern$"):
        read_source(DataConfig(prompts=str(tmp_path / "[x].txt")))


def test_patterns_leave_out_hidden_files_and_those_of_macos(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    for name in ("a.txt", "._a.txt", ".hidden.txt", "__MACOSX/._a.txt"):
        written(tmp_path, b"a cat" if name == "a.txt" else b"\0\5\x16\7", name)
    for pattern in ("*.txt", "**/*.txt", "*.t?t"):
        if pattern != "**/*.txt":
            assert read_source(DataConfig(prompts=str(tmp_path / pattern))).texts == ["a cat"]
    with pytest.raises(RMDError, match="no file matches"):
        read_source(DataConfig(prompts=str(tmp_path / "*" / "*.txt")))


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, b"a cat\na dog")
    written(tmp_path, b"a dog", "b.txt")
    data = DataConfig(prompts="~/p.txt", exclude=("~/b.txt",))
    assert load_prompts(data, seed=0).texts == ["a cat"]
    assert read_source(DataConfig(prompts="~/p*.txt")).texts == ["a cat", "a dog"]
    with pytest.raises(RMDError, match=r"^'~nobody-of-this-name/x' is not a path: "):
        read_source(DataConfig(prompts="~nobody-of-this-name/x"))


DEVICES = [name for name in ("/dev/zero", "/dev/full", "/dev/null") if Path(name).exists()]  # not all systems have all


@pytest.mark.parametrize("name", [*DEVICES, "fifo.txt", "fifo.jsonl"])
def test_what_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    if name.startswith("fifo"):
        os.mkfifo(tmp_path / name)
    answers: list[str] = []

    def read() -> None:
        try:
            read_source(DataConfig(prompts=str(tmp_path / name)))
        except RMDError as error:
            answers.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert answers == [f"{tmp_path / name} is not a regular file but a device, pipe or socket: give a file"]


def test_a_pipe_as_standard_input_is_refused(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(RMDError, match="is not a regular file"):
            read_source(DataConfig(prompts=f"/dev/fd/{read}"))
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("name", ["a\0b.txt", "a\ud83e.txt", "x" * 300 + ".txt", "y/" * 3000 + "p.txt"])
def test_a_name_that_no_file_can_have_is_reported(name: str) -> None:
    with pytest.raises(RMDError, match=r"is not a path: |^there is no prompt file|cannot read") as caught:
        read_source(DataConfig.model_construct(prompts=name))
    assert "\0" not in str(caught.value)
