"""A row is one caption, or it is refused by file, row and type, or skipped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmd.cli.app import main
from rmd.cli.dry_run import prompts_line
from rmd.common.errors import RMDError
from rmd.data.captions import MAX_CHARACTERS, Unfit, caption_of, strip_commands
from rmd.data.prompts import read_prompts, read_source
from rmd.recipes.schema import DataConfig

ADVICE = "; correct it, or skip such rows with data.skip_invalid=true"
UNFIT = [
    ('["a cat", "a kitten"]', "not text (list)", ": the caption is a list of 2, not one text"),
    ("[]", "not text (list)", ": the caption is a list of 0, not one text"),
    ("[3]", "not text (list)", ": the caption is a list of 1, not one text"),
    ("3.5", "not text (number)", ": the caption is a number (3.5), not text"),
    ("NaN", "not text (number)", ": the caption is a number (nan), not text"),
    ("1" * 4000, "not text (number)", ": the caption is a number (a number of "),
    ("true", "not text (true or false)", ": the caption is true, not text"),
    ('{"en": "a cat"}', "not text (record)", ": the caption is a record (with en), not text"),
    (r'"a fox \ud83e"', "with damaged characters", ": the caption contains half of a character (a truncated emoji)"),
    (r'"caf\ufffd"', "with damaged characters", ": the caption contains a replacement character, U+FFFD"),
    (r'"a\u0000b"', "with control characters", ": the caption contains the control character U+0000"),
    (r'"a\u0093b"', "with control characters", ": the caption contains the control character U+0093"),
    (json.dumps("x" * (MAX_CHARACTERS + 1)), "too large", ": the caption has 100001 characters"),
]


def records(folder: Path, kind: str, *values: str) -> Path:
    """Write a file of records whose captions are the given JSON values."""
    path = folder / f"x.{kind}"
    lines = [f'{{"id": {i}, "caption": {value}}}' for i, value in enumerate(values)]
    path.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(("value", "reason", "sentence"), UNFIT, ids=[f"{i}" for i in range(len(UNFIT))])
def test_what_is_not_one_caption_is_refused_or_counted(
    value: str, reason: str, sentence: str, kind: str, tmp_path: Path
) -> None:
    path = records(tmp_path, kind, '"a dog"', value, '"a cow"')
    place = {"jsonl": "line 2", "json": "entry 2"}[kind]
    with pytest.raises(RMDError) as caught:
        read_source(DataConfig(prompts=str(path)))
    message = str(caught.value)
    assert message.startswith(f"{path}, {place}{sentence}") and message.endswith(ADVICE) and len(message) < 400
    assert message.encode()  # no half of a character comes into the message
    reading = read_source(DataConfig(prompts=str(path), skip_invalid=True))
    assert reading.texts == ["a dog", "a cow"] and reading.left_out == {reason: 1}


def test_a_list_of_exactly_one_text_is_that_text(tmp_path: Path) -> None:
    path = records(tmp_path, "jsonl", '["a cat"]', '"a dog"')
    assert read_source(DataConfig(prompts=str(path))).texts == ["a cat", "a dog"]


def test_a_missing_caption_is_an_empty_one(tmp_path: Path) -> None:
    assert read_source(DataConfig(prompts=str(records(tmp_path, "jsonl", "null", '"a dog"')))).left_out == {"empty": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(JSON)
def test_any_value_is_text_or_said_to_be_none(value: Any) -> None:
    caption = caption_of(value)
    if isinstance(caption, Unfit):
        assert caption.reason and caption.sentence.startswith(": the caption ")
        caption.sentence.encode()
    else:
        caption.encode()
        assert value is None or caption in (value, *(value if isinstance(value, list) else ()))


def test_a_file_of_one_column_never_mixes_it_with_another(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"caption": "a cat"}\n{"prompt": "a dog"}\n', encoding="utf-8")
    with pytest.raises(RMDError, match=r"line 2 has no column caption: it has prompt; correct it, or skip such rows"):
        read_source(DataConfig(prompts=str(path)))
    assert read_source(DataConfig(prompts=str(path), skip_invalid=True)).left_out == {"without a caption": 1}


def test_when_all_rows_are_left_out_the_first_says_why(tmp_path: Path) -> None:
    path = records(tmp_path, "jsonl", "3", "4")
    with pytest.raises(
        RMDError, match=r"gives no prompts \(2 not text \(number\)\): .*; .*line 1: the caption is a num"
    ):
        read_source(DataConfig(prompts=str(path), skip_invalid=True))


def test_names_of_many_columns_are_not_listed_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({f"column{i}" * 50: i for i in range(10_000)}), encoding="utf-8")
    with pytest.raises(RMDError, match=r"has no column x: it has column0.* and 9988 more$") as caught:
        read_source(DataConfig(prompts=str(path), column="x"))
    assert len(str(caught.value)) < 1000


def test_the_prompts_line_of_a_run_counts_what_is_left_out(tmp_path: Path) -> None:
    path = records(tmp_path, "jsonl", '"a dog"', "3", "4", r'"\ud83e"', '""')
    data = DataConfig(prompts=str(path), skip_invalid=True)
    assert prompts_line(data) == (
        f"prompts: 1 of {path} (left out: 2 not text (number), 1 with damaged characters, 1 empty)"
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"], pa.string()),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_text_columns_of_parquet_are_read(column: pa.Array, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [1, 2, 3], "caption": column}), tmp_path / "x.parquet")
    reading = read_source(DataConfig(prompts=str(tmp_path / "x.parquet")))
    assert reading.texts == ["a", "b"] and reading.left_out == {"empty": 1}


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1]), "int64"),
        (pa.array([1.5]), "double"),
        (pa.array([True]), "bool"),
        (pa.array([["a"]]), "list<element: string>"),
        (pa.array([{"en": "a"}]), "struct<en: string>"),
        (pa.array([b"a"]), "binary"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("skip", [False, True])
def test_other_columns_of_parquet_are_refused_before_a_row_is_read(
    column: pa.Array, kind: str, skip: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"caption": column}), path)
    with pytest.raises(RMDError) as caught:
        read_source(DataConfig(prompts=str(path), skip_invalid=skip))
    assert str(caught.value).startswith(f"{path}: its column caption has type {kind}")
    assert str(caught.value).endswith("but captions are strings")


def test_strings_of_parquet_that_are_not_utf_8_are_rows_like_any_other(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    column = pa.StringArray.from_buffers(2, offsets, data)
    parquet.write_table(pa.table({"caption": column}), tmp_path / "x.parquet")
    with pytest.raises(RMDError, match=r"x\.parquet, row 2: the caption is not UTF-8 \(byte 0\)"):
        read_source(DataConfig(prompts=str(tmp_path / "x.parquet")))
    assert read_source(DataConfig(prompts=str(tmp_path / "x.parquet"), skip_invalid=True)).texts == ["a"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(RMDError, match=r"has 2 columns text: give each its own name"):
        read_source(DataConfig(prompts=str(tmp_path / "x.parquet")))


def test_files_of_benchmarks_are_read_as_strictly(tmp_path: Path) -> None:
    path, benchmark = records(tmp_path, "jsonl", '"a cat"'), tmp_path / "b.jsonl"
    for line, sentence in (
        ('{"caption": 3}', r"b\.jsonl, line 1: the caption is a number \(3\), not text; correct it$"),
        ('{"words": "a"}', r"b\.jsonl, line 1 has none of .*: rename the one with the prompts$"),
    ):
        benchmark.write_text(line, encoding="utf-8")
        with pytest.raises(RMDError, match=sentence):
            read_source(DataConfig(prompts=str(path), exclude=[str(benchmark)], skip_invalid=True))


def test_prompts_that_are_arguments_are_checked_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell passes bytes that are not UTF-8 as halves of characters."""
    assert main(["generate", "a ball", "B\udce4r", "--model", "none"]) == 1
    assert capsys.readouterr().err.startswith(
        "rmd: the prompt 'B\\udce4r' cannot be used: the caption contains half of"
    )
    assert main(["generate", "a ball", "--column", "words"]) == 1
    assert "--column names a column of the file that --prompts names: give both" in capsys.readouterr().err


