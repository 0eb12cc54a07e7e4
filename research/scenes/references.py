"""Saving of reference statistics in the format that `rmd.worlds.references` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rmd.worlds.references import FILE_NAME, References


def save_references(references: References, folder: Path) -> None:
    """Save the references as `references.safetensors`; an earlier file is replaced atomically."""
    features = {"renders": references.renders, "teacher": references.teacher}
    save_features(features, references.high_frequency, folder / FILE_NAME)


def save_features(features: Mapping[str, Tensor], high_frequency: float, path: Path) -> None:
    """Save named features (n, d), quantised to one byte between the extremes of each dimension, and a number."""
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
