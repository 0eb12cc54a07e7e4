"""The example plug-ins, installed as packages: RMD finds and uses each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = Path(__file__).parents[2] / "docs"
LONGEST_EXAMPLE = 60


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed all examples."""
    folder = tmp_path_factory.mktemp("installed")
    packages = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))
    assert len(packages) == 7
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--target", str(folder), *map(str, _copies(packages, folder)),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


def _copies(packages: list[Path], folder: Path) -> list[Path]:
    """Copy packages beside a folder: setuptools leaves files where it builds."""
    copies = []
    for package in packages:
        copy = folder.with_name(f"{folder.name}-source") / package.name
        copy.mkdir(parents=True)
        for path in package.iterdir():
            if path.is_file():
                (copy / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        copies.append(copy)
    return copies


@pytest.fixture(scope="module")
def used(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a process that has used every example."""
    script = Path(__file__).with_name("use_examples.py")
    paths = [str(installed), *sys.path]
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("run"))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_EXAMPLE, path


def test_every_kind_of_plug_in_has_an_example_and_a_page() -> None:
    table = (DOCS / "plugins.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*/pyproject.toml"):
        assert f"examples/{path.parent.name}" in table
    pages = {
        line.split("](")[1].split(")")[0] for line in table.splitlines() if line.startswith("| a ") and "](" in line
    }
    assert all((DOCS / page).is_file() for page in pages), pages


@pytest.mark.parametrize(
    ("kind", "name"),
    [("models", "auraflow"), ("methods", "weighted"), ("metrics", "variety"), ("worlds", "beach-scenes"),
     ("prompts", "template"), ("formats", "md"), ("trackers", "csv")],
)  # fmt: skip
def test_an_installed_package_is_found(kind: str, name: str, used: dict[str, Any]) -> None:
    assert used["names"][f"rmd.{kind}"].count(name) == 1


def test_the_method_trains_with_the_prompts_and_the_tracker(used: dict[str, Any]) -> None:
    assert used["method"] == "Weighted"
    rows = used["csv"].splitlines()
    assert rows[0].startswith("iteration,") and [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    assert used["prompts"] == [
        f"a {colour} {thing} on the beach" for colour in ("blue", "red") for thing in ("ball", "kite")
    ]


def test_options_are_validated_by_the_plug_in(used: dict[str, Any]) -> None:
    assert "method.strenght" in used["wrong option"] and "method.strength" in used["wrong option"]
    assert "data.options" in used["wrong prompts"] and "words" in used["wrong prompts"]


def test_the_metric_is_reported_where_it_applies(used: dict[str, Any]) -> None:
    assert "variety" in used["metrics of scenes"] and "variety" not in used["metrics of moving-scenes"]
    assert used["variety"] == 0.5  # every other dimension of the samples hardly varies


def test_the_world_is_a_prompt_source(used: dict[str, Any]) -> None:
    assert len(used["beach"]) == 100 and all("on sand" in text for text in used["beach"])


def test_the_format_is_read(used: dict[str, Any]) -> None:
    assert sorted(used["markdown"]) == ["a blue kite", "a red ball"]


def test_the_family_loads_and_samples(used: dict[str, Any]) -> None:
    assert used["family"] == "auraflow" and used["picture"] == [1, 3, 16, 16]
