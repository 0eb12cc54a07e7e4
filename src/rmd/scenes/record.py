"""How the scenes' parts were made: `build.json`, and writing that ends in whole files or in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import nn

from rmd.errors import RMDError
from rmd.scenes.dataset import SceneSet, make_scenes, renderer_key

RECORD_NAME = "build.json"


@dataclass(frozen=True)
class Data:
    """Scenes to render: how many, from which seed, and whether held-out combinations are left out (`training`)."""

    count: int
    seed: int
    training: bool = True

    def render(self, cache: Path | None) -> SceneSet:
        return make_scenes(self.count, seed=self.seed, training=self.training, cache=cache)


@dataclass(frozen=True)
class Part:
    """How one part was made; `seconds` is the training's wall time, `results` what was measured of it.

    `imitated` is the `weights_key` of the denoiser whose predictions a teacher learned, if it did not learn pictures.
    """

    seed: int
    iterations: int
    data: tuple[Data, ...]
    seconds: float
    results: dict[str, float] = field(default_factory=dict)
    torch_version: str = field(default_factory=lambda: torch.__version__)
    threads: int = field(default_factory=torch.get_num_threads)
    imitated: str | None = None


def read_record(folder: Path) -> dict[str, dict[str, object]]:
    """The parts in a folder's `build.json` by name, none without such a file; RMDError when it cannot be read."""
    path = folder / RECORD_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RMDError(f"cannot read {path} ({error}): remove it and run the command again") from error
    if not isinstance(found, dict):
        raise RMDError(f"{path} is not the record of a build: remove it and run the command again")
    return found


def check_writable(out: Path) -> None:
    """Find out before a long training, not after it, that its result could not be written."""
    read_record(out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()


def record(folder: Path, name: str, part: Part | Mapping[str, object]) -> None:
    """Set a part in a folder's `build.json`."""
    values = asdict(part) if isinstance(part, Part) else dict(part)
    with disk_errors(folder):
        _write(folder / RECORD_NAME, read_record(folder) | {name: values})


def build_key(*decides: object) -> str:
    """Twelve hexadecimal digits of everything that decides a result, the renderer included."""
    return hashlib.blake2b(repr((renderer_key(), *decides)).encode(), digest_size=6).hexdigest()


def checkpoint_path(cache: Path, name: str, *decides: object) -> Path:
    """Where a training keeps its state, by all that decides its result."""
    return cache / f"{name}-{build_key(*decides)}.pt"


def weights_key(module: nn.Module) -> str:
    """Twelve hexadecimal digits of a network's weights."""
    found = hashlib.blake2b(digest_size=6)
    for tensor in module.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


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


def _write(path: Path, parts: Mapping[str, object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block has filled it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(folder):
        try:
            yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """RMDError when a folder that is to be written holds something, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RMDError(f"{folder} exists and is not an empty folder: choose another --out")


class Savable(Protocol):
    """A diffusers model or pipeline."""

    def save_pretrained(self, save_directory: Path, /) -> object: ...


def save_halved(out: Path, name: str, made: Savable, networks: Iterable[object]) -> Path:
    """Write a trained model or pipeline into `<out>/<name>`, its networks in half precision; returns that folder.

    The configurations do not say from which folders of this machine networks were loaded, as diffusers' own would.
    """
    with new_folder(out / name) as partial:
        to_half(*networks)
        made.save_pretrained(partial)
        for path in partial.rglob("config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            if config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return out / name


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what a failing disk raises into the sentence a user is meant to see."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RMDError(f"cannot write {where}: {reason}; put that right and run the command again") from error
