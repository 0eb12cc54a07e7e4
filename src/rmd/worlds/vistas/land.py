"""Painters of skies and landscapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rmd.worlds.vistas.canvas import CANVAS, Canvas, inside, lay, rgb
from rmd.worlds.vistas.grammar import HOURS, LANDS

HORIZON = 86.0
_ZENITH = {
    "dawn": (0.33, 0.46, 0.70),
    "noon": (0.20, 0.47, 0.84),
    "sunset": (0.24, 0.20, 0.46),
    "night": (0.02, 0.03, 0.11),
}
_MIDDLE = {
    "dawn": (0.80, 0.72, 0.78),
    "noon": (0.48, 0.71, 0.94),
    "sunset": (0.80, 0.38, 0.42),
    "night": (0.06, 0.09, 0.24),
}
_LOW = {
    "dawn": (0.99, 0.85, 0.72),
    "noon": (0.82, 0.92, 0.98),
    "sunset": (1.00, 0.70, 0.36),
    "night": (0.17, 0.22, 0.42),
}
_GLOW = {
    "dawn": (0.35, 0.24, 0.10),
    "noon": (0.25, 0.25, 0.18),
    "sunset": (0.40, 0.25, 0.05),
    "night": (0.16, 0.18, 0.22),
}
_CLOUD = {
    "dawn": (1.00, 0.90, 0.86),
    "noon": (1.0, 1.0, 1.0),
    "sunset": (0.98, 0.55, 0.42),
    "night": (0.13, 0.16, 0.32),
}
LIGHT = {"dawn": (0.98, 0.90, 0.90), "noon": (1.0, 1.0, 1.0), "sunset": (0.95, 0.74, 0.70), "night": (0.36, 0.42, 0.62)}
"""Colour of the light that falls on the land at each hour."""
_GROUND = {
    "mountains": (0.42, 0.44, 0.50), "dunes": (0.88, 0.68, 0.40), "sea": (0.10, 0.36, 0.52),
    "forest": (0.12, 0.34, 0.22), "hills": (0.40, 0.62, 0.24), "town": (0.56, 0.42, 0.38),
}  # fmt: skip


def background(canvas: Canvas, land: Tensor, hour: Tensor) -> Tensor:
    """Paint skies with their landscapes, (n, 3, side, side) in [0, 1], of the given kinds (n,)."""
    image = _sky(canvas, hour)
    for index, name in enumerate(LANDS):
        keep = land == index
        if bool(keep.any()):
            here = canvas.of(keep)
            image[keep] = _PAINTERS[name](image[keep], here, _Palette(hour[keep], name))
    return image


class _Palette:
    """The colours of a landscape's layers: its ground in the light of the hour, paler with the distance."""

    def __init__(self, hour: Tensor, land: str) -> None:
        self.hour, self.land = hour, land
        self.light, self.haze = rgb(LIGHT, hour), rgb(_LOW, hour)

    def layer(self, distance: float, base: tuple[float, float, float] | None = None) -> Tensor:
        """Return the colour (n, 3, 1, 1) of a layer at a distance in [0, 1]."""
        ground = torch.tensor(base or _GROUND[self.land]).view(1, 3, 1, 1)
        return torch.lerp(ground * self.light, self.haze, distance)


def _sky(canvas: Canvas, hour: Tensor) -> Tensor:
    height = (canvas.y / HORIZON).clamp(0, 1)
    upper, lower = (2 * height).clamp(0, 1), (2 * height - 1).clamp(0, 1)
    image = torch.lerp(torch.lerp(rgb(_ZENITH, hour), rgb(_MIDDLE, hour), upper), rgb(_LOW, hour), lower)
    image = image.expand(-1, -1, canvas.side, canvas.side).clone()
    night = (hour == HOURS.index("night")).float().view(-1, 1, 1)
    # A sun low in the sky, or a moon high in it.
    cx = canvas.draw(0, 12, CANVAS - 12)
    cy = torch.where(night > 0, canvas.draw(1, 10, 34), HORIZON - canvas.draw(1, 2, 14))
    noon = (hour == HOURS.index("noon")).view(-1, 1, 1)
    cy = torch.where(noon, canvas.draw(1, 6, 26), cy)
    away = torch.hypot(canvas.x - cx, canvas.y - cy)
    glow = torch.exp(-away / 26)
    image = image + rgb(_GLOW, hour) * glow[:, None]
    radius = torch.where(night > 0, 6.0, 7.5)
    disc = inside(away - radius, 1.6 * canvas.edge) * torch.where(night > 0, 0.9, 0.55)
    image = lay(image, torch.tensor([1.0, 0.97, 0.86]).view(1, 3, 1, 1), disc)
    for star in range(12):
        far = torch.hypot(
            canvas.x - canvas.draw(70 + star, 0, CANVAS), canvas.y - 66 * canvas.draw(82 + star % 9).square()
        )
        image = (
            image + (night * 0.9 * torch.exp(-(far / canvas.draw(70 + (star + 5) % 12, 0.7, 1.4)).square()))[:, None]
        )
    cover = (
        canvas.fields[:, 0]
        + 0.6 * torch.sin(canvas.y / 13 + canvas.draw(2, 0, 2 * math.pi))
        + canvas.draw(3, -1.2, 0.1)
    )
    clouds = (1.1 * cover).clamp(0, 1) * (0.45 + 0.45 * height)
    return lay(image, rgb(_CLOUD, hour), clouds * 0.85)


