"""Learning curves: what is drawn from a history, and that the drawing is valid SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from rmd.report.curves import DARK, LIGHT, Chart, Curve, charts, draw, running_mean

HISTORY: list[dict[str, float | None]] = [
    {"iteration": 10, "stage": 1.0, "student_loss": 2.0, "fake_loss": 0.5, "gap": 0.3, "seconds": 1.0},
    {"iteration": 20, "stage": 2.0, "student_loss": None, "fake_loss": 0.4, "gap": 0.1, "seconds": 1.0},
    {"iteration": 30, "stage": 1.0, "student_loss": 1.0, "gap": 0.2, "seconds": 1.0},
]


def test_charts_hold_what_was_measured_and_leave_out_what_was_not() -> None:
    loss, gap = charts(HISTORY)
    assert (loss.title, gap.title) == ("Loss", "Gap between the scores")
    assert loss.curves == [
        Curve("student", [(10, 2.0), (30, 1.0)]),
        Curve("fake score", [(10, 0.5), (20, 0.4)]),
    ]
    assert gap.curves == [Curve("stage 1", [(10, 0.3), (30, 0.2)]), Curve("stage 2", [(20, 0.1)])]


def test_gap_without_stages_is_one_curve() -> None:
    (chart,) = charts([{"iteration": 1, "gap": 0.3}, {"iteration": 2, "gap": 0.2}])
    assert chart.curves == [Curve("gap", [(1, 0.3), (2, 0.2)])]


@pytest.mark.parametrize("history", [[], [{"iteration": 1.0}], [{"gap": 0.3}], [{"iteration": 1.0, "gap": None}]])
def test_no_measurements_no_chart(history: list[dict[str, float | None]]) -> None:
    assert charts(history) == []


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 0.5)],
        [(1.0, 0.0), (2.0, -1.0)],
        [(float(i), 10.0 ** (i % 5)) for i in range(80)],
    ],
)
def test_drawing_is_svg_with_the_colours_of_its_theme(points: list[tuple[float, float]]) -> None:
    chart = Chart("Loss", "", [Curve("student", points), Curve("fake score", points)])
    for theme, other in ((LIGHT, DARK), (DARK, LIGHT)):
        svg = draw(chart, theme)
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        text = svg.decode().lower()
        assert all(colour.lower() in text for colour in theme.series[:2])
        assert theme.ink in text and other.ink not in text


def test_equal_charts_are_equal_files() -> None:
    chart = Chart("Loss", "", [Curve("student", [(1, 0.5), (2, 0.25)])])
    assert draw(chart, LIGHT) == draw(chart, LIGHT)


def test_running_mean_is_centred_and_narrows_at_the_ends() -> None:
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]
    assert running_mean([1.0, 5.0, 2.0], 1) == [1.0, 5.0, 2.0]
    assert running_mean([7.0], 5) == [7.0]
