"""VBench's totals: the paper's rows, the arithmetic of its leaderboard, and nothing that is left out silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmd.common.errors import RMDError
from rmd.scores.vbench import DIMENSIONS, combined, read_scores, totals

PERFECT = {each.name: each.high for each in DIMENSIONS}


@pytest.mark.parametrize(
    ("quality", "semantic", "printed"),
    [(85.44, 76.95, 83.74), (81.98, 73.60, 80.30), (81.85, 75.00, 80.48), (84.37, 75.05, 82.51)],
)
def test_the_papers_totals_follow_from_its_groups(quality: float, semantic: float, printed: float) -> None:
    """Tab. 2 of the paper; it prints 83.75 for the first row, whose groups give 83.74."""
    assert round(combined(quality, semantic), 2) == printed


def test_the_ends_of_every_dimension() -> None:
    best, worst = totals(PERFECT), totals({each.name: each.low for each in DIMENSIONS})
    assert (best.total, best.quality, best.semantic) == pytest.approx((1, 1, 1))
    assert (worst.total, worst.quality, worst.semantic) == (0, 0, 0)
    assert set(best.dimensions) == {each.name for each in DIMENSIONS} and len(DIMENSIONS) == 16


def test_weights_of_the_groups_and_dimensions() -> None:
    """A dimension of quality is a 6.5th of its group and the dynamic degree half of that; a semantic one is a ninth."""
    for each in DIMENSIONS:
        lost = totals(PERFECT).total - totals(PERFECT | {each.name: each.low}).total
        expected = 0.8 * each.weight / 6.5 if each.quality else 0.2 / 9
        assert lost == pytest.approx(expected)
    assert [each.name for each in DIMENSIONS if each.weight != 1] == ["dynamic_degree"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scene": None, "color": None}, "VBench's totals need all 16 dimensions, and 2 are missing: color, scene"),
        ({"colour": 0.5}, "VBench has no dimension colour: use the names of its own files"),
        ({"scene": 52.5}, "the score of scene is 52.5, and should lie between 0 and 1"),
    ],
)
def test_scores_that_are_no_whole_result(change: dict[str, float | None], sentence: str) -> None:
    scores = {name: value for name, value in {**PERFECT, **change}.items() if value is not None}
    with pytest.raises(RMDError, match=f"^{sentence}$"):
        totals(scores)


def test_files_of_vbench(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"scene": [0.5, [{"video_path": "x.mp4"}]], "color": [1, []]}))
    (tmp_path / "b.json").write_text(json.dumps({"dynamic_degree": 0.25}))
    found = read_scores([tmp_path / "a.json", tmp_path / "b.json"])
    assert found == {"scene": 0.5, "color": 1.0, "dynamic_degree": 0.25}
    with pytest.raises(RMDError, match=r"a\.json has scene, too: give one file for each dimension$"):
        read_scores([tmp_path / "a.json", tmp_path / "a.json"])
    (tmp_path / "c.json").write_text(json.dumps({"scene": []}))
    with pytest.raises(RMDError, match=r"c\.json: 'scene' has no score; give the \*_eval_results\.json files "):
        read_scores([tmp_path / "c.json"])