def _layer(image: Tensor, canvas: Canvas, top: Tensor, colour: Tensor, *, grain: float = 0.05) -> Tensor:
    """Lay ground below a profile `top` (n, 1, side), with random relief, a little darker towards the bottom."""
    depth = (canvas.y - top).clamp(min=0)
    relief = 1 + grain * canvas.fields[:, 1] - 0.18 * (depth / 40).clamp(0, 1)
    return lay(image, (colour * relief[:, None]).clamp(0, 1), inside(top - canvas.y, canvas.edge))


def _mountains(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    for first, level, tall, width, far in ((8, 82.0, 34.0, 34.0, 0.50), (16, 92.0, 30.0, 42.0, 0.22)):
        top = torch.full_like(canvas.x, level).expand(len(image), 1, -1)
        lit = torch.zeros(len(image), canvas.side, canvas.side)
        for peak in range(4):
            middle = (peak + 0.15 + 0.7 * canvas.draw(first + peak)) * CANVAS / 4
            slope = (canvas.x - middle) / (width * (0.55 + 0.45 * canvas.draw(first + 4 + peak)))
            side = level - tall * (0.45 + 0.55 * canvas.draw(first + 4 + peak)) * (1 - slope.abs())
            side = side + 1.6 * torch.sin(canvas.x / 3.1 + 7 * peak) * slope.abs()
            leaning = slope * width - 0.22 * (canvas.y - level + tall) + 2.5 * torch.sin(canvas.y / 3.7 + 5 * peak)
            lit = torch.where(side < top, torch.sigmoid(-leaning), lit)
            top = torch.minimum(top, side)
        fading = torch.exp(-(canvas.y - top).clamp(min=0) / 14)
        ground = palette.layer(far) * (0.95 + (0.26 * lit - 0.13) * fading)[:, None]
        image = _layer(image, canvas, top, ground, grain=0.07)
        line = (
            level - 0.52 * tall + 3 * torch.sin(canvas.x / 4.3 + canvas.draw(first, 0, 6.3)) + 2 * canvas.fields[:, 1]
        )
        cap = inside(top - canvas.y, canvas.edge) * inside(canvas.y - line, 2 * canvas.edge)
        image = lay(image, palette.layer(0.5 * far, (0.97, 0.98, 1.0)) * (0.88 + 0.12 * lit)[:, None], cap)
    top = 108 - 6 * canvas.ridge(24, 4)
    return _layer(image, canvas, top, palette.layer(0.03, (0.22, 0.36, 0.24)), grain=0.08)


def _dunes(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    for index, (level, reach, far) in enumerate(((82.0, 6.0, 0.45), (94.0, 8.0, 0.22), (108.0, 9.0, 0.05))):
        phase, wave = canvas.draw(8 + 3 * index, 0, 6.3), canvas.draw(9 + 3 * index, 60, 95)
        swing = torch.sin(2 * math.pi * canvas.x / wave + phase)
        top = level - reach * (1 - swing.abs().sqrt()) - 3 * canvas.draw(10 + 3 * index, -1, 1)
        image = _layer(image, canvas, top, palette.layer(far), grain=0.03)
        shade = (torch.cos(2 * math.pi * canvas.x / wave + phase) * swing.sign()).clamp(0, 1)
        dark = palette.layer(far, (0.62, 0.42, 0.26))
        slope = inside(top - canvas.y, canvas.edge) * torch.exp(-(canvas.y - top).clamp(min=0) / 16)
        image = lay(image, dark, 0.75 * slope * shade)
    return image


def _sea(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    depth = ((canvas.y - HORIZON) / (CANVAS - HORIZON)).clamp(0, 1)
    water = torch.lerp(torch.lerp(palette.haze, palette.layer(0.0), 0.55), palette.layer(0.0), depth)
    swell = torch.sin((canvas.y - HORIZON).clamp(min=0).sqrt() * 7 + 1.6 * canvas.fields[:, 1])
    water = water * (1 + (0.05 + 0.05 * depth) * swell)[:, None]
    image = lay(image, water.clamp(0, 1), inside(HORIZON - canvas.y, canvas.edge).expand(len(image), -1, canvas.side))
    path = torch.exp(-((canvas.x - canvas.draw(0, 12, CANVAS - 12)) / (7 + 12 * depth)).square())
    glitter = path * (0.35 + 0.35 * swell) * (1 - 0.6 * depth) * (canvas.y > HORIZON)
    image = (image + rgb(_GLOW, palette.hour) * 1.3 * glitter[:, None]).clamp(0, 1)
    island = 92 - (11 + 6 * canvas.draw(9)) * torch.exp(-((canvas.x - canvas.draw(8, 10, 118)) / 16).square())
    rock = inside(island - canvas.y, canvas.edge) * inside(canvas.y - 90, canvas.edge)
    return lay(image, palette.layer(0.35, (0.24, 0.30, 0.26)), rock)


def _forest(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    image = _layer(image, canvas, 76 - 9 * canvas.ridge(8, 4), palette.layer(0.62), grain=0.05)
    for index, (level, width, tall, far) in enumerate(
        ((86.0, 7.0, 9.0, 0.38), (98.0, 10.0, 14.0, 0.16), (114.0, 14.0, 20.0, 0.0))
    ):
        x = canvas.x + canvas.draw(12 + index, 0, 40)
        crown = (torch.remainder(x, width) / width - 0.5).abs() * 2
        which = torch.floor(x / width)
        height = tall * (0.62 + 0.38 * torch.sin(which * 12.9 + canvas.draw(15 + index, 0, 6.3)))
        ground = level - 5 * canvas.ridge(20 + 4 * index, 4)
        top = ground - height * (1 - crown.pow(0.9))
        image = _layer(image, canvas, top, palette.layer(far), grain=0.14)
    return image


def _hills(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    tones = ((0.46, 0.62, 0.34), (0.52, 0.66, 0.22), (0.30, 0.52, 0.18))
    for index, (level, reach, far) in enumerate(((80.0, 8.0, 0.42), (94.0, 9.0, 0.18), (112.0, 8.0, 0.0))):
        wave = 2 * math.pi * canvas.x / canvas.draw(8 + 3 * index, 90, 150)
        top = level - reach * torch.sin(wave + canvas.draw(9 + 3 * index, 0, 6.3))
        image = _layer(image, canvas, top, palette.layer(far, tones[index]), grain=0.06)
        rows = torch.sin((canvas.y - top) / (1.5 + 1.2 * index) + 0.02 * canvas.x)
        image = lay(
            image, palette.layer(far, (0.72, 0.74, 0.30)), 0.22 * rows.clamp(0, 1) * inside(top - canvas.y, canvas.edge)
        )
    return image


def _town(image: Tensor, canvas: Canvas, palette: _Palette) -> Tensor:
    image = _layer(image, canvas, 80 - 7 * canvas.ridge(8, 4), palette.layer(0.6, (0.45, 0.50, 0.45)), grain=0.05)
    night = (palette.hour == HOURS.index("night")).float().view(-1, 1, 1)
    walls = ((0.66, 0.52, 0.46), (0.78, 0.66, 0.52))
    for index, (level, width, tall, far) in enumerate(((92.0, 13.0, 16.0, 0.30), (112.0, 18.0, 20.0, 0.05))):
        x = canvas.x + canvas.draw(12 + index, 0, 60)
        which, across = torch.floor(x / width), torch.remainder(x, width) / width - 0.5
        pick = torch.sin(which * 37.7 + canvas.draw(14 + index, 0, 6.3))
        eaves = level - tall * (0.45 + 0.30 * pick)
        roof = eaves - (5 + 3 * index) * (1 - 2 * across.abs()) * (1 + 0.4 * torch.sin(which * 5.1))
        image = _layer(image, canvas, roof, palette.layer(far, (0.62, 0.26, 0.20)), grain=0.08)
        wall = palette.layer(far, walls[index]) * (0.92 + 0.12 * torch.cos(which * 9.7))[:, None]
        image = _layer(image, canvas, eaves, wall, grain=0.05)
        down = torch.remainder(canvas.y - eaves, 8.0) - 4
        window = inside(torch.maximum((across.abs() * width - width / 4).abs() - 1.4, down.abs() - 1.9), canvas.edge)
        window = window * inside(eaves + 1 - canvas.y, canvas.edge) * inside(canvas.y - eaves - 16, canvas.edge)
        lit = torch.lerp(
            palette.layer(far, (0.22, 0.24, 0.32)), torch.tensor([1.0, 0.82, 0.42]).view(1, 3, 1, 1), night[:, None]
        )
        image = lay(image, lit, 0.85 * window)
    return image


_Painter = Callable[[Tensor, Canvas, _Palette], Tensor]
_PAINTERS: dict[str, _Painter] = {
    "mountains": _mountains, "dunes": _dunes, "sea": _sea, "forest": _forest, "hills": _hills, "town": _town,
}  # fmt: skip
