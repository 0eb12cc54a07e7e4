"""Tiny students that the tests of the page share; tests only read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import make_student

from rmd.ui.models import Models

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of students by name: of pictures, `full` and `lora`, and of clips, `moving`."""
    folder = tmp_path_factory.mktemp("students")
    kinds = {"full": ("sdxl", "full"), "lora": ("sdxl", "lora"), "moving": ("wan", "lora")}
    return {name: make_student(folder / name, *kind) for name, kind in kinds.items()}


@pytest.fixture(scope="session")
def models(students: dict[str, Path]) -> Models:
    return Models([str(students["full"]), str(students["lora"])], device=CPU)


@pytest.fixture(scope="session")
def moving(students: dict[str, Path]) -> Models:
    return Models([str(students["moving"])], device=CPU)
