"""Figures: any text can be their title."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from rmd.recipes.schema import load_recipe
from rmd.report.curves import LIGHT, Chart, Curve, draw
from rmd.report.plotting import plot_plan

HOSTILE = (
    r"$\frac$", "$x$ $y", r"\$5 $$", "--> <script>alert(1)</script> <!--", "]]> & \"' <", "_a", "a\nb",
    "\x00\x1b[31m\x08\ud800",
)  # fmt: skip
ACTIVE = {"script", "a", "image", "foreignObject"}
"""Elements of SVG that run or fetch something."""


def elements(svg: bytes) -> set[str]:
    return {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}


@pytest.mark.parametrize("title", HOSTILE)
def test_a_plan_has_any_title(title: str, tmp_path: Path) -> None:
    recipe = load_recipe("scenes")
    plot_plan(recipe.build_plan(), recipe.noise.schedule(), tmp_path / "plan.svg", title=title)
    assert not elements((tmp_path / "plan.svg").read_bytes()) & ACTIVE


@pytest.mark.parametrize("name", HOSTILE[:5])
def test_a_chart_has_curves_of_any_name(name: str) -> None:
    assert not elements(draw(Chart(name, name, [Curve(name, [(1.0, 2.0), (2.0, 1.0)])]), LIGHT)) & ACTIVE
