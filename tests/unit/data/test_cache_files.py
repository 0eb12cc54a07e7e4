"""Files of a cache that are damaged, or that RMD did not write, are refused when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from caches import PROMPTS, Encoding, build
from safetensors.torch import load_file, save_file

from rmd.common.errors import RMDError
from rmd.data.cache import PromptCache, verify_cache
from rmd.data.cache_files import INDEX, META, NULL, note_name, shard_name


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    assert build(tmp_path / "cache")
    return tmp_path / "cache"


def rewritten(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps(meta | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "has version 2, but this RMD reads version 1: update RMD to read it"),
        ({"prompts": "40"}, "prompts should be a whole number, but is '40'"),
        ({"prompts": 0}, "prompts should be greater than 0, but is 0"),
        ({"shard_prompts": 0}, "shard_prompts should be greater than 0, but is 0"),
        ({"shapes": {"letters": [64, -3]}}, "should be greater than 0, but is -3"),
        ({"dtype": "int8"}, "dtype should be"),
        ({"more": 1}, "there is no key more"),
    ],
    ids=range(7),
)
def test_a_meta_file_that_is_none_is_one_sentence(changes: dict[str, object], sentence: str, cache: Path) -> None:
    rewritten(cache, **changes)
    for use in (PromptCache, verify_cache, build):
        with pytest.raises(RMDError) as caught:
            use(cache)
        assert str(caught.value).startswith(f"{cache / META}") and sentence in str(caught.value)


def columns(cache: Path) -> dict[str, list[Any]]:
    return parquet.read_table(cache / INDEX).to_pydict()


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index | {"prompt": [*index["prompt"][1:], "another"]},
        lambda index: index | {"prompt": [None, *index["prompt"][1:]]},
        lambda index: index | {"row": [*index["row"][1:], 0]},
        lambda index: index | {"row": [2**40, *index["row"][1:]]},
        lambda index: index | {"shard": [-1, *index["shard"][1:]]},
        lambda index: index | {"shard": [float(i) for i in index["shard"]]},
        lambda index: {name: values[:-1] for name, values in index.items()},
        lambda index: {"prompt": index["prompt"]},
        lambda index: index | {"prompt": list(range(len(index["prompt"])))},
    ],
    ids=range(9),
)
def test_an_index_that_does_not_fit_is_refused(damage: Callable[[Any], Any], cache: Path) -> None:
    parquet.write_table(pa.table(damage(columns(cache))), cache / INDEX)
    for use in (PromptCache, verify_cache):
        with pytest.raises(RMDError, match=r"index\.parquet does not fit the cache's meta\.json: remove it and run"):
            use(cache)
    (cache / INDEX).write_bytes(b"PAR1")
    with pytest.raises(RMDError, match=r"index\.parquet is not readable as Parquet: remove it and run the cache's"):
        PromptCache(cache)
    assert build(cache) and len(PromptCache(cache)) == len(PROMPTS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: {"letters": tensors["letters"]},
        lambda tensors: tensors | {"more": tensors["length"].clone()},
        lambda tensors: tensors | {"letters": tensors["letters"][:, :5]},
        lambda tensors: tensors | {"length": tensors["length"] * float("nan")},
        lambda tensors: tensors | {"length": tensors["length"].expand(2, -1).contiguous()},
    ],
    ids=range(5),
)
def test_a_null_file_that_does_not_fit_is_refused(damage: Callable[[Any], Any], cache: Path) -> None:
    save_file(damage(load_file(cache / NULL)), cache / NULL)
    for use in (PromptCache, verify_cache):
        with pytest.raises(RMDError, match=r"null\.safetensors does not fit the cache, or holds values that are not"):
            use(cache)
    (cache / NULL).write_bytes(b"no tensors")
    with pytest.raises(RMDError, match=r"cannot read .*null\.safetensors"):
        PromptCache(cache)
    (cache / NULL).unlink()
    with pytest.raises(RMDError, match=r"cannot read .*null\.safetensors"):
        PromptCache(cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: {"letters": tensors["letters"]},
        lambda tensors: tensors | {"length": tensors["length"][:1]},
        lambda tensors: tensors | {"letters": tensors["letters"][:, :2].contiguous()},
        lambda tensors: tensors | {"letters": tensors["letters"][:5]},
        lambda tensors: tensors | {"letters-offsets": tensors["letters-offsets"] - 7},
        lambda tensors: tensors | {"letters-offsets": tensors["letters-offsets"] * 1000},
        lambda tensors: tensors | {"letters-offsets": tensors["letters-offsets"].flip(0)},
    ],
    ids=range(7),
)
def test_a_shard_that_does_not_fit_is_refused(damage: Callable[[Any], Any], cache: Path) -> None:
    save_file(damage(load_file(cache / shard_name(1))), cache / shard_name(1))
    with pytest.raises(RMDError, match=r"shard-00001\.safetensors (does not fit|is damaged)"):
        PromptCache(cache).encode(PROMPTS[3:6])
    with pytest.raises(RMDError, match=r"shard-00001\.safetensors is damaged: remove it and run"):
        verify_cache(cache)
    (cache / shard_name(1)).unlink()
    assert build(cache)
    assert torch.equal(
        PromptCache(cache).encode(PROMPTS).tensors["letters"], Encoding().encode(PROMPTS).tensors["letters"]
    )


def test_a_note_that_is_none_is_one_sentence(cache: Path) -> None:
    for content, sentence in (("{", "is not valid JSON"), ('{"sha256": 3, "prompts": 3}', "sha256 should be text")):
        (cache / note_name(1)).write_text(content)
        with pytest.raises(RMDError, match=rf"shard-00001\.json.* {sentence}"):
            verify_cache(cache)
