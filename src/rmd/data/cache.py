"""A cache of encoded prompts on disk: a run that uses it needs no text encoder, and no prompt is encoded twice.

A cache is a folder of safetensors shards with a fixed number of prompts each, a checksum beside every shard,
`index.parquet` (the position of every prompt), `null.safetensors` (the input of the unconditional branch) and
`meta.json` (the encoders that made the cache). Sequences are stored without padding, that is without rows that are
masked, or zero up to the end. Every file is written atomically, so an interrupted build can be continued, and several
workers may build one cache. A cache is identified by its contents only: the prompt file and the teacher's folder may
move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rmd.common.errors import RMDError, shown
from rmd.common.files import locked, read_errors, read_model, user_path
from rmd.common.workers import ALONE, START_LOCK, WAIT, Worker, working
from rmd.data.cache_files import (
    AGAIN,
    META,
    NULL,
    Meta,
    Note,
    is_written,
    note_name,
    open_shard,
    prompts_key,
    pyarrow_parquet,
    ragged,
    read_index,
    read_meta,
    read_null,
    sha256,
    shard_name,
    write_index,
    write_model,
    write_shard,
    writing,
)
from rmd.data.captions import check_prompts
from rmd.models.base import Backbone
from rmd.models.cond import Cond

SHARD_PROMPTS = 1024
"""Default number of prompts in a shard."""
_OPEN_SHARDS = 16
"""Number of shards that a reader keeps open."""
_PROBES = ("a photo of a red ball", "Ein Bär, 35 °C & Ελλάδα", "日本の猫 🐱", "   --ar 3:2\n", "x" * 100)
"""Texts whose tokens distinguish tokenizers that do not reveal their vocabulary."""


def encoders_key(backbone: Backbone) -> str:
    """Return a fingerprint of a pipeline's tokenizers and text encoders, as sixteen hexadecimal digits.

    About sixty evenly spaced values of every weight are hashed, so that even the largest encoder takes little time.

    Raises:
        RMDError: a tokenizer cannot be identified.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, part in sorted(backbone.pipe.components.items()):
        if part is None or not name.startswith(("text_encoder", "tokenizer")):
            continue
        digest.update(name.encode())
        if isinstance(part, nn.Module):
            for key, value in part.state_dict().items():
                flat = value.detach().flatten()
                picked = flat[:: max(1, flat.numel() // 64)].float().cpu().half()
                digest.update(f"{key}{tuple(value.shape)}".encode() + picked.numpy().tobytes())
        else:
            digest.update(_vocabulary(name, part).encode())
            digest.update(str(getattr(part, "model_max_length", None)).encode())
    return digest.hexdigest()


def _vocabulary(name: str, part: Any) -> str:
    """Return what identifies a tokenizer: its vocabulary, or else its tokens for a few texts."""
    try:
        return json.dumps(part.get_vocab(), sort_keys=True)
    except (AttributeError, NotImplementedError, TypeError):  # a processor, or a tokenizer with a vocabulary of bytes
        tokenizer = getattr(part, "tokenizer", part)
    try:
        return json.dumps([[int(i) for i in tokenizer(text)["input_ids"]] for text in _PROBES])
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise RMDError(
            f"the teacher's {name} ({type(part).__name__}) gives neither a vocabulary nor the tokens of a text, so a "
            "cache cannot record which tokenizer made it: train without data.cache"
        ) from error


@torch.no_grad()
def build_cache(
    backbone: Backbone, texts: Sequence[str], folder: Path, *, shard_prompts: int = SHARD_PROMPTS, batch_size: int = 32,
    worker: Worker = ALONE, progress: Callable[[int, int], None] | None = None,
) -> bool:  # fmt: skip
    """Encode prompts into a cache, continuing an earlier build that was interrupted.

    Args:
        backbone: the teacher, whose text encoders are used.
        texts: the prompts; repetitions are left out.
        folder: the folder of the cache, which is created if necessary.
        shard_prompts: number of prompts in a shard.
        batch_size: number of prompts that are encoded at once.
        worker: (index, n): one of n workers, which writes every n-th shard. The worker that completes the shards
            writes the index.
        progress: called with the number of this worker's prompts that are done, and their total.

    Returns:
        Whether the cache is complete.

    Raises:
        RMDError: the folder holds another cache or something else, another process builds the same part of it, it
            cannot be written, a prompt cannot be encoded, or pyarrow is not installed.
    """
    pyarrow_parquet()
    prompts = list(dict.fromkeys(check_prompts(texts)))
    meta = _meta_of(backbone, prompts, shard_prompts)
    with _started(folder, meta, backbone, worker):
        mine = range(worker[0], meta.shards, worker[1])
        total = sum(len(prompts[meta.of_shard(shard)]) for shard in mine)
        done = 0
        for shard in mine:
            part = prompts[meta.of_shard(shard)]
            if not is_written(folder, shard):
                batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
                encoded = [_finite(backbone.encode(batch).to("cpu"), batch) for batch in batches]
                write_shard(folder, shard, _packed(Cond.cat(encoded)), len(part))
            done += len(part)
            if progress is not None:
                progress(done, total)
        complete = all(is_written(folder, shard) for shard in range(meta.shards))
        if complete:
            with locked(folder, START_LOCK, wait=WAIT):
                write_index(folder, meta, prompts)
    return complete


def _meta_of(backbone: Backbone, prompts: Sequence[str], shard_prompts: int) -> Meta:
    example = backbone.encode(prompts[:1])
    dtype = next(t.dtype for t in example.tensors.values() if t.is_floating_point())
    return Meta(
        family=backbone.family,
        encoders=encoders_key(backbone),
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]  # pydantic checks it
        shapes={name: tuple(tensor.shape[1:]) for name, tensor in example.tensors.items()},
        prompts=len(prompts),
        prompts_key=prompts_key(prompts),
        shard_prompts=shard_prompts,
    )


class PromptCache:
    """Reads a cache: `encode` returns what the text encoders returned for the prompts in it."""

    def __init__(self, folder: Path) -> None:
        """Open a complete cache; raise RMDError if there is none, or if one of its files is damaged."""
        pyarrow_parquet()
        self.folder = user_path(str(folder))
        self.meta = read_meta(self.folder)
        self._where = {prompt: i for i, prompt in enumerate(read_index(self.folder, self.meta))}
        self._null = Cond(read_null(self.folder, self.meta))
        self._shard = lru_cache(_OPEN_SHARDS)(lambda shard: open_shard(self.folder, shard, self.meta))

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._where

    def check(self, backbone: Backbone, prompts: Sequence[str] = ()) -> None:
        """Check that the cache belongs to the backbone's text encoders, if it has any, and holds all prompts.

        Raises:
            RMDError: another family or other encoders made the cache, or it lacks a prompt.
        """
        if backbone.family != self.meta.family:
            raise RMDError(
                f"the cache {self.folder} belongs to the family {self.meta.family}, not to {backbone.family}: build "
                "one with `rmd cache` for this teacher"
            )
        if backbone.text_encoders and encoders_key(backbone) != self.meta.encoders:
            raise RMDError(
                f"the cache {self.folder} was made by other text encoders than this teacher's: build one with "
                "`rmd cache` for this teacher"
            )
        missing = [prompt for prompt in prompts if prompt not in self._where]
        if missing:
            raise RMDError(
                f"{len(missing)} of {len(prompts)} prompts are not in the cache {self.folder}, the first of them "
                f"{shown(missing[0])}: build a cache of these prompts"
            )

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Return the encoded prompts as one batch, padded as the encoders pad; raise RMDError if one is not cached."""
        rows = [self._read(prompt) for prompt in prompts]
        return Cond({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def null(self, count: int) -> Cond:
        """Return the input of the unconditional branch as a batch of `count` equal rows."""
        return self._null.expand(count)

    def _read(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._where:
            raise RMDError(
                f"the prompt {shown(prompt)} is not in the cache {self.folder}: build a cache of these prompts"
            )
        shard, row = divmod(self._where[prompt], self.meta.shard_prompts)
        file, tensors = self._shard(shard), {}
        for name, shape in self.meta.shapes.items():
            if not ragged(shape):
                tensors[name] = file.get_slice(name)[row]
                continue
            start, stop = (int(v) for v in file.get_slice(f"{name}-offsets")[row : row + 2])
            values = file.get_slice(name)[start:stop] if 0 <= start <= stop <= start + shape[0] else None
            if values is None or len(values) != stop - start:
                raise RMDError(f"{self.folder / shard_name(shard)} is damaged: check it with `rmd cache --verify`")
            tensors[name] = torch.zeros(shape, dtype=values.dtype)
            tensors[name][: stop - start] = values
        return tensors


def verify_cache(folder: Path) -> int:
    """Compare every shard of a cache with its checksum, check its other files, and return the number of shards.

    Raises:
        RMDError: a file is missing or damaged; the message names it.
    """
    pyarrow_parquet()
    meta = read_meta(folder)
    for shard in range(meta.shards):
        path, note = folder / shard_name(shard), folder / note_name(shard)
        if not (path.is_file() and note.is_file()):
            raise RMDError(f"the cache {folder} lacks {path.name}: {AGAIN}")
        rows = meta.of_shard(shard)
        with read_errors(path):
            digest = sha256(path)
        if read_model(note, Note) != Note(sha256=digest, prompts=rows.stop - rows.start):
            raise RMDError(f"{path} is damaged: remove it and {AGAIN}")
        open_shard(folder, shard, meta)
    read_index(folder, meta)
    read_null(folder, meta)
    return meta.shards


@contextmanager
def _started(folder: Path, meta: Meta, backbone: Backbone, worker: Worker) -> Iterator[None]:
    """Start a cache, or continue the same one, and hold this worker's lock."""

    def begin() -> None:
        _check_folder(folder, meta)
        if not (folder / META).is_file():
            null = _finite(backbone.null(1).to("cpu"), [""])
            with writing(folder / NULL) as partial:
                save_file({name: tensor.contiguous() for name, tensor in null.tensors.items()}, partial)
            write_model(folder / META, meta)

    _check_folder(folder, meta)  # before a lock file is left in a folder of something else
    with working(folder, worker, begin):
        yield


def _check_folder(folder: Path, meta: Meta) -> None:
    """Raise RMDError if a folder holds another cache or anything else; leftovers of a killed build are allowed."""
    if (folder / META).is_file():
        if read_meta(folder) != meta:
            raise RMDError(f"{folder} holds a cache of other prompts or other encoders: choose another --out")
    elif folder.is_dir() and any(not (path.name == NULL or path.name.startswith(".")) for path in folder.iterdir()):
        raise RMDError(f"{folder} is neither empty nor a cache: choose another --out")


def _finite(cond: Cond, prompts: Sequence[str]) -> Cond:
    """Return the encoded prompts; raise RMDError, naming the prompt, if any value is not finite."""
    for tensor in cond.tensors.values():
        finite = tensor.isfinite().flatten(1).all(1)
        if not finite.all():
            prompt = prompts[int(finite.int().argmin())]
            raise RMDError(
                f"the text encoders return values that are not finite for the prompt {shown(prompt)}: encode in "
                "float32 (without --half), or check the teacher's weights"
            )
    return cond


def _packed(cond: Cond) -> dict[str, Tensor]:
    """Return the tensors of a shard: sequences concatenated without padding, with the offset of each."""
    tensors: dict[str, Tensor] = {}
    mask = cond.tensors.get("mask")
    for name, tensor in cond.tensors.items():
        if not ragged(tensor.shape[1:]):
            tensors[name] = tensor.contiguous()
            continue
        lengths = _lengths(tensor, mask)
        tensors[name] = torch.cat([row[:length] for row, length in zip(tensor, lengths, strict=True)]).contiguous()
        tensors[f"{name}-offsets"] = torch.tensor([0, *lengths]).cumsum(0)
    return tensors


def _lengths(tensor: Tensor, mask: Tensor | None) -> list[int]:
    """Return the length of each sequence without its padding: the rows that are masked, or zero up to the end."""
    used = mask > 0 if mask is not None else tensor.abs().amax(-1) > 0
    positions = torch.arange(1, tensor.shape[1] + 1)
    return [int(n) for n in (used.cpu() * positions).amax(1)]
