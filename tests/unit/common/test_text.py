"""Text from elsewhere on one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmd.common.text import one_line


@given(st.text())
def test_a_line_has_no_breaks_and_keeps_every_other_character(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1 and "\0" not in line
    assert one_line(line) == line == line.strip()
    assert [c for c in text if c.isalnum()] == [c for c in line if c.isalnum()]


def test_what_reorders_text_and_half_a_character_are_left_out() -> None:
    assert one_line("a\u202eb\u2066c\ud800d\x1b[0m\u2028e\r\n\tf") == "a b c d [0m e f"
    assert one_line("Straße 東京 👩\u200d🚀") == "Straße 東京 👩\u200d🚀"
