"""Counts the lines of the package by floor: `python -m research.size`. CONTRIBUTING.md says what the goal is."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "rmd"


def count(text: str) -> Counter[str]:
    """Return the numbers of lines of a module: of code, of docstrings, of comments alone, and blank ones."""
    lines = text.splitlines()
    kinds = ["blank" if not line.strip() else "code" for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#"):
            kinds[token.start[0] - 1] = "comment"
    for node in ast.walk(ast.parse(text)):
        # A text that is a statement of its own: the docstring of a module, class or function, or of an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            end = node.end_lineno or node.lineno
            kinds[node.lineno - 1 : end] = ["docstring"] * (end - node.lineno + 1)
    return Counter(kinds)


def floors() -> dict[str, Counter[str]]:
    """Return the numbers of lines by folder of the package; `rmd` stands for the modules at its top."""
    result: dict[str, Counter[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        floor = parts[0] if len(parts) > 1 else "rmd"
        result.setdefault(floor, Counter()).update(count(path.read_text(encoding="utf-8")))
    return result


def main() -> None:
    """Print a line for each floor, the largest first, and the sum."""
    rows = sorted(floors().items(), key=lambda row: -row[1]["code"])
    rows.append(("total", sum((counts for _, counts in rows), Counter[str]())))
    print(f"{'floor':12}{'code':>8}{'docstring':>11}{'comment':>9}{'blank':>7}{'all':>8}")
    for name, counts in rows:
        columns = (counts["code"], counts["docstring"], counts["comment"], counts["blank"], counts.total())
        print(f"{name:12}{columns[0]:>8,}{columns[1]:>11,}{columns[2]:>9,}{columns[3]:>7,}{columns[4]:>8,}")


if __name__ == "__main__":
    main()
