"""Rules of the house that no linter checks: sizes, docstrings, families known to their models only, a quick import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rmd

PACKAGE = Path(rmd.__file__).parent
FACTORY = Path(__file__).parents[2] / "research"
NODES = Path(__file__).parents[2] / "integrations"
TESTS = Path(__file__).parents[1]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 50

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
HANGING = re.compile(r'^\s*"""(What|Which|How|Whether|Where|Why|When|Of|As|By) ', re.MULTILINE)
"""The beginning of a docstring that continues the name above it instead of being a sentence or a noun of its own."""


def sources(*folders: Path) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def test_files_and_functions_stay_short() -> None:
    too_long = []
    for path, text in sources(PACKAGE, FACTORY, NODES):
        if len(text.splitlines()) > MOST_LINES_OF_A_FILE:
            too_long.append(f"{path}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FUNCTIONS):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    too_long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_no_docstring_hangs_on_the_name_above_it() -> None:
    found = [
        f"{path}: {start.group().strip()}"
        for path, text in sources(PACKAGE, FACTORY, NODES, TESTS)
        for start in HANGING.finditer(text)
    ]
    assert not found, "\n".join(found)


def test_what_is_public_has_a_docstring() -> None:
    missing = []
    for path, text in sources(PACKAGE, NODES):
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            missing.append(str(path))
        for node in tree.body:
            if isinstance(node, DEFINITIONS) and not node.name.startswith("_") and not ast.get_docstring(node):
                missing.append(f"{path}:{node.lineno}: {node.name}")
    assert not missing, "\n".join(missing)


def test_only_models_know_families() -> None:
    asking = [
        f"{path}:{number}"
        for path, text in sources(PACKAGE)
        for number, line in enumerate(text.splitlines(), start=1)
        if "family ==" in line and PACKAGE / "models" not in path.parents
    ]
    assert not asking, "ask the backbone, not for its family:\n" + "\n".join(asking)


def test_importing_the_package_imports_nothing_else(run_python: Any) -> None:
    """It is quick therefore: torch and diffusers take seconds."""
    code = (
        "import sys; before = set(sys.modules); import rmd; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names); print(sorted(new))"
    )
    ended = run_python("-c", code)
    assert (ended.stdout, ended.stderr) == ("['rmd']\n", "")
