"""The commands of the documentation do what they promise: each block runs on tiny models, or says why it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_commands import REASONS, ROOT, blocks, furnish, namespace, run_block

Names = dict[str, Any]

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/**/*.md", "research/README.md")
    for path in ROOT.glob(pattern)
)


def runnable(*marks: str) -> list[str]:
    """Return the pages that have blocks with one of some marks."""
    return [page for page in PAGES if any(block.mark in marks for block in blocks(page))]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_block_that_is_not_run_says_why(page: str) -> None:
    assert {block.reason for block in blocks(page)} - {None} <= set(REASONS)


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder that has what the pages name. Each page gets it as it was, at the same place."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
        yield folder


@pytest.fixture
def names(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_panels: None) -> Iterator[Names]:
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copytree(furnished, tmp_path / "as it was")
    yield namespace()
    for path in furnished.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(tmp_path / "as it was", furnished, dirs_exist_ok=True)


@pytest.mark.parametrize("page", runnable(""))
def test_blocks_run(page: str, names: Names) -> None:
    for block in blocks(page):
        if block.mark == "":
            run_block(block, names)


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable("slow"))
def test_long_blocks_run(page: str, names: Names) -> None:
    """With the quick ones of their page, which may make what they read."""
    for block in blocks(page):
        if block.reason is None:
            run_block(block, names)
