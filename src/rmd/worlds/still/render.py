"""The procedural renderer: batches of shaded, anti-aliased scenes of any size from attributes and a seed.

What the caption leaves open (exact place, size, angle, texture phase and period, light, palette, background grain,
pebbles) is drawn for each scene from a generator keyed by (seed, index), so scene i does not depend on its batch.
Coordinates are in canvas units: the picture spans [0, 64) in both directions whatever its size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.worlds.batch import Batch, draw_batch
from rmd.worlds.still.grammar import ATTRIBUTE_NAMES, LAYOUTS, Attributes, caption, draw_attributes

CANVAS = 64.0
_NUISANCES = 64
_PALETTE = torch.tensor(
    [[0.86, 0.16, 0.14], [0.95, 0.78, 0.12], [0.18, 0.62, 0.22], [0.16, 0.32, 0.86], [0.58, 0.22, 0.74], [0.95] * 3]
)
_SKY = {  # colours at the top and at the bottom of every background, interpolated linearly
    "sand": ((0.93, 0.83, 0.62), (0.80, 0.66, 0.43)),
    "grass": ((0.45, 0.66, 0.30), (0.25, 0.47, 0.18)),
    "night": ((0.03, 0.04, 0.14), (0.13, 0.13, 0.33)),
    "sunset": ((0.37, 0.25, 0.48), (0.97, 0.62, 0.36)),
    "wood": ((0.58, 0.38, 0.22), (0.47, 0.29, 0.16)),
    "sea": ((0.62, 0.83, 0.88), (0.10, 0.42, 0.55)),
}


def sample_scenes(indices: Sequence[int], *, seed: int, training: bool) -> Batch:
    """Draw scenes by index; `training` leaves out the held-out combinations. Scene i depends only on (seed, i)."""
    return draw_batch(
        "scene",
        indices,
        lambda _, g: draw_attributes(g, training=training),
        lambda drawn, u: caption(drawn, flipped=bool(u[0] < 0.5)),
        seed=seed,
        draws=_NUISANCES,
    )


def scenes_of(attributes: Sequence[Attributes], *, seed: int) -> Batch:
    """Draw scenes with given attributes; what the captions leave open depends on the seed and the position."""
    indices = range(len(attributes))
    return draw_batch(
        "scene-of", indices, lambda i, _: attributes[i], lambda a, _: caption(a), seed=seed, draws=_NUISANCES
    )


def render(scenes: Batch, size: int = 64, *, chunk: int = 64) -> Tensor:
    """Render to (n, 3, size, size) float32 in [0, 1], with smooth edges and two-fold supersampling."""
    return torch.cat([_render_chunk(part, size) for part in scenes.split(chunk)])


def _render_chunk(scenes: Batch, size: int) -> Tensor:
    columns = dict(zip(ATTRIBUTE_NAMES, scenes.attributes.unbind(1), strict=True))
    view = View.of(scenes, size)
    image, x, y, u = view.background(columns["background"]), view.x, view.y, view.u
    for which, place in _placements(columns, u):
        keep = columns[f"shape_{which}"] >= 0
        if bool(keep.any()):
            image[keep] = draw_object(
                image[keep],
                x[keep],
                y[keep],
                shape=columns[f"shape_{which}"][keep],
                colour=columns[f"colour_{which}"][keep],
                texture=columns[f"texture_{which}"][keep],
                place=place[keep],
                light=view.light[keep],
                u=Uniforms(scenes.uniform[keep][:, 24 if which == "a" else 40 :]),
                edge=view.edge,
            )
    return view.finished(image)


def _axis(side: int) -> Tensor:
    """Return the centres of `side` equal cells along a side of the canvas."""
    return (torch.arange(side) + 0.5) * (CANVAS / side)


class Uniforms:
    """A table (n, k) of uniform draws, read by column and scaled to a range."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def column(self, index: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return one draw per row, (n,), uniform in [low, high)."""
        return low + (high - low) * self.table[:, index]

    def map(self, index: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return one draw per row, shaped to be broadcast to maps of the given shape (n, ...)."""
        return self.column(index, low, high).view(-1, *[1] * (len(shape) - 1))


@dataclass(frozen=True)
class View:
    """The canvas of a batch at twice its final size, as its scenes or clips see it.

    Attributes:
        x, y: coordinates of every pixel, (n, 2 size, 2 size), in canvas units.
        u: uniform draws.
        grain: random fields of the backgrounds.
        edge: one final pixel in canvas units, the width of an anti-aliased edge.
        light: (n, 2), direction of the light.
    """

    x: Tensor
    y: Tensor
    u: Uniforms
    grain: Tensor
    edge: float
    light: Tensor

    @classmethod
    def of(cls, batch: Batch, size: int) -> View:
        """Return the view of a batch that is rendered at `size` pixels."""
        n, side = len(batch), 2 * size
        y, x = torch.meshgrid(_axis(side), _axis(side), indexing="ij")
        u = Uniforms(batch.uniform[:, :_NUISANCES])
        angle = 2 * math.pi * u.column(1)
        light = torch.stack([torch.cos(angle), -0.4 - 0.6 * u.column(2)], 1)
        light = light / light.norm(dim=1, keepdim=True)
        return cls(x.expand(n, side, side), y.expand(n, side, side), u, batch.grain, CANVAS / size, light)

    def background(self, kind: Tensor) -> Tensor:
        """Paint the backgrounds of the given kinds (n,), with their pebbles."""
        return _pebbles(_background(kind, self.grain, self.u, self.x, self.y), self.u, self.x, self.y, self.edge)

    def finished(self, image: Tensor) -> Tensor:
        """Return a painted canvas at its brightness and final size."""
        return F.avg_pool2d((image * (0.92 + 0.16 * self.u.map(3, (len(image), 1, 1, 1)))).clamp(0, 1), 2)


def _placements(columns: dict[str, Tensor], u: Uniforms) -> list[tuple[str, Tensor]]:
    """Return the centre x, centre y and radius, (n, 3), of objects a and b."""
    n = u.table.shape[0]
    layout, single = columns["layout"], columns["shape_b"] < 0
    big = columns["size_a"] == 1
    radius_single = torch.where(big, u.column(10, 16.5, 19.0), u.column(10, 10.5, 12.5))
    radius_a = torch.where(single, radius_single, u.column(10, 10.5, 13.0))
    radius_b = u.column(11, 10.5, 13.0)
    reach = torch.where(big, torch.tensor(9.5), torch.tensor(14.0))
    direction = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}
    unit = torch.zeros(n, 2)
    for name, (dx, dy) in direction.items():
        unit[layout == LAYOUTS.index(name)] = torch.tensor([float(dx), float(dy)])
    beside = layout == LAYOUTS.index("beside")
    unit[beside] = torch.tensor([-1.0, 0.0])
    unit[layout == LAYOUTS.index("above")] = torch.tensor([0.0, -1.0])
    reach = torch.where(single, reach, torch.tensor(15.0))
    jitter_a = torch.stack([u.column(12, -2.2, 2.2), u.column(13, -2.2, 2.2)], 1)
    jitter_b = torch.stack([u.column(14, -2.2, 2.2), u.column(15, -2.2, 2.2)], 1)
    # A pair has room to move at right angles to its axis.
    across = torch.where(beside[:, None], torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    wander = torch.stack([u.column(16, -6, 6), u.column(17, -6, 6)], 1)[:, :, None] * across[:, None, :]
    wander = wander * (~single)[:, None, None]
    centre_a = CANVAS / 2 + unit * reach[:, None] + jitter_a + wander[:, 0]
    centre_b = CANVAS / 2 - unit * reach[:, None] + jitter_b + wander[:, 1]
    return [
        ("a", torch.cat([centre_a, radius_a[:, None]], 1)),
        ("b", torch.cat([centre_b, radius_b[:, None]], 1)),
    ]


def object_places(scenes: Batch) -> Tensor:
    """Return (n, 2, 3): centre x, centre y and radius of objects a and b in canvas units; radius 0 if there is no b."""
    columns = dict(zip(ATTRIBUTE_NAMES, scenes.attributes.unbind(1), strict=True))
    places = torch.stack([place for _, place in _placements(columns, Uniforms(scenes.uniform))], 1)
    places[columns["shape_b"] < 0, 1, 2] = 0.0
    return places


def object_masks(places: Tensor, side: int, *, canvas: float = CANVAS) -> Tensor:
    """Return (n, 1, side, side) bool: discs around the objects, wide enough for every shape and its shadow's edge.

    Args:
        places: centre x, centre y and radius of every object, (n, objects, 3); the radius is 0 if there is none.
        side: height and width of the masks.
        canvas: height and width of the picture in the units of the places.
    """
    axis = _axis(side) * (canvas / CANVAS)
    x, y, radius = (part[..., None, None] for part in places.unbind(-1))
    distance = torch.hypot(axis - x, axis[:, None] - y)
    return ((distance < 1.2 * radius + 1) & (radius > 0)).any(1, keepdim=True)


def _field(grain: Tensor, channel: int, cells: tuple[int, int], side: int) -> Tensor:
    """Return a smooth random field (n, side, side) of about unit variance with the given number of cells per axis."""
    patch = grain[:, channel : channel + 1, : cells[0], : cells[1]]
    return F.interpolate(patch, size=(side, side), mode="bicubic", align_corners=False)[:, 0]


def _background(kind: Tensor, grain: Tensor, u: Uniforms, x: Tensor, y: Tensor) -> Tensor:
    """Paint backgrounds (n, 3, side, side): a vertical gradient with a tint, and a texture of each kind's own."""
    n, side = x.shape[0], x.shape[-1]
    top = torch.tensor([_SKY[name][0] for name in _SKY])[kind]
    low = torch.tensor([_SKY[name][1] for name in _SKY])[kind]
    tint = torch.stack([u.column(20 + c, -0.05, 0.05) for c in range(3)], 1)
    height = (y / CANVAS)[:, None]
    image = (top + tint)[:, :, None, None] * (1 - height) + (low + tint)[:, :, None, None] * height
    coarse, fine = _field(grain, 0, (4, 4), side), _field(grain, 1, (16, 16), side)
    phase = 2 * math.pi * u.column(4)
    detail = torch.zeros(n, side, side)
    for index, name in enumerate(_SKY):
        m = kind == index
        if not bool(m.any()):
            continue
        c, f, px, py, ph = coarse[m], fine[m], x[m], y[m], phase[m][:, None, None]
        if name == "sand":
            detail[m] = 0.030 * f + 0.035 * torch.sin(0.55 * py + 1.3 * c + ph)
        elif name == "grass":
            blades = torch.sin(1.25 * px + 2.2 * c + ph) * torch.cos(0.35 * py + 2 * f)
            detail[m] = 0.05 * blades + 0.03 * c
        elif name == "night":
            stars = ((_field(grain[m], 2, (16, 16), side) - 1.9) * 3.5).clamp(0, 1)
            detail[m] = 0.75 * stars + 0.02 * c
        elif name == "sunset":
            detail[m] = 0.055 * torch.sin(0.30 * py + 0.9 * c + ph) * torch.sigmoid(c)
        elif name == "wood":
            grainy = torch.sin(1.05 * py + 1.1 * _field(grain[m], 2, (6, 2), side) + ph)
            plank = (torch.remainder(py + 21 * u.column(5)[m][:, None, None], 21.0) < 0.9).float()
            detail[m] = 0.045 * grainy - 0.16 * plank + 0.02 * c
        else:
            detail[m] = 0.06 * torch.sin(0.85 * py + 1.6 * torch.sin(0.16 * px + ph) + 0.7 * c) * (py / CANVAS)
    return image + detail[:, None]


def _pebbles(image: Tensor, u: Uniforms, x: Tensor, y: Tensor, edge: float) -> Tensor:
    """Paint up to two small discs, which no caption mentions, on the background."""
    shape = image.shape
    for k in range(2):
        present = (u.map(6 + k, shape) < 0.45).float()
        cx, cy = u.map(56 + 2 * k, shape[1:], 3, 61), u.map(57 + 2 * k, shape[1:], 3, 61)
        distance = torch.sqrt((x - cx) ** 2 + (y - cy) ** 2) - u.map(60 + k, shape[1:], 1.2, 2.2)
        mask = present * (0.5 - distance / edge).clamp(0, 1)[:, None]
        image = image * (1 - mask) + (image * 0.55 + 0.22 * u.map(62 + k, shape)) * mask
    return image


def draw_object(
    image: Tensor, x: Tensor, y: Tensor, *, shape: Tensor, colour: Tensor, texture: Tensor, place: Tensor,
    light: Tensor, u: Uniforms, edge: float,
) -> Tensor:  # fmt: skip
    """Paint one object onto each picture (n, 3, side, side): soft shadow, texture, shading, anti-aliased edge."""
    flat = (1, 1, 1)
    cx, cy, radius = (place[:, i].view(-1, 1, 1) for i in range(3))
    angle = u.map(0, flat, -0.35, 0.35)
    cos, sin = torch.cos(angle), torch.sin(angle)

    def local(px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
        return cos * (px - cx) + sin * (py - cy), -sin * (px - cx) + cos * (py - cy)

    lx, ly = light[:, 0].view(-1, 1, 1), light[:, 1].view(-1, 1, 1)
    shadow = _distance(shape, *local(x + 2.6 * lx, y + 2.6 * ly), radius)
    image = image * (1 - 0.42 * torch.sigmoid(-shadow / 1.1))[:, None]
    a, b = local(x, y)
    distance = _distance(shape, a, b, radius)
    mask = (0.5 - distance / edge).clamp(0, 1)[:, None]
    base = (_PALETTE[colour] + torch.stack([u.column(1 + c, -0.05, 0.05) for c in range(3)], 1))[:, :, None, None]
    dark = (u.column(4) < 0.6) | (colour == 5)  # marks on white are always dark
    second = torch.where(dark.view(-1, 1, 1, 1), 0.30 * base, 0.25 * base + 0.75)
    marks = _texture(texture, x - cx, y - cy, u, edge)[:, None]
    surface = base * (1 - marks) + second * marks
    slope = (lx * (x - cx) + ly * (y - cy)) / radius
    depth = (-distance / radius).clamp(0, 1)
    bevel = 0.16 * slope * (1 - (depth / 0.35).clamp(0, 1))
    round_ball = (shape == 0).view(-1, 1, 1)
    height = torch.sqrt((1 - ((x - cx) ** 2 + (y - cy) ** 2) / radius**2).clamp(0, 1))
    sphere = 0.62 + 0.30 * height + 0.22 * slope
    shade = torch.where(round_ball, sphere, 0.95 + 0.10 * slope + bevel)
    shine = torch.where(round_ball, 0.5 * torch.exp(-(((slope - 0.55) ** 2 + (height - 0.8) ** 2) / 0.03)), 0.0 * slope)
    painted = surface * shade[:, None] + shine[:, None]
    return image * (1 - mask) + painted.clamp(0, 1) * mask


def _distance(shape: Tensor, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance (n, side, side), negative inside, to each scene's shape in its local coordinates."""
    out = torch.empty_like(a)
    for index in range(6):
        m = shape == index
        if bool(m.any()):
            out[m] = _SHAPE_DISTANCES[index](a[m], b[m], radius[m])
    return out


def _ball(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    return torch.sqrt(a**2 + b**2) - r


def _rounded_box(a: Tensor, b: Tensor, width: Tensor, height: Tensor, corner: Tensor) -> Tensor:
    qx, qy = a.abs() - (width - corner), b.abs() - (height - corner)
    outside = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2)
    return outside + torch.maximum(qx, qy).clamp(max=0) - corner


def _box(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    return _rounded_box(a, b, 0.86 * r, 0.86 * r, 0.14 * r)


def _triangle(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    slanted = 0.894 * a.abs() - 0.447 * (b + r)  # edges from the apex (0, -r) to (+-r, r) after the shift below
    return torch.maximum(slanted, b - 0.82 * r)


def _cross(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    arm = 0.36 * r
    return torch.minimum(_rounded_box(a, b, r, arm, 0.1 * r), _rounded_box(a, b, arm, r, 0.1 * r))


def _star(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    outer, inner = 1.12 * r, 0.50 * r
    sector = 2 * math.pi / 5
    theta = torch.atan2(a, -b)
    theta = (torch.remainder(theta + sector / 2, sector) - sector / 2).abs()
    length = torch.sqrt(a**2 + b**2)
    px, py = length * torch.cos(theta), length * torch.sin(theta)
    # Each half of a point is bounded by the line from (outer, 0) to the notch.
    nx, ny = inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    dx, dy = nx - outer, ny
    norm = torch.sqrt(dx**2 + dy**2)
    return ((px - outer) * dy - py * dx) / norm


def _ring(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    return (torch.sqrt(a**2 + b**2) - 0.72 * r).abs() - 0.30 * r


_SHAPE_DISTANCES = (_ball, _box, _triangle, _cross, _star, _ring)


def _texture(texture: Tensor, a: Tensor, b: Tensor, u: Uniforms, edge: float) -> Tensor:
    """Return the share of the second colour, (n, side, side) in [0, 1]; marks are three to five units wide.

    `a` and `b` are coordinates relative to the object's centre along the picture's axes: stripes stay level whatever
    the object's angle, so that a small network can learn to draw them straight.
    """
    flat = (1, 1, 1)
    phase_p, phase_q = u.map(6, flat, 0, 2 * math.pi), u.map(7, flat, 0, 2 * math.pi)
    scale = u.map(8, flat, 0.92, 1.12)
    wave = 2 * math.pi / scale

    def stripes(distance: Tensor) -> Tensor:
        return torch.sin(wave * distance / 6.0 + phase_p) / (2 * math.pi / 6.0)

    def dots() -> Tensor:
        bumps = torch.cos(wave * a / 7.6 + phase_p) + torch.cos(wave * b / 7.6 + phase_q)
        return (bumps - 0.75) / (2.6 * math.pi / 7.6)

    def checks() -> Tensor:
        return torch.sin(wave * a / 9.6 + phase_p) * torch.sin(wave * b / 9.6 + phase_q) / (2 * math.pi / 9.6)

    fields: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.full_like(a, -1.0),
        lambda: stripes(b),
        dots,
        checks,
        lambda: stripes(torch.sqrt(a**2 + b**2 + 1e-6)),
    )
    # Each field approximates the distance to a mark's edge in canvas units, so one clamp anti-aliases all of them.
    value = torch.empty_like(a)
    for index, field in enumerate(fields):
        m = texture == index
        if bool(m.any()):
            value[m] = field()[m]
    return (0.5 + value / (0.8 * edge)).clamp(0, 1)
