"""The results of a try on the page: times, the ratio, the right step, and text that stays text."""

from __future__ import annotations

from PIL import Image

from rmd.ui.fragments import note_html, side, tried_html
from rmd.ui.shelf import Shelf
from rmd.ui.trying import Tried, View


def tried(seconds: float, *sides: int, count: int = 1) -> Tried:
    views = [
        View(f"step {number}", tuple(Image.new("RGB", (length, length), (number, i, 0)) for i in range(count)))
        for number, length in enumerate(sides, start=1)
    ]
    return Tried(seconds, seconds / 2, 4.0, tuple(views))


def test_a_student_alone_and_beside_its_teacher() -> None:
    shelf = Shelf()
    student = side("a/student", tried(0.5, 8, 16, count=2), shelf, fps=8)
    teacher = side("teacher", tried(4.0, 16, count=2), shelf, fps=8)
    alone = tried_html("a ball", [student], 2)
    assert "times</b> as fast" not in alone and alone.count("<img") == 2 and "0.500 s" in alone
    both = tried_html("a ball", [student, teacher], 1)
    assert "<b>8.0 times</b> as fast" in both and both.count("<img") == 4
    assert all(address in both for address in (*student.views[0][1], *teacher.views[0][1]))
    assert not any(address in both for address in student.views[1][1])
    assert "4 network evaluations per sample, 0.250 s in all" in both


def test_small_pictures_are_not_smoothed() -> None:
    shelf = Shelf()
    assert "of-1 small" in tried_html("x", [side("a", tried(1.0, 64), shelf, fps=8)], 1)
    assert "of-1 small" not in tried_html("x", [side("a", tried(1.0, 512), shelf, fps=8)], 1)


def test_text_stays_text() -> None:
    for html in (
        tried_html("<script>", [side("<b>x</b>", tried(1.0, 8), Shelf(), fps=8)], 1), note_html("<script>"),
    ):  # fmt: skip
        assert "<script>" not in html and "<b>x</b>" not in html and "&lt;script&gt;" in html
