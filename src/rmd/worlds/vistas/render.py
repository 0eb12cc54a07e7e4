"""The renderer of the vistas: batches of pictures of any size from attributes and a seed.

What the caption leaves open (exact place and size, lean, pattern's phase and period, sun, clouds, ridges, relief) is
drawn for each vista from a generator keyed by (seed, index), so vista i does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.worlds.batch import Batch, draw_batch
from rmd.worlds.vistas.canvas import CANVAS, DRAWS, GRAIN, Canvas, natural_fields, rgb
from rmd.worlds.vistas.grammar import ATTRIBUTE_NAMES, FORMS, LAYOUTS, Attributes, caption, draw_attributes
from rmd.worlds.vistas.land import LIGHT, background
from rmd.worlds.vistas.things import paint

DOUBLED, CUT = 0.25, 0.15
"""Shares of the poor pictures of a single object that show it twice, or half outside the picture."""


def sample_vistas(indices: Sequence[int], *, seed: int, training: bool, poor: bool = False) -> Batch:
    """Draw vistas by index; vista i depends only on (seed, i).

    Args:
        indices: the vistas' indices.
        seed: seed of the vistas.
        training: whether the held-out combinations are left out.
        poor: whether pictures are wrong in their structure, as those of a teacher's low resolution are to be: some
            singles are doubled or cut, and all captions of a pair above each other name them the wrong way round.
    """

    def attributes(_: int, g: torch.Generator) -> Attributes:
        drawn = draw_attributes(g, training=training)
        if not poor or drawn.is_pair:
            return drawn
        u = float(torch.rand((), generator=g))
        return replace(drawn, form=1 if u < DOUBLED else 2 if u < DOUBLED + CUT else 0)

    def words(drawn: Attributes, uniform: Tensor) -> str:
        wrong = poor and drawn.layout == LAYOUTS.index("above")
        return caption(drawn.exchanged() if wrong else drawn, flipped=bool(uniform[-1] < 0.5))

    return draw_batch("vista", indices, attributes, words, seed=seed, draws=DRAWS, grain=GRAIN)


def vistas_of(attributes: Sequence[Attributes], *, seed: int) -> Batch:
    """Draw vistas with given attributes; what the captions leave open depends on the seed and the position."""
    indices = range(len(attributes))
    return draw_batch(
        "vista-of", indices, lambda i, _: attributes[i], lambda a, _: caption(a), seed=seed, draws=DRAWS, grain=GRAIN
    )


def render(vistas: Batch, size: int = 128, *, chunk: int = 64) -> Tensor:
    """Render to (n, 3, size, size) float32 in [0, 1]. Sizes below 128 are pooled from 128."""
    return torch.cat([_render_chunk(part, size) for part in vistas.split(chunk)])


def _render_chunk(vistas: Batch, size: int) -> Tensor:
    side = max(size, int(CANVAS))
    columns = dict(zip(ATTRIBUTE_NAMES, vistas.attributes.unbind(1), strict=True))
    canvas = Canvas(side, vistas.uniform, natural_fields(vistas.grain, side))
    image = background(canvas, columns["land"], columns["hour"])
    light = rgb(LIGHT, columns["hour"])
    for which, offset, places in placements(vistas):
        for place in places:
            keep = place[:, 2] > 0
            if bool(keep.any()):
                image[keep] = paint(
                    image[keep], canvas.of(keep, offset=offset), kind=columns[f"kind_{which}"][keep],
                    colour=columns[f"colour_{which}"][keep], pattern=columns[f"pattern_{which}"][keep],
                    place=place[keep], light=light[keep],
                )  # fmt: skip
    image = image.clamp(0, 1)
    return image if side == size else F.avg_pool2d(image, side // size)


def placements(vistas: Batch) -> list[tuple[str, int, list[Tensor]]]:
    """Return, of objects a and b, where their draws start, and the places (n, 3) at which they are painted.

    A place is centre x, centre y and radius in canvas units; the radius is 0 where there is nothing to paint.
    """
    u, columns = vistas.uniform, dict(zip(ATTRIBUTE_NAMES, vistas.attributes.unbind(1), strict=True))
    layout, single, big = columns["layout"], columns["kind_b"] < 0, columns["size_a"] == 1

    def between(index: int, low: float, high: float) -> Tensor:
        return low + (high - low) * u[:, index]

    x = torch.full((len(u),), CANVAS / 2)
    x[layout == LAYOUTS.index("left")], x[layout == LAYOUTS.index("right")] = 34.0, CANVAS - 34.0
    x_a, y_a = x + between(62, -5, 5), between(63, 42, 56)
    x_b, y_b = x_a, y_a
    beside, above = layout == LAYOUTS.index("beside"), layout == LAYOUTS.index("above")
    x_a, x_b = torch.where(beside, between(62, 29, 38), x_a), torch.where(beside, between(64, 90, 99), x_b)
    y_a, y_b = torch.where(beside, between(63, 32, 68), y_a), torch.where(beside, between(65, 32, 68), y_b)
    x_a, x_b = torch.where(above, between(62, 38, 90), x_a), torch.where(above, between(64, 38, 90), x_b)
    y_a, y_b = torch.where(above, between(63, 26, 31), y_a), torch.where(above, between(65, 82, 88), y_b)
    pair = between(60, 17, 20)
    radius = torch.where(single, torch.where(big, between(60, 25, 29), between(60, 15.5, 18)), pair)
    place = torch.stack([x_a, y_a, radius], 1)
    second = torch.stack([x_b, y_b, between(61, 17, 20) * ~single], 1)
    again, place = _misshapen(columns["form"], place, u)
    return [("a", 20, [again, place]), ("b", 40, [second])]


def _misshapen(form: Tensor, place: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a single object stands a second time if it is doubled, and where it stands itself."""
    x, y, radius = place.unbind(1)
    middle = (x - CANVAS / 2).abs() < 12
    side = torch.where(torch.where(middle, u[:, 66] < 0.5, x > CANVAS / 2), -1.0, 1.0)
    aside = x + side * (1.9 * radius.clamp(max=22) + 10)
    doubled, cut = form == FORMS.index("doubled"), form == FORMS.index("cut")
    again = torch.stack([aside, y + 30 * (u[:, 67] - 0.5), 0.85 * radius * doubled], 1)
    edge = torch.where(middle, torch.where(u[:, 66] < 0.5, 0.0, CANVAS), torch.where(x < CANVAS / 2, 0.0, CANVAS))
    return again, torch.stack([torch.where(cut, edge, x), y, torch.where(cut, 1.25 * radius, radius)], 1)


def object_places(vistas: Batch) -> Tensor:
    """Return centre x, centre y and radius of both objects, (n, 2, 3), with radius 0 for one that is not there."""
    (_, _, (_, first)), (_, _, (second,)) = placements(vistas)
    return torch.stack([first, second], 1)
