"""A tiny teacher and a recipe for it, which the tests of `rmd train` share."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import TINY, recipe_of
from helpers import write_prompts

from rmd.recipes.schema import to_yaml


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    TINY["pixart"]().pipe.save_pretrained(folder)  # of all families it is the quickest
    return folder


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_panels: None) -> Path:
    """Return a recipe that runs in moments, in an empty working folder; its own files are elsewhere."""
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    made = recipe_of("pixart", teacher, "full", data={"prompts": str(write_prompts(files))})
    path = files / "tiny.yaml"
    path.write_text(to_yaml(made), encoding="utf-8")
    return path
