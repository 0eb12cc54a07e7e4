"""Locations of RMD's own packaged teachers."""

from __future__ import annotations

from pathlib import Path

from rmd.common.errors import RMDError
from rmd.worlds.base import PackagedTeacher

TEACHERS = {"scenes": "sdxl", "scenes-pixart": "pixart", "scenes-sd3": "sd3", "vistas": "sdxl", "scenes-wan": "wan"}
"""The packaged teachers by the names that recipes call them, and their families."""


def assets_folder() -> Path:
    """Return the folder of the packaged weights: the scenes' judge and first teacher, and a folder per other."""
    return Path(__file__).parent / "assets"


def teacher_home(name: str = "scenes") -> Path:
    """Return the folder of a teacher of `TEACHERS`: its pipeline, reference statistics and build record."""
    folder = {"scenes": "", "vistas": "vistas"}.get(name, TEACHERS[name])
    return assets_folder() / folder


def own_teachers(*names: str) -> dict[str, PackagedTeacher]:
    """Return teachers of `TEACHERS` by name."""
    return {name: PackagedTeacher(name, TEACHERS[name], teacher_home(name), _build(name)) for name in names}


def teacher_folder(name: str = "scenes") -> Path:
    """Return the diffusers pipeline of a teacher of `TEACHERS`.

    Raises:
        RMDError: the installation lacks it; the sentence names the command that builds it.
    """
    return pipeline_folder(own_teachers(name)[name])


def pipeline_folder(teacher: PackagedTeacher) -> Path:
    """Return the diffusers pipeline of a packaged teacher.

    Raises:
        RMDError: the installation lacks it; the sentence names the command that builds it.
    """
    folder = teacher.home / "teacher"
    if not (folder / "model_index.json").is_file():
        how = f"build it (hours) with `{teacher.build}`" if teacher.build else "reinstall the package that provides it"
        raise RMDError(f"this installation lacks the teacher {teacher.name}: {how}")
    return folder


def _build(name: str) -> str:
    chosen = {"scenes": "", "vistas": " --world vistas", "scenes-wan": " --world moving-scenes"}
    family = chosen.get(name, f" --family {TEACHERS[name]}")
    return f"python -m research.scenes train-teacher{family} --out {teacher_home(name)}"
