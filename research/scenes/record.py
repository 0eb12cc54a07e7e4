"""How the scenes' parts were made: `build.json`, and writing that ends in whole files or in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import ConfigDict
from torch import nn

from research.scenes.dataset import cached_scenes, renderer_key
from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, new_folder, read_model, write_text
from rmd.common.typed import Strict
from rmd.worlds.still.dataset import SceneSet

RECORD_NAME = "build.json"
PartName = Literal["vae", "decoder", "teacher", "judge", "references"]


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Data:
    """Scenes to render: how many, from which seed, and whether held-out combinations are left out (`training`)."""

    __pydantic_config__ = _STRICT

    count: int
    seed: int
    training: bool = True

    def render(self, cache: Path | None) -> SceneSet:
        return cached_scenes(self.count, seed=self.seed, training=self.training, cache=cache)


@dataclass(frozen=True)
class Part:
    """How one part was made; `seconds` is the training's wall time, `results` what was measured of it.

    `imitated` is the `weights_key` of the denoiser whose predictions a teacher learned, if it did not learn pictures.
    """

    __pydantic_config__ = _STRICT

    seed: int
    iterations: int
    data: tuple[Data, ...]
    seconds: float
    results: Mapping[str, int | float] = field(default_factory=dict)
    torch_version: str = field(default_factory=lambda: torch.__version__)
    threads: int = field(default_factory=torch.get_num_threads)
    imitated: str | None = None


class Record(Strict):
    """The content of `build.json`: how each part of a folder was made."""

    vae: Part | None = None
    decoder: Part | None = None
    teacher: Part | None = None
    judge: Part | None = None
    references: Part | None = None


def read_record(folder: Path) -> Record:
    """Read a folder's `build.json`; return an empty record if there is no such file.

    Raises:
        RMDError: the file cannot be read, or is not the record of a build.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return Record()
    try:
        return read_model(path, Record)
    except RMDError as error:
        raise RMDError(f"{error}; remove the file and run the command again") from error


def check_writable(out: Path) -> None:
    """Find out before a long training, not after it, that its result could not be written."""
    read_record(out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()


def record(folder: Path, name: PartName, part: Part | None) -> None:
    """Set a part in a folder's `build.json`; None removes it."""
    changed = read_record(folder).model_copy(update={name: part})
    with disk_errors(folder):
        write_text(folder / RECORD_NAME, changed.model_dump_json(indent=1, exclude_none=True) + "\n")


def build_key(*decides: object) -> str:
    """Twelve hexadecimal digits of everything that decides a result, the renderer included."""
    return hashlib.blake2b(repr((renderer_key(), *decides)).encode(), digest_size=6).hexdigest()


def checkpoint_path(cache: Path, name: str, *decides: object) -> Path:
    """Where a training keeps its state, by all that decides its result."""
    return cache / f"{name}-{build_key(*decides)}.pt"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights come from torch's global generator: seed it, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def to_half(*modules: object) -> None:
    """Cast networks to float16, all of each (diffusers' own `to` warns of parts that it would keep in float32)."""
    for module in modules:
        if isinstance(module, nn.Module):
            nn.Module.to(module, torch.float16)


class Savable(Protocol):
    """A diffusers model or pipeline."""

    def save_pretrained(self, save_directory: Path, /) -> object: ...


def save_halved(out: Path, name: str, made: Savable, networks: Iterable[object]) -> Path:
    """Write a trained model or pipeline into `<out>/<name>` with its networks in half precision; return that folder.

    The configurations do not record from which local folders networks were loaded, as diffusers' own would. Those of
    transformers say float32: transformers loads a network in the precision that its configuration names, diffusers in
    float32, and a pipeline with parts in different precisions cannot sample.
    """
    with new_folder(out / name) as partial:
        to_half(*networks)
        made.save_pretrained(partial)
        for path in partial.rglob("config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            told = config.copy()
            config.pop("_name_or_path", None)
            config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
            if config != told:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return out / name
