"""Escapes text for Markdown, so that it is shown literally wherever it is placed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rmd.common.text import one_line

_ACTIVE = re.compile(r"[\\`*_\[\]&|~$@]|<(?!\s)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""Characters that start emphasis, code, links, HTML, entities, cells, formulas, or addresses that become links."""
_BLOCK = re.compile(r"^\d{1,9}(?=[.)](?:\s|$))|^(?=[-+=#>])|(?<=\s)(?=#+$)")
"""Places at which a line becomes a heading, a list, a quotation or a rule, or at which a heading ends."""


def markdown_text(text: str) -> str:
    """Return text escaped for a paragraph, a heading or a cell of a table."""
    return _BLOCK.sub(r"\g<0>\\", _ACTIVE.sub(r"\\\g<0>", one_line(text)))


def markdown_code(text: str) -> str:
    """Return text as inline code for a paragraph; in a cell of a table, a `|` would end the cell."""
    line = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def markdown_block(code: str, language: str) -> str:
    """Return lines of code as a fenced block, whose fence is longer than any in the code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table without a final line break; all columns but the first `left` are flush right.

    Cells must be Markdown already: callers escape text with `markdown_text`.
    """
    ruler = [*["---"] * left, *["---:"] * (len(heads) - left)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))
