"""Encoded prompts on disk: a run then needs no text encoder, and no prompt is encoded twice.

A cache is a folder of safetensors shards of so many prompts each, a checksum beside every shard, `index.parquet` (which
prompt is where), `null.safetensors` (what the unconditional branch gets) and `meta.json` (which encoders made it).
Sequences are stored without their filling: rows that a mask hides, or that are zero to the end. Every shard is written
whole or not at all, so an interrupted build goes on, and several workers may build one cache.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rmd.backbones.base import Backbone, Cond
from rmd.errors import RMDError

META, INDEX, NULL = "meta.json", "index.parquet", "null.safetensors"
SHARD_PROMPTS = 1024
_OPEN_SHARDS = 16


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says: who encoded the prompts, how many, and the shape of each tensor of one prompt."""

    family: str
    encoders: str
    """Fingerprint of tokenizers and text encoders (`encoders_key`)."""
    dtype: str
    shapes: dict[str, list[int]]
    prompts: int
    prompts_key: str
    shard_prompts: int
    version: int = 1

    @property
    def shards(self) -> int:
        return -(-self.prompts // self.shard_prompts)


def encoders_key(backbone: Backbone) -> str:
    """Sixteen hexadecimal digits that change with a pipeline's tokenizers and the weights of its text encoders.

    Of every weight some sixty values are read, evenly spread, so that the largest encoder takes moments.
    """
    found = hashlib.blake2b(digest_size=8)
    for name, part in sorted(backbone.pipe.components.items()):
        if part is None or not name.startswith(("text_encoder", "tokenizer")):
            continue
        found.update(name.encode())
        if isinstance(part, nn.Module):
            for key, value in part.state_dict().items():
                flat = value.detach().flatten()
                picked = flat[:: max(1, flat.numel() // 64)].float().cpu().half()
                found.update(f"{key}{tuple(value.shape)}".encode() + picked.numpy().tobytes())
        else:
            found.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
            found.update(str(part.model_max_length).encode())
    return found.hexdigest()


@torch.no_grad()
def build_cache(
    backbone: Backbone, texts: Sequence[str], folder: Path, *, shard_prompts: int = SHARD_PROMPTS, batch_size: int = 32,
    worker: tuple[int, int] = (0, 1), progress: Callable[[int, int], None] | None = None,
) -> bool:  # fmt: skip
    """Encode prompts into a cache, going on where an earlier build stopped.

    Args:
        worker: (which, of how many): a worker writes every so-many-th shard. Whoever finds all shards there writes the
            index.
        progress: is given how many of this worker's prompts are done, and how many there are.

    Returns:
        Whether the cache is complete.

    Raises:
        RMDError: the folder holds another cache or something else, cannot be written, or pyarrow is not installed.
    """
    _pyarrow()
    prompts = list(dict.fromkeys(texts))
    example = backbone.encode(prompts[:1])
    dtype = next(t.dtype for t in example.tensors.values() if t.is_floating_point())
    meta = Meta(
        family=backbone.family,
        encoders=encoders_key(backbone),
        dtype=str(dtype).removeprefix("torch."),
        shapes={name: list(tensor.shape[1:]) for name, tensor in example.tensors.items()},
        prompts=len(prompts),
        prompts_key=_prompts_key(prompts),
        shard_prompts=shard_prompts,
    )
    _start(folder, meta, backbone.null(1))
    mine = range(worker[0], meta.shards, worker[1])
    total = sum(len(_of_shard(prompts, meta, shard)) for shard in mine)
    done = 0
    for shard in mine:
        part = _of_shard(prompts, meta, shard)
        if not _is_written(folder, shard):
            batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
            encoded = [backbone.encode(batch).to("cpu") for batch in batches]
            _write_shard(folder, shard, part, Cond.cat(encoded))
        done += len(part)
        if progress is not None:
            progress(done, total)
    complete = all(_is_written(folder, shard) for shard in range(meta.shards))
    if complete:
        _write_index(folder, meta, prompts)
    return complete


class PromptCache:
    """Reads a cache: `encode` gives what the encoders would have given, for prompts that are in it."""

    def __init__(self, folder: Path) -> None:
        """Open a complete cache; RMDError if there is none."""
        parquet = _pyarrow()
        self.folder, self.meta = folder, read_meta(folder)
        if not (folder / INDEX).is_file():
            raise RMDError(f"the cache {folder} is not complete: run its `rmd cache` command again")
        table = parquet.read_table(folder / INDEX)
        rows = zip(*(table.column(name).to_pylist() for name in ("prompt", "shard", "row")), strict=True)
        self._where = {prompt: (shard, row) for prompt, shard, row in rows}
        self._null = Cond(load_file(folder / NULL))
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._where)

    def check(self, backbone: Backbone) -> None:
        """RMDError unless the backbone has the encoders that made the cache, or none at all."""
        if backbone.family != self.meta.family:
            raise RMDError(f"the cache {self.folder} is of the family {self.meta.family}, not {backbone.family}")
        if backbone.text_encoders and encoders_key(backbone) != self.meta.encoders:
            raise RMDError(
                f"the cache {self.folder} was made by other text encoders than this teacher's: build one with "
                "`rmd cache` for this teacher"
            )

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encoded prompts, filled up as the encoders fill them; RMDError for one that is not in the cache."""
        rows = [self._read(prompt) for prompt in prompts]
        return Cond({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def null(self, count: int) -> Cond:
        """What the unconditional branch gets, `count` times."""
        return self._null.expand(count)

    def _read(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._where:
            raise RMDError(
                f"the prompt {prompt[:60]!r} is not in the cache {self.folder}: build the cache of these prompts"
            )
        shard, row = self._where[prompt]
        file, found = self._shard(shard), {}
        for name, shape in self.meta.shapes.items():
            if not _ragged(shape):
                found[name] = file.get_slice(name)[row]
                continue
            start, stop = (int(v) for v in file.get_slice(f"{name}-offsets")[row : row + 2])
            values = file.get_slice(name)[start:stop]
            found[name] = torch.zeros(shape, dtype=values.dtype)
            found[name][: stop - start] = values
        return found

    def _shard(self, shard: int) -> Any:
        """An open shard; few are kept open."""
        if shard not in self._open:
            path = self.folder / _shard_name(shard)
            try:
                self._open[shard] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise RMDError(f"cannot read {path} ({error}): check the cache with `rmd cache --verify`") from error
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def read_meta(folder: Path) -> Meta:
    """A cache's `meta.json`; RMDError if there is none."""
    path = folder / META
    if not path.is_file():
        raise RMDError(f"{folder} is no cache of prompts: it has no {META}; build one with `rmd cache`")
    try:
        return Meta(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RMDError(f"{path} is not readable ({error}): build the cache again in another folder") from error


def verify_cache(folder: Path) -> int:
    """Compare every shard with its checksum; returns how many there are.

    Raises:
        RMDError: one is missing or damaged, named.
    """
    meta = read_meta(folder)
    for shard in range(meta.shards):
        path, note = folder / _shard_name(shard), folder / _note_name(shard)
        if not (path.is_file() and note.is_file()):
            raise RMDError(f"the cache {folder} lacks {path.name}: run its `rmd cache` command again")
        if json.loads(note.read_text(encoding="utf-8"))["sha256"] != _sha256(path):
            raise RMDError(f"{path} is damaged: remove it and run the cache's `rmd cache` command again")
    return meta.shards


def _start(folder: Path, meta: Meta, null: Cond) -> None:
    """Write `null.safetensors` and `meta.json`, or find the same one there."""
    path = folder / META
    if path.is_file():
        if read_meta(folder) != meta:
            raise RMDError(f"{folder} holds the cache of other prompts or other encoders: choose another --out")
        return
    if folder.exists() and any(found.name != NULL for found in folder.iterdir()):
        raise RMDError(f"{folder} is not empty and no cache: choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in null.tensors.items()}, folder / NULL)
        _write_text(path, json.dumps(vars(meta), indent=1))
    except OSError as error:
        raise RMDError(f"cannot write {path}: {error.strerror or error}") from error


def _write_shard(folder: Path, shard: int, prompts: Sequence[str], cond: Cond) -> None:
    tensors: dict[str, Tensor] = {}
    mask = cond.tensors.get("mask")
    for name, tensor in cond.tensors.items():
        if not _ragged(list(tensor.shape[1:])):
            tensors[name] = tensor.contiguous()
            continue
        lengths = _lengths(tensor, mask)
        tensors[name] = torch.cat([row[:length] for row, length in zip(tensor, lengths, strict=True)]).contiguous()
        tensors[f"{name}-offsets"] = torch.tensor([0, *lengths]).cumsum(0)
    path = folder / _shard_name(shard)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial)
        digest = _sha256(partial)
        partial.replace(path)
        _write_text(folder / _note_name(shard), json.dumps({"sha256": digest, "prompts": len(prompts)}))
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RMDError(f"cannot write {path}: {reason}; put that right and run the command again") from error


def _write_index(folder: Path, meta: Meta, prompts: Sequence[str]) -> None:
    import pyarrow

    parquet = _pyarrow()
    table = pyarrow.table(
        {
            "prompt": prompts,
            "hash": [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts],
            "shard": [i // meta.shard_prompts for i in range(len(prompts))],
            "row": [i % meta.shard_prompts for i in range(len(prompts))],
        }
    )
    partial = folder / f".{INDEX}.partial"
    parquet.write_table(table, partial)
    partial.replace(folder / INDEX)


def _lengths(tensor: Tensor, mask: Tensor | None) -> list[int]:
    """How many rows of each sequence mean something: those a mask shows, or all before the zeros at the end."""
    shown = mask > 0 if mask is not None else tensor.abs().amax(-1) > 0
    positions = torch.arange(1, tensor.shape[1] + 1)
    return [int(n) for n in (shown.cpu() * positions).amax(1)]


def _ragged(shape: Sequence[int]) -> bool:
    """Whether a tensor of one prompt is a sequence of vectors."""
    return len(shape) == 2


def _of_shard(prompts: Sequence[str], meta: Meta, shard: int) -> Sequence[str]:
    return prompts[shard * meta.shard_prompts : (shard + 1) * meta.shard_prompts]


def _is_written(folder: Path, shard: int) -> bool:
    return (folder / _shard_name(shard)).is_file() and (folder / _note_name(shard)).is_file()


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05}.safetensors"


def _note_name(shard: int) -> str:
    return f"shard-{shard:05}.json"


def _prompts_key(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise RMDError("a cache of prompts needs `pip install 'rmd[data]'`") from error
    return parquet
