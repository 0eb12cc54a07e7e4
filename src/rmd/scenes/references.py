"""Packaged reference statistics: the judge's features of fresh renders and of the teacher's own samples."""

from __future__ import annotations

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
    tensors = {"high_frequency": torch.tensor([references.high_frequency])}
    for name, features in (("renders", references.renders), ("teacher", references.teacher)):
        low, high = features.amin(0), features.amax(0)
        step = ((high - low) / 255).clamp(min=1e-12)
        tensors[name] = ((features - low) / step).round().to(torch.uint8)
        tensors[f"{name}-low"], tensors[f"{name}-step"] = low, step
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE_NAME}.partial"
    save_file(tensors, partial)
    partial.replace(folder / FILE_NAME)


def load_references(folder: Path) -> References:
    """Read what `save_references` wrote; RMDError when there is none."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise RMDError(f"no reference statistics in {folder}: make them with `rmd scenes references --out {folder}`")
    tensors = load_file(path)
    restored = {
        name: tensors[name].float() * tensors[f"{name}-step"] + tensors[f"{name}-low"]
        for name in ("renders", "teacher")
    }
    return References(restored["renders"], restored["teacher"], float(tensors["high_frequency"]))
