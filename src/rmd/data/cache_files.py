"""The files of a cache of encoded prompts: their names, how they are written, and the checks when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmd.errors import RMDError
from rmd.files import disk_errors, read_model, replacing
from rmd.typed import Strict

META, INDEX, NULL = "meta.json", "index.parquet", "null.safetensors"
START_LOCK = ".rmd-start.lock"
"""Held by the worker that begins or ends the cache, for a moment."""
_AGAIN = "run the cache's `rmd cache` command again"
_COUNT = Annotated[int, Field(gt=0)]
_DIGITS = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class Meta(Strict):
    """What `meta.json` says: who encoded the prompts, how many, and the shape of each tensor of one prompt."""

    family: str
    encoders: _DIGITS
    """Fingerprint of tokenizers and text encoders (`rmd.data.cache.encoders_key`)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    shapes: dict[str, tuple[_COUNT, ...]]
    prompts: _COUNT
    prompts_key: _DIGITS
    """SHA-256 of all prompts in their order."""
    shard_prompts: _COUNT
    """Prompts in each shard but the last."""
    version: Literal[1] = 1

    @property
    def shards(self) -> int:
        """How many shards the cache has."""
        return -(-self.prompts // self.shard_prompts)

    def of_shard(self, shard: int) -> slice:
        """Which prompts a shard holds."""
        return slice(shard * self.shard_prompts, min((shard + 1) * self.shard_prompts, self.prompts))


class Note(Strict):
    """What stands beside a shard that is finished."""

    sha256: _DIGITS
    prompts: _COUNT
    version: Literal[1] = 1


def shard_name(shard: int) -> str:
    """The name of a shard's file."""
    return f"shard-{shard:05}.safetensors"


def note_name(shard: int) -> str:
    """The name of the note beside a shard, which is written after it."""
    return f"shard-{shard:05}.json"


def worker_lock(worker: tuple[int, int]) -> str:
    """The name of the lock that a worker holds while it builds."""
    return f".rmd-worker-{worker[0]}-of-{worker[1]}.lock"


def ragged(shape: Sequence[int]) -> bool:
    """Whether a tensor of one prompt is a sequence of vectors, which is stored without its filling."""
    return len(shape) == 2


def is_written(folder: Path, shard: int) -> bool:
    """Whether a shard and its note are there."""
    return (folder / shard_name(shard)).is_file() and (folder / note_name(shard)).is_file()


def read_meta(folder: Path) -> Meta:
    """A cache's `meta.json`; RMDError if there is none, or another version of RMD wrote it."""
    if not (folder / META).is_file():
        raise RMDError(f"{folder} is no cache of prompts: it has no {META}; build one with `rmd cache`")
    return read_model(folder / META, Meta)


def read_null(folder: Path, meta: Meta) -> dict[str, Tensor]:
    """What the unconditional branch gets: a batch of one; RMDError if the file does not fit the cache."""
    path = folder / NULL
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot read {path} ({error}): {_AGAIN} with another --out") from error
    if {name: tuple(tensor.shape) for name, tensor in found.items()} != {
        name: (1, *shape) for name, shape in meta.shapes.items()
    } or not all(tensor.isfinite().all() for tensor in found.values()):
        raise RMDError(f"{path} does not fit the cache, or holds values that are not finite: build the cache again")
    return found


def write_index(folder: Path, meta: Meta, prompts: Sequence[str]) -> None:
    """Write `index.parquet`, which says where every prompt is. It is the last file of a cache: then it is complete."""
    import pyarrow

    table = pyarrow.table(
        {
            "prompt": prompts,
            "hash": [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts],
            "shard": [i // meta.shard_prompts for i in range(len(prompts))],
            "row": [i % meta.shard_prompts for i in range(len(prompts))],
        }
    )
    with writing(folder / INDEX) as partial:
        pyarrow_parquet().write_table(table, partial)


def read_index(folder: Path, meta: Meta) -> list[str]:
    """The prompts of a cache in their order, checked against `meta.json`.

    Raises:
        RMDError: the cache is not complete, or the file is damaged or of another cache.
    """
    import pyarrow

    path = folder / INDEX
    if not path.is_file():
        raise RMDError(f"the cache {folder} is not complete: run its `rmd cache` command again")
    try:
        table = pyarrow_parquet().read_table(path)
        kinds = [(field.name, str(field.type)) for field in table.schema]
        if kinds == [("prompt", "string"), ("hash", "string"), ("shard", "int64"), ("row", "int64")]:
            prompts: list[str] = table.column("prompt").to_pylist()
            places = zip(table.column("shard").to_pylist(), table.column("row").to_pylist(), strict=True)
            if (
                len(prompts) == meta.prompts
                and None not in prompts
                and prompts_key(prompts) == meta.prompts_key
                and all(place == divmod(i, meta.shard_prompts) for i, place in enumerate(places))
            ):
                return prompts
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise RMDError(f"{path} is not readable as Parquet: remove it and {_AGAIN}") from error
    raise RMDError(f"{path} does not fit the cache's {META}: remove it and {_AGAIN}")


def write_shard(folder: Path, shard: int, tensors: Mapping[str, Tensor], prompts: int) -> None:
    """Write a shard and then its note, each whole or not at all."""
    path = folder / shard_name(shard)
    with writing(path) as partial:
        save_file(dict(tensors), partial)
        digest = sha256(partial)
    write_model(folder / note_name(shard), Note(sha256=digest, prompts=prompts))


def open_shard(folder: Path, shard: int, meta: Meta) -> Any:
    """Open a shard to read single rows of it; RMDError if its tensors are not what `meta.json` says."""
    path = folder / shard_name(shard)
    rows = meta.of_shard(shard)
    count = rows.stop - rows.start
    try:
        file: Any = safe_open(path, "pt")  # which has no types
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot read {path} ({error}): check the cache with `rmd cache --verify`") from error
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in meta.shapes.items():
        if ragged(shape):
            lengths = found.get(name, (0,))[:1]  # the sum of all prompts' lengths
            expected |= {name: (*lengths, shape[1]), f"{name}-offsets": (count + 1,)}
        else:
            expected[name] = (count, *shape)
    if found != expected:
        raise RMDError(f"{path} does not fit the cache's {META}: remove it and {_AGAIN}")
    return file


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `rmd.files.replacing`, with RMDError for a file that cannot be written: a full disk, a folder to read only."""
    with disk_errors(path), replacing(path) as partial:
        yield partial


def write_model(path: Path, model: Strict) -> None:
    """Write a model as JSON; RMDError if the file cannot be written."""
    with writing(path) as partial:
        partial.write_text(model.model_dump_json(indent=1), encoding="utf-8")


def prompts_key(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts in their order, in hex."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`; RMDError if it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError("a cache of prompts needs `pip install 'rmd[data]'`") from error
    return parquet
