"""Puts text from elsewhere, such as names and prompts, on one line of other text."""

from __future__ import annotations

import unicodedata

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates, and line and paragraph separators."""
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make text appear in another order than programs read it."""


def one_line(text: str) -> str:
    """Return text on one line: line breaks, control characters and reordering characters become single spaces."""
    kept = (" " if unicodedata.category(c) in _CONTROL or c in _REORDERS else c for c in text)
    return " ".join("".join(kept).split())
