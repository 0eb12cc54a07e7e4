"""The record of a build, `build.json`, and helpers to save models and to name checkpoints."""

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

from research.scenes.dataset import WorldName, cached_scenes, renderer_key
from rmd.common.errors import RMDError
from rmd.common.files import disk_errors, new_folder, read_model, write_text
from rmd.common.typed import Strict
from rmd.worlds.dataset import SceneSet

RECORD_NAME = "build.json"
PartName = Literal["vae", "decoder", "teacher", "refinement", "judge", "references"]


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Data:
    """A set of pictures or clips to render.

    Attributes:
        count: number of pictures.
        seed: seed of the pictures.
        training: whether the held-out combinations of attributes are left out.
        world: the world of still pictures that they are of; clips have functions of their own.
        side: height and width in pixels.
        poor: whether pictures are wrong in their structure; see `rmd.worlds.vistas.render.sample_vistas`.
    """

    __pydantic_config__ = _STRICT

    count: int
    seed: int
    training: bool = True
    world: WorldName = "scenes"
    side: int = 64
    poor: bool = False

    def render(self, cache: Path | None) -> SceneSet:
        """Render the pictures, or read them from the cache."""
        return cached_scenes(
            self.count, seed=self.seed, training=self.training, size=self.side, world=self.world, poor=self.poor,
            cache=cache,
        )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """The making of a part.

    Attributes:
        seed: seed of the initial weights and the training.
        iterations: optimiser steps.
        data: the scenes that were used.
        seconds: wall time of the training.
        results: measurements of the result.
        torch_version, threads: the software and the number of CPU threads.
        imitated: `weights_key` of the denoiser that a teacher imitated; None if it learned from pictures.
        refined: `weights_key` of the denoiser with which a further training began; None for other trainings.
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
    refined: str | None = None


class Record(Strict):
    """Contents of `build.json`: how each part in a folder was made."""

    vae: Part | None = None
    decoder: Part | None = None
    teacher: Part | None = None
    refinement: Part | None = None
    judge: Part | None = None
    references: Part | None = None


def read_record(folder: Path) -> Record:
    """Return the record of a folder, which is empty if there is no `build.json`.

    Raises:
        RMDError: the file cannot be read, or is not a record.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return Record()
    try:
        return read_model(path, Record)
    except RMDError as error:
        raise RMDError(f"{error}; remove the file and run the command again") from error


def check_writable(out: Path) -> None:
    """Raise RMDError if a result could not be written to a folder; to be called before a long training."""
    read_record(out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()


def record(folder: Path, name: PartName, part: Part | None) -> None:
    """Set one part in the `build.json` of a folder; None removes it."""
    changed = read_record(folder).model_copy(update={name: part})
    with disk_errors(folder):
        write_text(folder / RECORD_NAME, changed.model_dump_json(indent=1, exclude_none=True) + "\n")


def build_key(*settings: object) -> str:
    """Return a hash (12 hexadecimal digits) of everything that determines a result, including the renderer's source."""
    return hashlib.blake2b(repr((renderer_key(), *settings)).encode(), digest_size=6).hexdigest()


def checkpoint_path(cache: Path, name: str, *settings: object) -> Path:
    """Return the file for the checkpoint of a training that is determined by these settings."""
    return cache / f"{name}-{build_key(*settings)}.pt"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which initial weights are drawn, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def to_half(*modules: object) -> None:
    """Cast networks to float16 as a whole; unlike diffusers' own `to`, this leaves no part in float32."""
    for module in modules:
        if isinstance(module, nn.Module):
            nn.Module.to(module, torch.float16)


class Savable(Protocol):
    """A diffusers model or pipeline."""

    def save_pretrained(self, save_directory: Path, /) -> object: ...


def save_halved(out: Path, name: str, model: Savable, networks: Iterable[object]) -> Path:
    """Save a trained model or pipeline in half precision as `<out>/<name>`, and return this folder.

    The local folders that networks were loaded from are removed from the configurations. The configurations of
    transformers are set to float32: transformers loads a network in the precision that its configuration names, but
    diffusers in float32, and a pipeline with parts in different precisions cannot sample.
    """
    with new_folder(out / name) as partial:
        to_half(*networks)
        model.save_pretrained(partial)
        for path in (*partial.rglob("config.json"), *partial.glob("model_index.json")):
            config = json.loads(path.read_text(encoding="utf-8"))
            original = config.copy()
            config.pop("_name_or_path", None)
            config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
            if config != original:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return out / name
