"""Where the packaged weights of the scenes lie."""

from __future__ import annotations

from pathlib import Path

from rmd.errors import RMDError


def assets_folder() -> Path:
    """The folder with `teacher/`, `judge.safetensors`, `references.safetensors` and `build.json`."""
    return Path(__file__).parent / "assets"


def teacher_folder() -> Path:
    """The packaged teacher, an ordinary diffusers pipeline; RMDError, with the command that builds it, if absent."""
    folder = assets_folder() / "teacher"
    if not (folder / "model_index.json").is_file():
        raise RMDError(
            f"this installation lacks the scenes' teacher: build it (hours) with "
            f"`rmd scenes train-teacher --out {assets_folder()}`"
        )
    return folder
