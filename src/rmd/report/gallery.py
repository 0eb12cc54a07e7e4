"""The pictures on the report's page: samples, learning curves and training panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image
from torch import Tensor

from rmd.errors import RMDError
from rmd.pictures import check_images, png, to_image, webp
from rmd.report.curves import DARK, LIGHT, Chart, charts, draw
from rmd.report.html import folded, image_data, items, section
from rmd.report.model import STUDENT, Report, Row
from rmd.report.notes import PANEL_ROWS, PANELS_NOTE, SAMPLES_NOTE

SHOWN_PROMPTS = 8
"""Prompts whose pictures are seen without unfolding the rest."""
CLIP_FPS = 8
"""Frames a second at which clips play on the page."""
_WIDE, _SMALL = 128, 64
"""CSS pixels that a sample may be wide on a laptop and on a phone."""


@dataclass(frozen=True)
class Pictures:
    """What the page shows besides numbers; see `write_report`."""

    grids: Mapping[str, Tensor]
    panels: Sequence[tuple[int, Image.Image]]
    plan_png: bytes


def check_grids(report: Report, grids: Mapping[str, Tensor]) -> None:
    """RMDError unless every grid is of a row and has one picture a prompt."""
    for name, grid in grids.items():
        if report.find(name) is None:
            raise RMDError(f"there are pictures of {name!r}, but the report has no row of that name")
        check_images(grid if grid.ndim == 4 else grid.transpose(1, 2).flatten(0, 1), f"the pictures of {name!r}")
        if len(grid) != len(report.prompts):
            raise RMDError(f"{name!r} has {len(grid)} pictures for {len(report.prompts)} prompts")


def samples(report: Report, grids: Mapping[str, Tensor]) -> str:
    """One line a prompt, one column a sampler; what goes beyond the first prompts is folded away."""
    rows = [row for row in report.rows if row.name in grids]
    if not rows:
        return ""
    lines = [
        _sample_line(prompt, [(row, grids[row.name][index]) for row in rows])
        for index, prompt in enumerate(report.prompts)
    ]
    first, rest = lines[:SHOWN_PROMPTS], lines[SHOWN_PROMPTS:]
    heads = "".join(f"<span{_marked(row)}>{escape(row.label)}</span>" for row in rows)
    return (
        f'<section aria-label="Samples" style="{_sizes(len(rows), grids[rows[0].name].shape[-1])}">\n'
        f'<p class="soft">{SAMPLES_NOTE}</p>\n'
        f'<div class="heads" aria-hidden="true"><span></span>{heads}</div>\n'
        f"{items('sheet', first)}\n"
        f"{folded(f'{len(rest)} more prompts', items('sheet', rest)) if rest else ''}</section>"
    )


def curves(report: Report) -> str:
    """Charts of the training; nothing without a history."""
    drawn = charts(report.history)
    if not drawn:
        return ""
    figures = "\n".join(_chart(chart) for chart in drawn)
    note = '<p class="soft">Thin lines as measured, thick ones their running mean.</p>'
    return section("Training", f'{note}\n<div class="charts">\n{figures}\n</div>')


def panels(pictures: Sequence[tuple[int, Image.Image]]) -> str:
    """The last training panel, the earlier ones folded away."""
    if not pictures:
        return ""
    in_order = sorted(pictures, key=lambda picture: picture[0])
    *earlier, last = [_panel(iteration, image) for iteration, image in in_order]
    rest = folded(f"{len(earlier)} earlier", "\n".join(earlier)) if earlier else ""
    return section("What the two scores see", f'<p class="soft">{PANELS_NOTE}</p>\n{last}\n{rest}')


def _sizes(samplers: int, width: int) -> str:
    """Style of the samples: small ones enlarged by whole factors and not smoothed, large ones reduced."""
    wide, small = (width * max(1, limit // width) if width <= limit else limit for limit in (_WIDE, _SMALL))
    rendering = "pixelated" if width <= _WIDE else "auto"
    return f"--samplers: {samplers}; --wide: {wide}px; --small: {small}px; --rendering: {rendering}"


def _marked(row: Row) -> str:
    return ' class="student"' if row.name == STUDENT else ""


def _sample_line(prompt: str, pictures: Sequence[tuple[Row, Tensor]]) -> str:
    images = "".join(_sample(f"{row.label}: {prompt}", picture) for row, picture in pictures)
    return f"<p>{escape(prompt)}</p>{images}"


def _sample(text: str, picture: Tensor) -> str:
    words = escape(text)
    if picture.ndim == 3:
        source = image_data("png", png(to_image(picture)))
    else:
        source = image_data("webp", webp([to_image(frame) for frame in picture.unbind(1)], fps=CLIP_FPS))
    return f'<img src="{source}" alt="{words}" title="{words}">'


def _chart(chart: Chart) -> str:
    light, dark = (image_data("svg+xml", draw(chart, theme)) for theme in (LIGHT, DARK))
    return (
        f"<figure><h3>{escape(chart.title)}</h3>"
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(chart.title)} over the iterations"></picture>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _panel(iteration: int, image: Image.Image) -> str:
    return (
        f'<figure><div class="panel">{items("rows", PANEL_ROWS)}'
        f'<img src="{image_data("png", png(image))}" width="{image.width}" height="{image.height}" '
        f'alt="Samples at iteration {iteration}, row by row: {", ".join(PANEL_ROWS)}"></div>'
        f"<figcaption>Iteration {iteration}</figcaption></figure>"
    )
