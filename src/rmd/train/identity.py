"""The identity of a run: its settings, teacher, prompts and images, compared by content and never by path."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.common.files import reason
from rmd.common.typed import Strict
from rmd.data.images import ImageFolder, Images
from rmd.train.weights import TeacherWeights

SAMPLED = 64
"""Approximate number of values of each weight in a fingerprint, evenly spaced."""
HEAD = 4096
"""Number of bytes of each image file in a fingerprint, in addition to its size."""


class Identity(Strict):
    """Everything that decides a run's iterations; a run resumes only from a checkpoint of the same identity."""

    run_hash: str
    """Hash of the settings (`rmd.recipes.hashes.run_hash`)."""
    prompts: int
    """Number of prompts."""
    prompts_key: str
    teacher_key: str
    images_key: str | None

    def check(self, made: Identity, what: str) -> None:
        """Raise RMDError, which says what differs, unless a run of this identity made `what`."""
        if made.run_hash != self.run_hash:
            raise another_recipe(what)
        if made.prompts_key != self.prompts_key:
            counts = f"{made.prompts:,} then, {self.prompts:,} now"
            raise RMDError(f"{what} was made with other prompts ({counts}): {_advice('prompts')}")
        if made.teacher_key != self.teacher_key:
            raise RMDError(f"{what} was made with another teacher, of other weights: {_advice('teacher')}")
        if made.images_key != self.images_key:
            raise RMDError(f"{what} was made with other images: {_advice('images')}")


def another_recipe(what: str) -> RMDError:
    """Return the error for something that was made with other settings."""
    return RMDError(
        f"{what} is of another recipe: resume with the settings it was made with, add --reset-optimizer to go on from "
        "its weights, or choose another --out"
    )


def _advice(what: Literal["prompts", "teacher", "images"]) -> str:
    return f"resume with the same {what}, add --reset-optimizer to go on with these, or choose another --out"


def network_key(network: nn.Module, weights: TeacherWeights | None = None) -> str:
    """Return a hash of a network's class, its configuration, and about `SAMPLED` values of each parameter.

    The hash is the same whether the network holds its weights or they are still to be read from files. It does not
    depend on the folder that they were loaded from or on the version of diffusers.

    Args:
        weights: tells in which files the weights are, for a network that does not hold them yet.

    Raises:
        RMDError: a file cannot be read.
    """
    names, samples = [], []
    for name, value in (
        sorted(network.named_parameters(), key=itemgetter(0)) if weights is None else _stored(network, weights)
    ):
        flat = value.detach().flatten()
        picked = flat[:: max(1, flat.numel() // SAMPLED)]
        samples.append((picked if weights is None else picked.to(weights.dtypes[name])).float())
        names.append(f"{name}{tuple(value.shape)}")
    values = torch.cat(samples).cpu().numpy().tobytes() if samples else b""
    return _hash(type(network).__name__.encode(), json.dumps([_settings(network), names]).encode(), values)


def images_key(images: Images | None) -> str | None:
    """Return a hash of the captions and the beginnings of all image files, or of the renders; None without images."""
    if images is None:
        return None
    captions = json.dumps(list(images.source.captions)).encode()
    if not isinstance(images.source, ImageFolder):
        return _hash(captions, images.source.images.contiguous().numpy().tobytes())
    found = hashlib.sha256(captions)
    for path in images.source.paths:
        try:
            with path.open("rb") as file:
                found.update(f"{path.stat().st_size} ".encode() + file.read(HEAD))
        except OSError as error:
            raise RMDError(f"data.images: cannot read {path}: {reason(error)}") from error
    return found.hexdigest()


def _stored(network: nn.Module, weights: TeacherWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a network from its files."""
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for name in sorted(name for name, _ in network.named_parameters()):
            if name not in weights.files:
                raise RMDError(f"the teacher's files have no weight {name}: save it anew with diffusers")
            path = weights.files[name]
            try:
                if path not in opened:
                    opened[path] = stack.enter_context(safe_open(path, framework="pt"))
                stored = opened[path].get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise RMDError(f"cannot read the weights in {path}: {error}") from error
            yield name, stored


def _settings(network: nn.Module) -> list[tuple[str, str]]:
    """Return the values of a network's configuration that differ from the defaults of its class.

    A later version of diffusers may add settings; their defaults do not change the result.
    """
    defaults = {name: each.default for name, each in inspect.signature(type(network).__init__).parameters.items()}
    config = dict(getattr(network, "config", {}))
    given = {name: _plain(value) for name, value in config.items() if name in defaults and not name.startswith("_")}
    return sorted((name, value) for name, value in given.items() if value != _plain(defaults[name]))


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _hash(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def weights_key(module: nn.Module) -> str:
    """Twelve hexadecimal digits of a network's weights."""
    found = hashlib.blake2b(digest_size=6)
    for tensor in module.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
