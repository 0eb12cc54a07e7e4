"""Puts text from elsewhere, such as names and prompts, into LaTeX, where it is shown literally, and writes tables."""

from __future__ import annotations

from collections.abc import Sequence

from rmd.common.markdown import one_line

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def latex_text(text: str) -> str:
    """Escape LaTeX's special characters in text; line breaks and control characters become spaces.

    A leading star or bracket is put in braces: LaTeX would read it as an option of the `\\\\` of the preceding row.
    """
    escaped = "".join(_ESCAPED.get(character, character) for character in one_line(text))
    return f"{{{escaped[0]}}}{escaped[1:]}" if escaped[:1] in ("*", "[") else escaped


def latex_comment(text: str) -> str:
    """Return text as a comment on one line."""
    return f"% {one_line(text)}"


def latex_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a tabular, which needs no package, without a final line break.

    Args:
        heads: the headings of the columns, as LaTeX; the first column is aligned left, the others right.
        rows: the cells of each row, as LaTeX; callers escape text with `latex_text`.
    """
    lines = [" & ".join(cells) + r" \\" for cells in (heads, *rows)]
    begin = f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    return "\n".join((begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"))
