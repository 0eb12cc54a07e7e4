"""Text from elsewhere, such as names and prompts, as it is put into a line of something else."""

from __future__ import annotations

import unicodedata

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, lone surrogates, line and paragraph separators."""
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make a reader see text in another order than a program does."""


def one_line(text: str) -> str:
    """Text on one line: line breaks, control characters and those that reorder text become single spaces."""
    kept = (" " if unicodedata.category(c) in _CONTROL or c in _REORDERS else c for c in text)
    return " ".join("".join(kept).split())
