"""The identity of a run: its settings, teacher, prompts and images, compared by content and never by path."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor, nn

from rmd.common.errors import RMDError
from rmd.common.files import read_errors
from rmd.common.typed import Strict
from rmd.data.images import ImageFolder, Images
from rmd.train.weights import TeacherWeights, WeightReader

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
            raise RMDError(
                f"{what} was made with another recipe: resume with the settings of that recipe, add --reset-optimizer "
                "to continue from its weights, or choose another --out"
            )
        if made.prompts_key != self.prompts_key:
            counts = f"{made.prompts:,} then, {self.prompts:,} now"
            raise RMDError(f"{what} was made with other prompts ({counts}): {_advice('prompts')}")
        if made.teacher_key != self.teacher_key:
            raise RMDError(f"{what} was made with another teacher, which has other weights: {_advice('teacher')}")
        if made.images_key != self.images_key:
            raise RMDError(f"{what} was made with other images: {_advice('images')}")


def _advice(what: Literal["prompts", "teacher", "images"]) -> str:
    return f"resume with the same {what}, add --reset-optimizer to continue with these, or choose another --out"


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
    digest = hashlib.sha256(captions)
    for path in images.source.paths:
        with read_errors(path, "data.images: "), path.open("rb") as file:
            digest.update(f"{path.stat().st_size} ".encode() + file.read(HEAD))
    return digest.hexdigest()


def _stored(network: nn.Module, weights: TeacherWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a network, sorted by name, from its files."""
    with WeightReader(weights.files) as stored:
        for name in sorted(name for name, _ in network.named_parameters()):
            yield name, stored[name][...]


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
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def weights_key(module: nn.Module) -> str:
    """Return twelve hexadecimal digits that identify the weights of a network, all of which are hashed."""
    digest = hashlib.blake2b(digest_size=6)
    for tensor in module.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
