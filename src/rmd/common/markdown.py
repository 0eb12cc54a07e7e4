"""Puts text from elsewhere, such as names and prompts, into one line and into Markdown, where it is shown literally."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_ACTIVE = re.compile(r"[\\`*_\[\]&|~$@]|<(?!\s)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""Characters that start emphasis, code, links, HTML, entities, cells, formulas, or addresses that become links."""
_BLOCK = re.compile(r"^\d{1,9}(?=[.)](?:\s|$))|^(?=[-+=#>])|(?<=\s)(?=#+$)")
"""Places at which a line becomes a heading, a list, a quotation or a rule, or at which a heading ends."""
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates, and line and paragraph separators."""
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make text appear in another order than programs read it."""


def one_line(text: str) -> str:
    """Return text on one line: runs of spaces, line breaks, control and reordering characters become one space."""
    kept = (" " if unicodedata.category(c) in _CONTROL or c in _REORDERS else c for c in text)
    return " ".join("".join(kept).split())


def markdown_text(text: str) -> str:
    """Return text, on one line, escaped for a paragraph, a heading or a cell of a table."""
    return _BLOCK.sub(r"\g<0>\\", _ACTIVE.sub(r"\\\g<0>", one_line(text)))


def markdown_code(text: str) -> str:
    """Return text as inline code for a paragraph; it does not suit cells of a table, which a `|` would end."""
    line = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def markdown_block(code: str, language: str) -> str:
    """Return lines of code as a fenced block, whose fence is longer than any in the code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table without a final line break.

    Args:
        heads: the headings of the columns, as Markdown.
        rows: the cells of each row, as Markdown; callers escape text with `markdown_text`.
        left: number of columns that are aligned left; the others are aligned right.
    """
    ruler = [*["---"] * left, *["---:"] * (len(heads) - left)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))
