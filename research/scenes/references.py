"""Saving of reference statistics in the format that `rmd.worlds.references` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from rmd.common.files import replacing
from rmd.worlds.references import CLIP_FILE_NAME, FILE_NAME, References


def save_references(references: References, folder: Path, *, moving: bool = False) -> None:
    """Save the references in the file from which `load_references` reads them, which is replaced atomically.

    Features are quantised to one byte between the extremes of each dimension.
    """
    path = folder / (CLIP_FILE_NAME if moving else FILE_NAME)
    tensors = {"high_frequency": torch.tensor([references.high_frequency])}
    for name, values in references.features.items():
        low, high = values.amin(0), values.amax(0)
        step = ((high - low) / 255).clamp(min=1e-12)
        tensors[name] = ((values - low) / step).round().to(torch.uint8)
        tensors[f"{name}-low"], tensors[f"{name}-step"] = low, step
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(tensors, partial)
