"""The pages that map papers to code name functions and tests that exist."""

from __future__ import annotations

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ["paper-to-code.md", "baselines.md"]
MODULES = "core|methods|models|train|compare|recipes|sample|export"


def resolve(name: str) -> object:
    """Return the object of a dotted name, such as core.plan.StepPlan.resized."""
    folder, module, *rest = name.split(".")
    return reduce(getattr, rest, import_module(f"rmd.{folder}.{module}"))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names = re.findall(rf"`((?:{MODULES})\.\w+(?:\.\w+)*)`", text)
    assert len(names) > 10
    for name in names:
        assert resolve(name) is not None
    for path in re.findall(r"`((?:tests|methods|recipes)/[\w/.]+\.(?:py|yaml))`", text):
        assert (ROOT / (path if path.startswith("tests") else f"src/rmd/{path}")).is_file(), path


@pytest.mark.parametrize("page", PAGES)
def test_every_test_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    tests = set(re.findall(r"`(test_\w+)`", text))
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in tests if f"def {name}(" not in code] == []