def test_prompts_of_the_command_line_name_its_own_option(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"words": "a cat"}', encoding="utf-8")
    assert read_prompts(str(path), "words") == ["a cat"]
    with pytest.raises(RMDError, match=r"name one with --column$"):
        read_prompts(str(path))
    path.write_text('{"words": 3}', encoding="utf-8")
    with pytest.raises(RMDError, match=r"line 1: the caption is a number \(3\), not text; correct it$"):
        read_prompts(str(path), "words")


# --- commands of an image service ----------------------------------------------------------------------------------

EXAMPLES = {
    "a castle --ar 3:2 --v 5 --no people": "a castle",
    "https://s.mj.run/abc a castle, dusk --niji": "a castle, dusk",
    "<https://x.y/z.png> a well-lit castle -- grand": "a well-lit castle -- grand",
    "a plain one": "a plain one",
    "a castle --style raw --no text, watermark": "a castle",
    "a castle --no text, watermark --ar 3:2": "a castle",
    "a castle --sref https://a.b/c https://a.b/d --sw 20": "a castle",
    "a castle --p abc12 zz9xy --sref 123::2 456": "a castle",
    "a castle —ar 3:2 –v 5": "a castle",
    "a castle —no people, text –ar 2:3": "a castle",
    "a car —fast and red": "a car —fast and red",
    "a car —fast —v 5": "a car",
    "a castle --ar 3:2, at dusk": "a castle at dusk",
    "castle--ar 16:9 --q .5": "castle",
    "--ar 3:2 a castle": "a castle",
    "a castle --ASPECT 16:9 --Version 5.1": "a castle",
    "the dog--very big--runs": "the dog--very big--runs",
    "pen — 5 cm, state-of-the-art": "pen — 5 cm, state-of-the-art",
    "cat::2 dog::-1": "cat",
    "cat::2 dog::.5": "cat, dog",
    "hot:: dog": "hot, dog",
    "::": "",
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_commands_of_an_image_service_are_taken_off(text: str, tmp_path: Path) -> None:
    assert strip_commands(text) == EXAMPLES[text]
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": text}) + '\n{"prompt": "another"}\n', encoding="utf-8")
    expected = [EXAMPLES[text]] if EXAMPLES[text] else []
    assert read_source(DataConfig(prompts=str(path), journeydb=True)).texts == [*expected, "another"]


_WORDS = st.sampled_from(["a cat", "--ar", "3:2", "—v 5", "--no", "text,", "::", "::-1", "--style raw", "https://x.y"])


@given(st.lists(_WORDS, max_size=8).map(" ".join))
def test_nothing_of_a_command_is_left(text: str) -> None:
    plain = strip_commands(text)
    assert "--" not in plain and "::" not in plain and "http" not in plain
    assert strip_commands(plain) == plain
