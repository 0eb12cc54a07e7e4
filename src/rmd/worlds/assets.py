"""Where the packaged weights of the scenes lie."""

from __future__ import annotations

from pathlib import Path

from rmd.common.errors import RMDError

TEACHERS = {"scenes": "sdxl", "scenes-pixart": "pixart", "scenes-sd3": "sd3", "scenes-wan": "wan"}
"""The scenes' teachers by the names that recipes call them, and their families."""


def assets_folder() -> Path:
    """The folder of the scenes' weights: the judge's, and a folder of every teacher but the first, whose own it is."""
    return Path(__file__).parent / "assets"


def teacher_home(name: str = "scenes") -> Path:
    """The folder with `teacher/`, `references.safetensors` and `build.json` of a teacher of TEACHERS."""
    return assets_folder() if name == "scenes" else assets_folder() / TEACHERS[name]


def teacher_folder(name: str = "scenes") -> Path:
    """A teacher of TEACHERS, an ordinary diffusers pipeline; RMDError, with the command that builds it, if absent."""
    home = teacher_home(name)
    if not (home / "teacher" / "model_index.json").is_file():
        family = "" if name == "scenes" else f" --family {TEACHERS[name]}"
        raise RMDError(
            f"this installation lacks the teacher {name}: build it (hours) with "
            f"`python -m research.scenes train-teacher{family} --out {home}`"
        )
    return home / "teacher"
