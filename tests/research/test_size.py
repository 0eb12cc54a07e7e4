"""The count of the package's lines."""

from __future__ import annotations

import pytest

from research.size import PACKAGE, count, floors, main

TEXT = '''"""Module."""

import os  # why

# Alone.
class A:
    """One.

    Two.
    """

    x = 1
    """Attribute."""
    text = """not
    a docstring"""
'''


def test_every_line_is_of_one_kind() -> None:
    assert count(TEXT) == {"docstring": 6, "blank": 3, "code": 5, "comment": 1}


def test_all_lines_of_the_package_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py"))
    assert sum(counts.total() for counts in floors().values()) == lines
    main()
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == f"{lines:,}"
