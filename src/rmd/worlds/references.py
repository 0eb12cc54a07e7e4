"""Packaged reference statistics: the judge's features of fresh renders and of the teacher's own samples.

Each dimension is stored in 256 levels between its extremes, one byte per number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from rmd.common.errors import RMDError

FILE_NAME = "references.safetensors"


@dataclass(frozen=True)
class References:
    """Features (n, d) of renders and of the teacher's samples, and the renders' mean high-frequency energy."""

    renders: Tensor
    teacher: Tensor
    high_frequency: float


def load_references(folder: Path) -> References:
    """Read the reference statistics of a teacher's folder.

    Raises:
        RMDError: the folder has none.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise RMDError(
            f"no reference statistics in {folder}: make them with `python -m research.scenes references --out {folder}`"
        )
    features, high_frequency = load_features(path)
    return References(features["renders"], features["teacher"], high_frequency)


def load_features(path: Path) -> tuple[dict[str, Tensor], float]:
    """Read named features (n, d) and the high-frequency energy from a file of reference statistics."""
    tensors = load_file(path)
    names = [name.removesuffix("-step") for name in tensors if name.endswith("-step")]
    restored = {name: tensors[name].float() * tensors[f"{name}-step"] + tensors[f"{name}-low"] for name in names}
    return restored, float(tensors["high_frequency"])
