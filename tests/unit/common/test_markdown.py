"""Text is put on one line, and into Markdown so that it is shown literally: in paragraphs, headings, cells and code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from rmd.common.markdown import markdown_block, markdown_code, markdown_lines, markdown_text, one_line

HOSTILE = (
    "<script>alert(1)</script>", "</td>", "<!-- -->", "&lt;", "a | b", "`code`", "``", "*a* __b__ ~~c~~",
    "[a](b) ![c](d)", "a #", "a ##",
    "[a]: http://b", "<http://a.b>", "http://a.b www.a.b me@a.b", "# a", "- a", "+ a", "* a", "1. a", "12) a", "> a",
    "---", "===", "| --- |", "```\na", "~~~\na", "    a", "a\n\n# b\n", "a\\", "\\", "$a$ $$b$$", "a:b", "<a@b.c>", "",
)  # fmt: skip
texts = st.one_of(st.text(), st.text(alphabet="`*_[]()<>&|~$@#-+=.\\:!\"'1a/ \n"))


def inlines(markdown: str) -> list[Token]:
    """Return the inline tokens of Markdown, including HTML and GitHub's tables and strikethrough."""
    return [token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown) if token.type == "inline"]


def words(token: Token) -> str:
    """Return the text that readers see; fail if it contains anything but plain text."""
    assert {child.type for child in token.children or ()} <= {"text", "text_special"}
    return "".join(child.content for child in token.children or ())


def check(text: str) -> None:
    escaped, plain = markdown_text(text), one_line(text)
    if plain:
        (paragraph,) = inlines(escaped)
        assert words(paragraph) == plain
    (heading,) = inlines(f"# a {escaped}")
    assert words(heading) == f"a {plain}".strip()
    cells = inlines(markdown_lines(("", escaped), [[escaped, "1"]]))
    assert [words(cell) for cell in cells] == ["", plain, plain, "1"]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_that_are_markdown_are_text(text: str) -> None:
    check(text)


@given(texts)
def test_any_text_is_text(text: str) -> None:
    check(text)


@given(texts)
def test_code_is_code_and_ends_where_it_should(text: str) -> None:
    (paragraph,) = inlines(f"before {markdown_code(text)} after")
    before, code, after = paragraph.children or ()
    assert (before.content, code.type, after.content) == ("before ", "code_inline", " after")
    assert code.content == (one_line(text) or " ")


@given(texts)
def test_no_line_of_a_block_of_code_ends_it(text: str) -> None:
    code = "\n".join(text.splitlines()) or "x"
    block, last = MarkdownIt().parse(f"{markdown_block(code, 'python')}\n\nafter")[:2]
    assert (block.type, block.info, last.type) == ("fence", "python", "paragraph_open")
    assert block.content.rstrip("\n") == code.replace("\0", "\ufffd").rstrip("\n")


def test_usual_names_are_not_touched() -> None:
    for text in ("RMD, 2+2", "teacher, 4 steps (p < 0.05)", "block, trained at 0.2", "29.14", "x2 – 64 × 64"):
        assert markdown_text(text) == text


@given(st.text())
def test_a_line_has_no_breaks_and_keeps_every_other_character(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1 and "\0" not in line
    assert one_line(line) == line == line.strip()
    assert [c for c in text if c.isalnum()] == [c for c in line if c.isalnum()]


def test_what_reorders_text_and_half_a_character_are_left_out() -> None:
    assert one_line("a\u202eb\u2066c\ud800d\x1b[0m\u2028e\r\n\tf") == "a b c d [0m e f"
    assert one_line("Straße 東京 👩\u200d🚀") == "Straße 東京 👩\u200d🚀"
