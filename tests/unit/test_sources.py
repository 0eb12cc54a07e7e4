"""Prompt sources: every format gives the same prompts, filters say what they left out, errors say what is wrong."""

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

from rmd.data import sources
from rmd.data.sources import Source, clean, key, read_raw, read_source, strip_commands
from rmd.errors import RMDError

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
    found = read_source(Source(str(path), column="prompt" if kind == "json.tar" else None))
    assert found.texts == TEXTS and found.left_out == {}
    assert read_source(Source(str(path), column="prompt" if kind == "json.tar" else None), limit=2).texts == TEXTS[:2]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_can_be_named_and_usual_ones_are_found(kind: str, tmp_path: Path) -> None:
    assert read_source(Source(str(write(tmp_path, kind, column="caption")))).texts == TEXTS
    path = write(tmp_path, kind, column="words")
    assert read_source(Source(str(path), column="words")).texts == TEXTS
    with pytest.raises(RMDError, match=r"has none of the columns prompt, caption, text: name one with data\.column$"):
        read_source(Source(str(path)))
    with pytest.raises(RMDError, match=r"has no column prose: it has id, words$"):
        read_source(Source(str(path), column="prose"))


def test_a_pattern_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, text in (("b", "second"), ("a", "first"), ("c", "third")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    assert list(read_raw(Source(str(tmp_path / "*.txt")))) == ["first", "second", "third"]
    with pytest.raises(RMDError, match=r"^no file matches .*\*\.csv: check the pattern$"):
        read_source(Source(str(tmp_path / "*.csv")))


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
    found = read_source(Source(str(path), shortest=3, longest=20, exclude=[str(benchmark)]))
    assert found.texts == ["good one", "another good"]
    assert found.left_out == {"empty": 1, "too short": 1, "too long": 1, "of a benchmark": 1, "there twice": 1}
    with pytest.raises(RMDError, match=r"gives no prompts \(1 empty, 6 too short\): look at the file"):
        read_source(Source(str(path), shortest=99))


@given(st.lists(st.text(alphabet="aB !\n\tß", max_size=8), max_size=12))
def test_clean_keeps_each_prompt_once_in_order_and_counts_the_rest(texts: list[str]) -> None:
    found = clean(texts)
    keys = [key(text) for text in found.texts]
    assert len(set(keys)) == len(keys)
    assert len(found.texts) + sum(found.left_out.values()) == len(texts)
    assert set(keys) == {key(" ".join(text.split())) for text in texts if text.split()}
    assert clean(found.texts) == type(found)(found.texts, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a castle --ar 3:2 --v 5 --no people", "a castle"),
        ("https://s.mj.run/abc a castle, dusk --niji", "a castle, dusk"),
        ("<https://x.y/z.png> a well-lit castle -- grand", "a well-lit castle -- grand"),
        ("a plain one", "a plain one"),
    ],
)
def test_commands_of_an_image_service_are_taken_off(text: str, expected: str, tmp_path: Path) -> None:
    assert strip_commands(text) == expected
    path = write(tmp_path, "jsonl", [text])
    assert read_source(Source(str(path), journeydb=True)).texts == [expected]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("x.jsonl", b"[1]\n", "line 1 is neither a prompt nor a record"),
        ("x.json", b"{}", "holds no list: give a list of prompts or of records"),
        ("x.json", b"[", "is not JSON"),
        ("x.csv", "prompt\nBär".encode("latin-1"), "is not UTF-8"),
        ("x.parquet", b"PAR1", "is not readable as Parquet"),
        ("x.tar", b"no archive", "cannot read the prompt file {path}: it is no tar archive"),
        ("x.docx", b"", "is of no known format: let it end in .txt, .json"),
    ],
)
def test_a_damaged_file_is_told_in_a_sentence(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RMDError) as caught:
        read_source(Source(str(tmp_path / name)))
    assert sentence.format(path=tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["txt", "parquet", "tar", "csv"])
def test_a_missing_file_is_told(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RMDError, match=r"^there is no prompt file .*: give a text file with one prompt a line$"):
        read_source(Source(str(tmp_path / f"none.{kind}")))


def test_what_an_extra_reads_is_named_when_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in (str(path), "hf:owner/name"):
        with pytest.raises(RMDError, match=r"needs `pip install 'rmd\[data\]'`$"):
            read_source(Source(name))


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
            yield from ({"caption": text} for text in TEXTS)
            if name == "owner/torn":
                raise Broken("a shard is damaged")
            if name == "owner/far":
                raise ConnectError("the line went dead")
            if name == "owner/bug":
                raise KeyError("text")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert read_source(Source("hf:owner/name", split="test")).texts == TEXTS
    assert asked == ["owner/name", "test", True]
    with pytest.raises(RMDError, match=r"^cannot read the dataset owner/gone \(it is not there\): check name"):
        read_source(Source("hf:owner/gone"))
    for name, reason in (("owner/torn", "a shard is damaged"), ("owner/far", "the line went dead")):
        with pytest.raises(RMDError, match=rf"^cannot read the dataset {name} \({reason}\): check name"):
            read_source(Source(f"hf:{name}"))
    with pytest.raises(KeyError):  # no fault of the user's
        read_source(Source("hf:owner/bug"))


def test_damage_inside_a_parquet_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": [f"a prompt {i}" for i in range(5000)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)  # pages of the column; the footer, which says what is where, stays whole
    path.write_bytes(content)
    with pytest.raises(RMDError, match=r"x\.parquet is not readable as Parquet: "):
        read_source(Source(str(path)))
    assert set(sources._READERS) == set(sources.FORMATS)
