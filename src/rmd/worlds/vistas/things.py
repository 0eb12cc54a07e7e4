"""Painters of the objects in the air: their shapes, patterns, shading and details.

Every shape has a radius r and local coordinates (a, b), to the right and down from its centre.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rmd.worlds.vistas.canvas import Canvas, inside, lay, rgb
from rmd.worlds.vistas.grammar import KINDS

_PALETTE = {
    "red": (0.86, 0.14, 0.13), "yellow": (0.97, 0.79, 0.12), "green": (0.13, 0.60, 0.25), "blue": (0.13, 0.33, 0.86),
    "purple": (0.56, 0.20, 0.72), "white": (0.95, 0.95, 0.95),
}  # fmt: skip
_CREAM, _DARK = torch.tensor([0.99, 0.93, 0.78]), torch.tensor([0.24, 0.22, 0.30])


def paint(
    image: Tensor, canvas: Canvas, *, kind: Tensor, colour: Tensor, pattern: Tensor, place: Tensor, light: Tensor
) -> Tensor:
    """Paint one object onto each picture (n, 3, side, side).

    Args:
        canvas: pixels and draws of the pictures.
        kind, colour, pattern: (n,), the object's attributes.
        place: (n, 3), its centre and radius in canvas units.
        light: (n, 3, 1, 1), the colour of the light.
    """
    cx, cy, r = (place[:, i].view(-1, 1, 1) for i in range(3))
    lean = canvas.draw(0, -0.12, 0.12)
    x, y = canvas.x - cx, canvas.y - cy
    a, b = torch.cos(lean) * x + torch.sin(lean) * y, torch.cos(lean) * y - torch.sin(lean) * x
    base = rgb(_PALETTE, colour) + 0.05 * (canvas.uniform[:, 1:4] - 0.5)[:, :, None, None]
    second = torch.where((colour == 5).view(-1, 1, 1, 1), _DARK.view(1, 3, 1, 1), _CREAM.view(1, 3, 1, 1))
    # Shaded things still glow a little at night, so that their colours can be told.
    lamp = 0.45 + 0.55 * light
    for index in range(len(KINDS)):
        keep = kind == index
        if bool(keep.any()):
            here = _Thing(
                canvas.of(keep), a[keep], b[keep], r[keep], pattern[keep], base[keep], second[keep], lamp[keep]
            )
            image[keep] = _PAINTERS[index](image[keep], here).clamp(0, 1)
    return image


class _Thing:
    """One object of each picture, in its own coordinates."""

    def __init__(
        self,
        canvas: Canvas,
        a: Tensor,
        b: Tensor,
        r: Tensor,
        pattern: Tensor,
        base: Tensor,
        second: Tensor,
        lamp: Tensor,
    ) -> None:
        self.canvas, self.a, self.b, self.r, self.edge = canvas, a, b, r, canvas.edge
        self.pattern, self.base, self.second, self.lamp = pattern.view(-1, 1, 1), base, second, lamp

    def surface(self, shade: Tensor, *, u: Tensor, v: Tensor, second: Tensor | None = None) -> Tensor:
        """Return the colours of a patterned surface with coordinates (u, v) in canvas units, times a shade."""
        pitch = self.canvas.draw(8, 13.0, 16.0)
        wave = 2 * math.pi / pitch
        phase = self.canvas.draw(9, 0, 2 * math.pi)
        stripes = torch.sin(wave * u + phase) / wave
        spots = (torch.cos(wave * u + phase) + torch.cos(wave * v + self.canvas.draw(10, 0, 2 * math.pi)) - 0.7) / wave
        value = torch.where(self.pattern == 1, stripes, torch.where(self.pattern == 2, spots, -1.0))
        marks = inside(-value, self.edge)[:, None]
        return torch.lerp(self.base, self.second if second is None else second, marks) * shade[:, None] * self.lamp

    def plain(self, colour: tuple[float, float, float], shade: Tensor | float = 1.0) -> Tensor:
        """Return a colour in the light of the hour."""
        value = torch.tensor(colour).view(1, 3, 1, 1) * self.lamp
        return value * (shade[:, None] if isinstance(shade, Tensor) else shade)


def _round(a: Tensor, b: Tensor, rx: Tensor, ry: Tensor) -> Tensor:
    """Return the shade of an ellipsoid, lit from the upper left."""
    nx, ny = (a / rx).clamp(-1, 1), (b / ry).clamp(-1, 1)
    height = (1 - nx.square() - ny.square()).clamp(min=0).sqrt()
    return 0.58 + 0.34 * height - 0.20 * nx - 0.14 * ny


def _box(a: Tensor, b: Tensor, width: Tensor, height: Tensor, corner: Tensor) -> Tensor:
    qx, qy = a.abs() - (width - corner), b.abs() - (height - corner)
    outside = torch.hypot(qx.clamp(min=0), qy.clamp(min=0))
    return outside + torch.maximum(qx, qy).clamp(max=0) - corner


def _ellipse(a: Tensor, b: Tensor, rx: Tensor, ry: Tensor) -> Tensor:
    k = torch.hypot(a / rx, b / ry)
    return (k - 1) * torch.minimum(rx, ry)


def _segment(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor, a1: Tensor, b1: Tensor) -> Tensor:
    """Return the distance from the segment between two points."""
    da, db = a1 - a0, b1 - b0
    t = (((a - a0) * da + (b - b0) * db) / (da.square() + db.square() + 1e-6)).clamp(0, 1)
    return torch.hypot(a - a0 - t * da, b - b0 - t * db)


def _balloon(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    top, mouth = -0.22 * r, 0.72 * r
    for side in (-1.0, 1.0):
        rope = _segment(a, b, side * 0.26 * r, mouth, side * 0.15 * r, 0.90 * r)
        image = lay(image, t.plain((0.25, 0.18, 0.14)), inside(rope - 0.4, t.edge))
    basket = _box(a, b - 0.98 * r, 0.17 * r, 0.12 * r, 0.04 * r)
    image = lay(image, t.plain((0.50, 0.30, 0.16)), inside(basket, t.edge))
    ball = torch.hypot(a, b - top) - 0.78 * r
    fall = ((b - top) / (mouth - top)).clamp(0, 1)
    width = r * (0.78 * (1 - fall.square()).clamp(min=0).sqrt() * (1 - fall) + (0.70 - 0.42 * fall) * fall)
    skirt = torch.maximum(a.abs() - width, torch.maximum(top - b, b - mouth))
    distance = torch.minimum(ball, skirt)
    shade = _round(a, b - top, 0.80 * r, 0.95 * r)
    gores = torch.asin((a / (0.80 * r)).clamp(-1, 1)) * 0.80 * r
    return lay(image, t.surface(shade, u=gores, v=b), inside(distance, t.edge))


def _airship(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    for side in (-1.0, 1.0):
        fin = _ellipse(a + 1.02 * r, b - side * 0.32 * r, 0.26 * r, 0.24 * r)
        image = lay(image, t.base * t.lamp * 0.72, inside(fin, t.edge))
    gondola = _box(a - 0.05 * r, b - 0.58 * r, 0.36 * r, 0.12 * r, 0.08 * r)
    image = lay(image, t.plain((0.34, 0.32, 0.36)), inside(gondola, t.edge))
    hull = _ellipse(a, b, 1.22 * r, 0.54 * r)
    return lay(image, t.surface(_round(a, b, 1.22 * r, 0.54 * r), u=a, v=b), inside(hull, t.edge))


def _kite(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    sway = 0.16 * r * torch.sin(5.2 * (b - 0.9 * r) / r + t.canvas.draw(11, 0, 6.3))
    tail = torch.maximum((a - sway).abs() - 0.5, torch.maximum(0.85 * r - b, b - 1.55 * r))
    image = lay(image, t.plain((0.30, 0.24, 0.26)), inside(tail, t.edge))
    for share in (1.12, 1.34, 1.54):
        place = share * r
        bow = 0.16 * r * torch.sin(5.2 * (place - 0.9 * r) / r + t.canvas.draw(11, 0, 6.3))
        image = lay(image, t.base * t.lamp, inside(_ellipse(a - bow, b - place, 0.15 * r, 0.08 * r), t.edge))
    low = torch.where(b > -0.25 * r, 1.15, 0.75)
    distance = (a.abs() / 0.78 + (b + 0.25 * r).abs() / low - r) * 0.6
    shade = torch.where(a < 0, 1.0, 0.86) * torch.where(b < -0.25 * r, 1.0, 0.93)
    image = lay(image, t.surface(shade, u=a, v=b), inside(distance, t.edge))
    cross = torch.minimum(a.abs(), (b + 0.25 * r).abs()) - 0.35
    return lay(image, t.plain((0.30, 0.20, 0.14)), 0.6 * inside(torch.maximum(cross, distance), t.edge))


def _lantern(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    glow = torch.exp(-_ellipse(a, b, 0.75 * r, 0.95 * r).clamp(min=0) / (0.28 * r))
    image = image + 0.30 * glow[:, None] * torch.tensor([1.0, 0.75, 0.38]).view(1, 3, 1, 1)
    string = torch.maximum(a.abs() - 0.4, torch.maximum(0.8 * r - b, b - 1.35 * r))
    image = lay(image, t.plain((0.72, 0.20, 0.14)), inside(string, t.edge))
    tassel = _ellipse(a, b - 1.30 * r, 0.09 * r, 0.18 * r)
    image = lay(image, t.plain((0.80, 0.22, 0.14)), inside(tassel, t.edge))
    body = _box(a, b, 0.72 * r, 0.82 * r, 0.42 * r)
    height = (1 - (a / (0.85 * r)).square()).clamp(min=0).sqrt()
    image = lay(image, t.surface(0.70 + 0.38 * height, u=a, v=b), inside(body, t.edge))
    for side in (-1.0, 1.0):
        cap = _box(a, b - side * 0.84 * r, 0.36 * r, 0.10 * r, 0.04 * r)
        image = lay(image, t.plain((0.22, 0.15, 0.12)), inside(cap, t.edge))
    return image


def _planet(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    c, s = math.cos(0.38), math.sin(0.38)
    p, q = c * a + s * b, c * b - s * a
    around = _ellipse(p, q, 1.28 * r, 0.36 * r)
    hole = _ellipse(p, q, 0.98 * r, 0.22 * r)
    ring = torch.maximum(around, -hole)
    ball = torch.hypot(a, b) - 0.76 * r
    sand = t.plain((0.90, 0.82, 0.66))
    image = lay(image, sand, inside(ring, t.edge))
    image = lay(image, t.surface(_round(a, b, 0.76 * r, 0.76 * r), u=p, v=q), inside(ball, t.edge))
    return lay(image, sand, inside(torch.maximum(ring, -q), t.edge))


def _parachute(image: Tensor, t: _Thing) -> Tensor:
    r, a, b = t.r, t.a, t.b
    rim = 0.05 * r
    for share in (-0.92, -0.46, 0.46, 0.92):
        line = _segment(a, b, share * r, rim, share * 0.10 * r, 0.98 * r)
        image = lay(image, t.plain((0.28, 0.26, 0.28)), 0.8 * inside(line - 0.35, t.edge))
    crate = _box(a, b - 1.06 * r, 0.17 * r, 0.15 * r, 0.03 * r)
    image = lay(image, t.plain((0.52, 0.34, 0.18)), inside(crate, t.edge))
    scallop = rim - 0.13 * r * (math.pi * 2 * a / (1.0 * r)).cos().abs()
    dome = torch.maximum(_ellipse(a, b - rim, 1.06 * r, 0.98 * r), b - scallop)
    shade = _round(a, b - rim, 1.06 * r, 1.1 * r)
    gores = torch.asin((a / (1.10 * r)).clamp(-1, 1)) * 1.0 * r
    return lay(image, t.surface(shade, u=gores, v=b), inside(dome, t.edge))


_PAINTERS = (_balloon, _airship, _kite, _lantern, _planet, _parachute)
