"""The files of a cache of encoded prompts: their names, how they are written, and how they are checked when read."""

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

from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, read_model, replacing
from rmd.common.typed import Strict

META, INDEX, NULL = "meta.json", "index.parquet", "null.safetensors"
AGAIN = "run the cache's `rmd cache` command again"
"""The advice for a cache that is incomplete or damaged."""
_COUNT = Annotated[int, Field(gt=0)]
_DIGITS = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class Meta(Strict):
    """The content of `meta.json`: the encoders, the number of prompts, and the shape of each tensor of one prompt."""

    family: str
    encoders: _DIGITS
    """Fingerprint of tokenizers and text encoders (`rmd.data.cache.encoders_key`)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    shapes: dict[str, tuple[_COUNT, ...]]
    prompts: _COUNT
    prompts_key: _DIGITS
    """SHA-256 of all prompts in order."""
    shard_prompts: _COUNT
    """Number of prompts in each shard except the last."""
    version: Literal[1] = 1

    @property
    def shards(self) -> int:
        """Number of shards in the cache."""
        return -(-self.prompts // self.shard_prompts)

    def of_shard(self, shard: int) -> slice:
        """Return the range of prompts that a shard holds."""
        return slice(shard * self.shard_prompts, min((shard + 1) * self.shard_prompts, self.prompts))


class Note(Strict):
    """The content of the JSON file beside a finished shard."""

    sha256: _DIGITS
    prompts: _COUNT
    version: Literal[1] = 1


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05}.safetensors"


def note_name(shard: int) -> str:
    """Return the name of the note beside a shard, which is written after the shard."""
    return f"shard-{shard:05}.json"


def ragged(shape: Sequence[int]) -> bool:
    """Return whether a tensor of one prompt, given by its shape, is a sequence, which is stored without padding."""
    return len(shape) == 2


def is_written(folder: Path, shard: int) -> bool:
    """Return whether a shard and its note exist."""
    return (folder / shard_name(shard)).is_file() and (folder / note_name(shard)).is_file()


def read_meta(folder: Path) -> Meta:
    """Read a cache's `meta.json`; raise RMDError if there is none, or if another version of RMD wrote it."""
    if not (folder / META).is_file():
        raise RMDError(f"{folder} is not a cache of prompts, since it has no {META}: build one with `rmd cache`")
    return read_model(folder / META, Meta)


def read_null(folder: Path, meta: Meta) -> dict[str, Tensor]:
    """Read the input of the unconditional branch, a batch of one; raise RMDError if it does not fit the cache."""
    path = folder / NULL
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot read {path} ({error}): {AGAIN} with another --out") from error
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {
        name: (1, *shape) for name, shape in meta.shapes.items()
    } or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise RMDError(f"{path} does not fit the cache, or holds values that are not finite: build the cache again")
    return tensors


def write_index(folder: Path, meta: Meta, prompts: Sequence[str]) -> None:
    """Write `index.parquet`, which gives the position of every prompt; it is the last file, and completes the cache."""
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
    """Return the prompts of a cache in order, checked against `meta.json`.

    Raises:
        RMDError: the cache is not complete, or the file is damaged or belongs to another cache.
    """
    import pyarrow

    path = folder / INDEX
    if not path.is_file():
        raise RMDError(f"the cache {folder} is not complete: {AGAIN}")
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
        raise RMDError(f"{path} is not readable as Parquet: remove it and {AGAIN}") from error
    raise RMDError(f"{path} does not fit the cache's {META}: remove it and {AGAIN}")


def write_shard(folder: Path, shard: int, tensors: Mapping[str, Tensor], prompts: int) -> None:
    """Write a shard, and then its note, each atomically."""
    path = folder / shard_name(shard)
    with writing(path) as partial:
        save_file(dict(tensors), partial)
        digest = sha256(partial)
    write_model(folder / note_name(shard), Note(sha256=digest, prompts=prompts))


def open_shard(folder: Path, shard: int, meta: Meta) -> Any:
    """Open a shard for reading single rows; raise RMDError if its tensors do not match `meta.json`."""
    path = folder / shard_name(shard)
    rows = meta.of_shard(shard)
    count = rows.stop - rows.start
    try:
        file: Any = safe_open(path, "pt")  # safetensors has no type annotations
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise RMDError(f"cannot read {path} ({error}): check the cache with `rmd cache --verify`") from error
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in meta.shapes.items():
        if ragged(shape):
            lengths = shapes.get(name, (0,))[:1]  # the first dimension is the sum of all prompts' lengths
            expected |= {name: (*lengths, shape[1]), f"{name}-offsets": (count + 1,)}
        else:
            expected[name] = (count, *shape)
    if shapes != expected:
        raise RMDError(f"{path} does not fit the cache's {META}: remove it and {AGAIN}")
    return file


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Replace a file as `replacing` does; raise RMDError if it cannot be written (disk full, read-only)."""
    with disk_errors(path), replacing(path) as partial:
        yield partial


def write_model(path: Path, model: Strict) -> None:
    """Write a model as JSON; raise RMDError if the file cannot be written."""
    with writing(path) as partial:
        partial.write_text(model.model_dump_json(indent=1), encoding="utf-8")


def prompts_key(prompts: Sequence[str]) -> str:
    """Return the SHA-256 of prompts in order, in hex."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def pyarrow_parquet() -> Any:
    """Return the module `pyarrow.parquet`; raise RMDError if it is not installed."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError("a cache of prompts needs `pip install 'rmd[data]'`") from error
    return parquet
