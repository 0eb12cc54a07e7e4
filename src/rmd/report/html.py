"""Small pieces of HTML. Cells and items are HTML already: whoever passes text escapes it."""

from __future__ import annotations

import base64
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    """A table that scrolls sideways by itself; the first cell of a row is its heading, True marks the row."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    head = f"<thead><tr>{titles}</tr></thead>" if heads else ""
    body = "\n".join(_row(cells, marked) for cells, marked in rows)
    return f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def items(kind: str, contents: Sequence[str]) -> str:
    """A list of the CSS class `kind`."""
    lines = "\n".join(f"<li>{content}</li>" for content in contents)
    return f'<ul class="{kind}">\n{lines}\n</ul>'


def folded(summary: str, content: str) -> str:
    """Content that a click unfolds."""
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"


def section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"


def image_data(kind: str, content: bytes) -> str:
    """An image file as a data address; `kind` is png or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _row(cells: Sequence[str], marked: bool) -> str:
    kind = ' class="student"' if marked else ""
    rest = "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr{kind}><th scope="row">{cells[0]}</th>{rest}</tr>'
