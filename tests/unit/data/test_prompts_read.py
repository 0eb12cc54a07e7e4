"""Reading prompts: every format gives the same ones, filters count what they leave out, errors name what is wrong."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.common.errors import RMDError
from rmd.data.captions import clean, key
from rmd.data.prompts import read_source
from rmd.recipes.schema import DataConfig

TEXTS = ["a red ball, at night", "zwei Bälle", 'a "quoted" box']
FORMATS = ["txt", "json", "records.json", "jsonl", "csv", "tsv", "parquet", "tar", "json.tar"]


def write(folder: Path, kind: str, texts: list[str] = TEXTS, column: str = "prompt") -> Path:
    path = folder / f"prompts.{kind}"
    records = [{"id": i, column: text} for i, text in enumerate(texts)]
    match kind:
        case "txt":
            path.write_text("\n".join(texts) + "\n", encoding="utf-8-sig")
        case "json":
            path.write_text(json.dumps(texts), encoding="utf-8")
        case "records.json":
            path.write_text(json.dumps(records), encoding="utf-8")
        case "jsonl":
            path.write_text("".join(json.dumps(r) + "\n\n" for r in records), encoding="utf-8")
        case "csv" | "tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                rows = csv.DictWriter(file, ["id", column], delimiter="\t" if kind == "tsv" else ",")
                rows.writeheader()
                rows.writerows(records)
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(records), path)
        case "tar" | "json.tar":
            with tarfile.open(path, "w") as shard:
                for record in records:
                    whole = {f"{record['id']:04}.jpg": b"", f"{record['id']:04}.json": json.dumps(record).encode()}
                    whole |= {f"{record['id']:04}.txt": str(record[column]).encode()} if kind == "tar" else {}
                    for name, content in whole.items():
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_prompts(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    reading = read_source(DataConfig(prompts=str(path), column="prompt" if kind == "json.tar" else None))
    assert reading.texts == TEXTS and reading.left_out == {}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_can_be_named_and_usual_ones_are_found(kind: str, tmp_path: Path) -> None:
    assert read_source(DataConfig(prompts=str(write(tmp_path, kind, column="caption")))).texts == TEXTS
    path = write(tmp_path, kind, column="words")
    assert read_source(DataConfig(prompts=str(path), column="words")).texts == TEXTS
    with pytest.raises(RMDError, match=r"has none of the columns prompt, caption, text: name one with data\.column"):
        read_source(DataConfig(prompts=str(path)))
    with pytest.raises(RMDError, match=r"has no column prose: it has id, words"):
        read_source(DataConfig(prompts=str(path), column="prose"))


def test_a_pattern_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in (("b", "second"), ("a", "first"), ("c", "third")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    assert read_source(DataConfig(prompts=str(tmp_path / "*.txt"))).texts == ["first", "second", "third"]
    with pytest.raises(RMDError, match=r"^no file matches .*\*\.csv: check the pattern$"):
        read_source(DataConfig(prompts=str(tmp_path / "*.csv")))


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    benchmark = write(tmp_path, "json", ["A famous prompt."])
    texts = [
        "good one",
        "  ",
        "Good  One!",
        "x",
        "a famous prompt",
        "far too long a prompt to be taken",
        "another good",
    ]
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    reading = read_source(DataConfig(prompts=str(path), min_chars=3, max_chars=20, exclude=[str(benchmark)]))
    assert reading.texts == ["good one", "another good"]
    assert reading.left_out == {"empty": 1, "too short": 1, "too long": 1, "in a benchmark": 1, "duplicate": 1}
    with pytest.raises(RMDError, match=r"gives no prompts \(1 empty, 6 too short\): check its content"):
        read_source(DataConfig(prompts=str(path), min_chars=99))


@given(st.lists(st.text(alphabet="aB !\n\tß", max_size=8), max_size=12))
def test_clean_keeps_each_prompt_once_in_order_and_counts_the_rest(texts: list[str]) -> None:
    reading = clean(texts)
    keys = [key(text) for text in reading.texts]
    assert len(set(keys)) == len(keys)
    assert len(reading.texts) + sum(reading.left_out.values()) == len(texts)
    assert set(keys) == {key(" ".join(text.split())) for text in texts if text.split()}
    assert clean(reading.texts) == type(reading)(reading.texts, {})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("x.jsonl", b"[1]\n", "line 1 is neither a prompt nor a record"),
        ("x.json", b"{}", "does not hold a list: give a list of prompts or of records"),
        ("x.json", b"[", "is not JSON"),
        ("x.csv", "prompt\nBär".encode("latin-1"), "is not UTF-8"),
        ("x.parquet", b"PAR1", "is not readable as Parquet"),
        ("x.tar", b"no archive", "cannot read the prompt file {path}: it is not a tar archive"),
        ("x.docx", b"", "has no known format: give a file that ends in .txt, .json"),
    ],
)
def test_a_damaged_file_is_reported_in_a_sentence(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RMDError) as caught:
        read_source(DataConfig(prompts=str(tmp_path / name)))
    assert sentence.format(path=tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["txt", "parquet", "tar", "csv"])
def test_a_missing_file_is_reported(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"^there is no prompt file .*: give a text file with one prompt per line$"):
        read_source(DataConfig(prompts=str(tmp_path / f"none.{kind}")))


def test_what_an_extra_reads_is_named_when_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (str(path), "hf:owner/name"):
        with pytest.raises(RMDError, match=r"needs `pip install 'rmd\[data\]'`$"):
            read_source(DataConfig(prompts=name))


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Broken(Exception):
        pass

    class ConnectError(Exception):
        __module__ = "httpx2"

    class Datasets:
        exceptions = SimpleNamespace(DatasetsError=Broken)

        @staticmethod
        def load_dataset(name: str, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
            asked.extend((name, split, streaming))
            if name == "owner/gone":
                raise ValueError("it is not there\nwith a long story")
            if name == "owner/gated":
                raise Broken("it is gated")
            yield from ({"caption": text} for text in TEXTS)
            if name == "owner/torn":
                raise Broken("a shard is damaged")
            if name == "owner/far":
                raise ConnectError("the line went dead")
            if name == "owner/bug":
                raise KeyError("text")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert read_source(DataConfig(prompts="hf:owner/name", split="test")).texts == TEXTS
    assert asked == ["owner/name", "test", True]
    with pytest.raises(RMDError, match=r"^cannot read the dataset owner/gone \(it is not there\): check its"):
        read_source(DataConfig(prompts="hf:owner/gone"))
    with pytest.raises(RMDError, match=r"^cannot read the dataset owner/gated \(it is gated\): accept its terms "):
        read_source(DataConfig(prompts="hf:owner/gated"))
    for name, reason in (("owner/torn", "a shard is damaged"), ("owner/far", "the line went dead")):
        with pytest.raises(
            RMDError, match=rf"^cannot read the dataset {name} after row 3 \({reason}\): check its name"
        ):
            read_source(DataConfig(prompts=f"hf:{name}"))
    with pytest.raises(KeyError):  # no fault of the user's
        read_source(DataConfig(prompts="hf:owner/bug"))


def test_damage_inside_a_parquet_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": [f"a prompt {i}" for i in range(5000)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)  # pages of the column; the footer, which says what is where, stays whole
    path.write_bytes(content)
    with pytest.raises(RMDError, match=r"x\.parquet is not readable as Parquet: "):
        read_source(DataConfig(prompts=str(path)))


def test_marks_of_letters_tell_words_apart_and_spellings_do_not() -> None:
    assert key("की") != key("कि") and key("กา") != key("กิ")  # vowels that are marks
    assert key("Caf\u00e9!") == key("cafe\u0301") != key("cafe") and key("ＡＢＣ １") == key("abc1")
    assert clean(["की", "कि", "caf\u00e9", "CAFE\u0301", "🐱", "🐶"]).texts == ["की", "कि", "caf\u00e9", "🐱", "🐶"]


def test_a_pattern_of_very_many_files_is_read(tmp_path: Path) -> None:
    for number in range(3000):  # more than a process may hold open
        (tmp_path / f"{number:05}.txt").write_text(f"ball {number}", encoding="utf-8")
    texts = read_source(DataConfig(prompts=str(tmp_path / "*.txt"))).texts
    assert texts == [f"ball {number}" for number in range(3000)]


def test_any_name_of_a_file_is_a_name(tmp_path: Path) -> None:
    for name in ('a #2: it\'s "one".txt', "{x}.txt", " p.txt", "-p.txt", "p?.txt", "猫.TXT"):
        (tmp_path / name).write_text("a cat", encoding="utf-8")
        assert read_source(DataConfig(prompts=str(tmp_path / name))).texts == ["a cat"]


@pytest.mark.parametrize(("kind", "sentence"), [
    ("txt", r"is text with one prompt per line and has no columns: leave data\.column out$"),
    ("tar", r"has no \.json members with captions: leave data\.column out to read \.txt and \.caption$"),
])  # fmt: skip
def test_a_column_without_effect_is_reported(kind: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_text("a cat", encoding="utf-8")
    if kind == "tar":
        with tarfile.open(path, "w") as shard:
            member = tarfile.TarInfo("0.txt")
            member.size = 5
            shard.addfile(member, io.BytesIO(b"a cat"))
    with pytest.raises(RMDError, match=sentence):
        read_source(DataConfig(prompts=str(path), column="prompt"))


def test_names_out_of_files_cannot_break_a_message(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"\\ud83e\\n\\u001b[31m": 1}', encoding="utf-8")
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("a\n\x1b[31m" * 200 + ".json"), io.BytesIO())
    for name in ("x.jsonl", "x.tar"):
        with pytest.raises(RMDError) as caught:
            read_source(DataConfig(prompts=str(tmp_path / name), column="words"))
        message = str(caught.value)
        message.encode()
        assert message.isprintable() and len(message) < 500


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:../x", "hf:/x", "hf:" + "x/" * 10_000])
def test_what_is_no_name_on_the_hub_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    with pytest.raises(RMDError, match=r" does not name a dataset of the Hub: write hf:OWNER/NAME$") as caught:
        read_source(DataConfig(prompts=name))
    assert len(str(caught.value)) < 200


def test_a_folder_that_is_called_as_a_dataset_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    with pytest.raises(RMDError, match=r"^hf:owner/name is also a folder here"):
        read_source(DataConfig(prompts="hf:owner/name"))


def test_of_a_dataset_the_column_alone_is_asked_for_and_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Rows:
        column_names = ("image", "caption")

        def select_columns(self, names: list[str]) -> Iterator[dict[str, object]]:
            asked.append(names)
            yield from ({"caption": text} for text in ("a cat", ["a dog"], 3))

    def load_dataset(name: str, *, split: str, streaming: bool, trust_remote_code: bool = True) -> Rows:
        asked.append(trust_remote_code)
        return Rows()

    library = SimpleNamespace(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=KeyError))
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(RMDError, match=r"^hf:owner/name, row 3: the caption is a number \(3\), not text; correct"):
        read_source(DataConfig(prompts="hf:owner/name"))
    assert read_source(DataConfig(prompts="hf:owner/name", skip_invalid=True)).texts == ["a cat", "a dog"]
    assert asked == [False, ["caption"]] * 2
    with pytest.raises(RMDError, match=r"^hf:owner/name has no column words: it has image, caption$"):
        read_source(DataConfig(prompts="hf:owner/name", column="words"))
