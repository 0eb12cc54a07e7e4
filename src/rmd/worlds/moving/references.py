"""Reference statistics of the moving scenes: the judge's features of renders and of the teacher's samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rmd.common.errors import RMDError
from rmd.worlds.references import load_features

FILE_NAME = "clip-references.safetensors"


@dataclass(frozen=True)
class ClipReferences:
    """Features of renders and of the teacher's samples: of frames (3 n, 384), and of changes between frames (n, 384).

    `high_frequency` is the energy of the finest detail in the frames of renders.
    """

    render_frames: Tensor
    render_changes: Tensor
    teacher_frames: Tensor
    teacher_changes: Tensor
    high_frequency: float


def load_clip_references(folder: Path) -> ClipReferences:
    """Read the reference statistics of the teacher's folder.

    Raises:
        RMDError: the folder has none.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise RMDError(
            f"no reference statistics in {folder}: make them with `python -m research.scenes references --moving`"
        )
    features, detail = load_features(path)
    return ClipReferences(**features, high_frequency=detail)


FEATURES = ("render_frames", "render_changes", "teacher_frames", "teacher_changes")
