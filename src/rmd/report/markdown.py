"""Text for Markdown: escaped, so that it is shown as it is wherever it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rmd.text import one_line

_ACTIVE = re.compile(r"[\\`*_\[\]&|~$@]|<(?!\s)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What begins emphasis, code, links, HTML, entities, cells, formulas, or an address that becomes a link by itself."""
_BLOCK = re.compile(r"^\d{1,9}(?=[.)](?:\s|$))|^(?=[-+=#>])|(?<=\s)(?=#+$)")
"""What makes a heading, a list, a quotation or a rule of a line that it begins, or ends a heading."""


def markdown_text(text: str) -> str:
    """Text as it stands in a paragraph, a heading or a cell of a table."""
    return _BLOCK.sub(r"\g<0>\\", _ACTIVE.sub(r"\\\g<0>", one_line(text)))


def markdown_code(text: str) -> str:
    """Text as inline code, in a paragraph; in a cell of a table, a `|` would end the cell."""
    line = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def markdown_block(code: str, language: str) -> str:
    """Lines of code as a fenced block, whose fence is longer than any that the code holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table without a line's end after it; all columns but the first `left` are flush right.

    Cells are Markdown already: whoever passes text escapes it with `markdown_text`.
    """
    ruler = [*["---"] * left, *["---:"] * (len(heads) - left)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))
