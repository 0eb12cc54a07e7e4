"""Packaged reference statistics: the judge's features of fresh renders and of the teacher's own samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmd.errors import RMDError

FILE_NAME = "references.safetensors"


@dataclass(frozen=True)
class References:
    """Features (n, d) of renders and of the teacher's samples, and the renders' mean high-frequency energy."""

    renders: Tensor
    teacher: Tensor
    high_frequency: float


def save_references(references: References, folder: Path) -> None:
    """Write `references.safetensors`: each dimension in 256 levels between its extremes (a byte a number).

    An earlier file is replaced when all is written.
    """
    features = {"renders": references.renders, "teacher": references.teacher}
    save_features(features, references.high_frequency, folder / FILE_NAME)


def load_references(folder: Path) -> References:
    """Read what `save_references` wrote; RMDError when there is none."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise RMDError(f"no reference statistics in {folder}: make them with `rmd scenes references --out {folder}`")
    features, high_frequency = load_features(path)
    return References(features["renders"], features["teacher"], high_frequency)


def save_features(features: Mapping[str, Tensor], high_frequency: float, path: Path) -> None:
    """Write named features (n, d), each dimension in 256 levels between its extremes, and a number."""
    tensors = {"high_frequency": torch.tensor([high_frequency])}
    for name, values in features.items():
        low, high = values.amin(0), values.amax(0)
        step = ((high - low) / 255).clamp(min=1e-12)
        tensors[name] = ((values - low) / step).round().to(torch.uint8)
        tensors[f"{name}-low"], tensors[f"{name}-step"] = low, step
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial)
    partial.replace(path)


def load_features(path: Path) -> tuple[dict[str, Tensor], float]:
    """What `save_features` wrote."""
    tensors = load_file(path)
    names = [name.removesuffix("-step") for name in tensors if name.endswith("-step")]
    restored = {name: tensors[name].float() * tensors[f"{name}-step"] + tensors[f"{name}-low"] for name in names}
    return restored, float(tensors["high_frequency"])
