"""Any damage to a file leads to one printable sentence, or to prompts that can be used."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from rmd.common.errors import RMDError
from rmd.data.prompts import read_source
from rmd.recipes.schema import DataConfig

FILES = {
    "txt": b"a cat\nb \xf0\x9f\x90\xb1 dog\n",
    "txt.gz": gzip.compress(b"a cat\na dog\n"),
    "jsonl": b'{"prompt": "a"}\n{"prompt": "b \\ud83d\\ude00"}\n["x"]\n',
    "json": b'[{"prompt": "a"}, {"prompt": ["b"]}]',
    "csv": b'id,prompt\n1,"a ""x"", y"\n2,b\n',
    "tsv": b'id\tprompt\n1\t"a ""x"" y"\n2\tb\n',
    "parquet": b"",
}
BYTES = [0, 9, 10, 13, 34, 44, 65, 91, 123, 0xBB, 0xEF, 0xFE, 0xFF]


def changed(content: bytes, draw: random.Random) -> bytes:
    """Return the content of a file with a few bytes changed, added or removed."""
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 2, 5])):
        place = draw.randrange(len(damaged))
        match draw.randrange(3):
            case 0:
                damaged[place] = draw.randrange(256)
            case 1:
                damaged[place:place] = bytes(draw.choices(BYTES, k=draw.randrange(1, 4)))
            case _:
                del damaged[place : place + draw.randrange(1, 4)]
    return bytes(damaged)


@pytest.mark.parametrize("kind", FILES)
def test_any_damage_ends_in_one_sentence_or_in_prompts(kind: str, tmp_path: Path) -> None:
    path, draw = tmp_path / f"x.{kind}", random.Random(0)
    content = FILES[kind]
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"prompt": [f"a ball {i}" for i in range(30)]}), path)
        content = path.read_bytes()
    for turn in range(250):
        path.write_bytes(changed(content, draw))
        try:
            for text in read_source(DataConfig(prompts=str(path), skip_invalid=turn % 2 == 1)).texts:
                text.encode()
                assert "\0" not in text
        except RMDError as error:
            assert str(error).isprintable() and len(str(error)) < 900
