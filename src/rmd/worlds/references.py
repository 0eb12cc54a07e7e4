"""Packaged reference statistics: the judge's features of fresh renders and of the teacher's own samples.

Each dimension is stored in 256 levels between its extremes, one byte per number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from rmd.common.errors import RMDError

FILE_NAME, CLIP_FILE_NAME = "references.safetensors", "clip-references.safetensors"


@dataclass(frozen=True)
class References:
    """Features (n, d) by name, and the mean energy of the finest detail of renders.

    The names are `renders` and `teacher` for pictures; for clips, `render_frames` and `teacher_frames` (three frames of
    each clip), and `render_changes` and `teacher_changes` (what changes from frame to frame).
    """

    features: Mapping[str, Tensor]
    high_frequency: float

    def __getitem__(self, name: str) -> Tensor:
        return self.features[name]


def load_references(folder: Path, *, moving: bool = False) -> References:
    """Read the reference statistics of a teacher's folder; `moving` for a teacher of clips.

    Raises:
        RMDError: the folder has none.
    """
    path = folder / (CLIP_FILE_NAME if moving else FILE_NAME)
    if not path.is_file():
        options = "--world moving-scenes" if moving else f"--out {folder}"
        raise RMDError(
            f"no reference statistics in {folder}: make them with `python -m research.scenes references {options}`"
        )
    tensors = load_file(path)
    names = [name.removesuffix("-step") for name in tensors if name.endswith("-step")]
    restored = {name: tensors[name].float() * tensors[f"{name}-step"] + tensors[f"{name}-low"] for name in names}
    return References(restored, float(tensors["high_frequency"]))
