"""The pictures on the report's page, as values for its template: samples, learning curves and training panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.pictures import check_images, png, to_image, webp
from rmd.evaluation.rows import STUDENT, Report
from rmd.report.curves import DARK, LIGHT, charts, draw
from rmd.report.html import image_data

SHOWN_PROMPTS = 8
"""Number of prompts whose pictures are visible at once; the others are folded away."""
CLIP_FPS = 8
"""Frames per second at which clips play on the page."""
_WIDE, _SMALL = 128, 64
"""Largest width of a sample in CSS pixels, on a laptop and on a phone."""


@dataclass(frozen=True)
class Sample:
    """One picture and its alternative text."""

    source: str
    text: str


def check_grids(report: Report, grids: Mapping[str, Tensor]) -> None:
    """Check the pictures of a report.

    Raises:
        RMDError: a grid belongs to no row, or does not have one picture per prompt.
    """
    for name, grid in grids.items():
        if report.find(name) is None:
            raise RMDError(f"there are pictures of {name!r}, but the report has no row of that name")
        check_images(grid if grid.ndim == 4 else grid.transpose(1, 2).flatten(0, 1), f"the pictures of {name!r}")
        if len(grid) != len(report.prompts):
            raise RMDError(f"{name!r} has {len(grid)} pictures for {len(report.prompts)} prompts")


def samples(report: Report, grids: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the sheet of samples, one line per prompt and one column per sampler; None if there are no pictures.

    Its keys are `labels` of the columns (text, and whether it is the student), the lines (`first`, and `rest` that is
    folded away), the width of a picture in CSS pixels on a laptop (`wide`) and on a phone (`small`), and `rendering`.
    """
    rows = [row for row in report.rows if row.name in grids]
    if not rows:
        return None
    lines = [
        (prompt, [_sample(f"{row.label}: {prompt}", grids[row.name][index]) for row in rows])
        for index, prompt in enumerate(report.prompts)
    ]
    width = grids[rows[0].name].shape[-1]
    # Small pictures are enlarged by integer factors without smoothing; large ones are reduced.
    wide, small = (width * max(1, limit // width) if width <= limit else limit for limit in (_WIDE, _SMALL))
    return {
        "labels": [(row.label, row.name == STUDENT) for row in rows],
        "first": lines[:SHOWN_PROMPTS],
        "rest": lines[SHOWN_PROMPTS:],
        "wide": wide,
        "small": small,
        "rendering": "pixelated" if width <= _WIDE else "auto",
    }


def curves(report: Report) -> list[dict[str, str]]:
    """Return the charts of the training, each drawn for light and for dark pages; none without a history."""
    return [
        {"title": chart.title, "caption": chart.caption}
        | {name: image_data("svg+xml", draw(chart, theme)) for name, theme in (("light", LIGHT), ("dark", DARK))}
        for chart in charts(report.history)
    ]


def panels(pictures: Sequence[tuple[int, Image.Image]]) -> list[tuple[int, str, Image.Image]]:
    """Return the iteration, source and picture of each training panel in the order of the iterations."""
    in_order = sorted(pictures, key=lambda picture: picture[0])
    return [(iteration, image_data("png", png(image)), image) for iteration, image in in_order]


def _sample(text: str, picture: Tensor) -> Sample:
    if picture.ndim == 3:
        return Sample(image_data("png", png(to_image(picture))), text)
    frames = [to_image(frame) for frame in picture.unbind(1)]
    return Sample(image_data("webp", webp(frames, fps=CLIP_FPS)), text)
