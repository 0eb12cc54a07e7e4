"""Text in LaTeX: any text is printed as it is, and tables keep their rows."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rmd.common.latex import latex_comment, latex_lines, latex_text
from rmd.common.markdown import one_line

TEX = re.compile(
    r"\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[{}&%$#_]|^\{([*[])\}|[^\\{}&%$#_~^<>|]"
)
NAMES = {
    "backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|",
}  # fmt: skip


@given(st.one_of(st.text(), st.text(alphabet="\\{}&%$#_~^<>|[]* a\n")))
def test_latex_prints_any_text_as_it_is(text: str) -> None:
    escaped, read, place = latex_text(text), "", 0
    while place < len(escaped):
        token = TEX.match(escaped, place) if place else TEX.match(escaped)
        assert token is not None, f"{escaped!r} has something active at {place}"
        read += NAMES.get(token[1] or "", token[2] or token[0].removeprefix("\\"))
        place = token.end()
    assert read == one_line(text)
    assert escaped[:1] not in ("*", "["), "which would be an option of the row's end before it"


def test_a_table_is_a_tabular_with_rules() -> None:
    assert latex_lines(["a", "b"], [["1", "2"], ["3", "4"]]).splitlines() == [
        r"\begin{tabular}{lr}", r"\hline", r"a & b \\", r"\hline", r"1 & 2 \\", r"3 & 4 \\", r"\hline",
        r"\end{tabular}",
    ]  # fmt: skip
    assert latex_comment("a\nb %") == "% a b %"
