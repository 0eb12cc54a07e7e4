"""Students and teachers that several tests of the models copy and damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from families import TINY, make_student


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save one student of each mode; return their folders by mode."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in ("full", "lora")}
    return {mode: make_student(folder, "sdxl", mode) for mode, folder in folders.items()}


@pytest.fixture
def copied(saved: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copy the saved students, for a test to damage."""
    return {mode: Path(shutil.copytree(folder, tmp_path / mode)) for mode, folder in saved.items()}


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save one tiny pipeline of each family, in a folder of that name."""
    folder = tmp_path_factory.mktemp("teachers")
    for family, build in TINY.items():
        build().pipe.save_pretrained(folder / family)
    return folder


@pytest.fixture
def teacher(pipelines: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a family's teacher, for a test to damage."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(pipelines / family, tmp_path / family))

    return copy
