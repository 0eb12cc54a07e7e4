"""The figures of docs/how-it-works.md."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from research import illustrations
from rmd.models.teacher import load_teacher
from rmd.recipes.schema import load_recipe

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """The pictures of the first figure, in its two rows, without their labels."""
    recipe = load_recipe("scenes", illustrations.STEPS)
    content = illustrations.noise_levels(load_teacher(recipe), recipe.build_plan())
    pixels = np.asarray(Image.open(io.BytesIO(content))).astype(float)
    side, gap = illustrations.SIDE, 4
    left = pixels.shape[1] - len(illustrations.SIGMAS) * (side + gap) + gap
    below = (pixels.shape[0] + gap) // 2
    return [
        np.stack([pixels[top : top + side, x : x + side] for x in range(left, pixels.shape[1], side + gap)])
        for top in (0, below)
    ]


def test_the_noise_hides_more_and_more_of_the_difference(pictures: list[np.ndarray]) -> None:
    fine, coarse = pictures
    assert len(fine) == len(coarse) == len(illustrations.SIGMAS)
    differences = np.abs(fine - coarse).mean((1, 2, 3))
    assert (np.diff(differences) < 0).all() and differences[-1] < 0.5 * differences[0]


def test_the_pages_show_the_figures() -> None:
    text = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    for name in ("noise", "cascade", "plan"):
        assert f"]({name}.png)" in text and f"docs/{name}.png" in str(illustrations.__doc__)
        assert (DOCS / f"{name}.png").is_file()
