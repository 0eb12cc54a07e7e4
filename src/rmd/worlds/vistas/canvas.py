"""The canvas on which vistas are painted: its coordinates, random draws and fields, and how shapes are laid over it.

Coordinates are in canvas units: the picture spans [0, 128) in both directions whatever its size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = 128.0
DRAWS = 96
"""Number of uniform draws of a vista."""
GRAIN = (2, 128, 128)
"""Shape of the normal draws of a vista, from which its random fields are made."""


@dataclass(frozen=True)
class Canvas:
    """The pixels of n pictures and the draws for what their captions leave open.

    Attributes:
        side: height and width in pixels.
        uniform: (n, `DRAWS`) in [0, 1).
        fields: (n, 2, side, side), random fields of unit variance whose power falls with the frequency, as 1/f^3.5 in
            the first (clouds) and as 1/f^2, as in natural pictures, in the second (relief of the ground).
    """

    side: int
    uniform: Tensor
    fields: Tensor

    @property
    def edge(self) -> float:
        """One pixel in canvas units, the width of an anti-aliased edge."""
        return CANVAS / self.side

    @property
    def x(self) -> Tensor:
        """Horizontal coordinates of the pixels, (1, side)."""
        return ((torch.arange(self.side) + 0.5) * self.edge)[None]

    @property
    def y(self) -> Tensor:
        """Vertical coordinates of the pixels, (side, 1)."""
        return self.x.T

    def draw(self, index: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return one draw per picture, uniform in [low, high), as a map (n, 1, 1)."""
        return (low + (high - low) * self.uniform[:, index]).view(-1, 1, 1)

    def of(self, keep: Tensor, *, offset: int = 0) -> Canvas:
        """Return the canvas of the pictures `keep` (n,) bool, whose draws start at an offset."""
        return Canvas(self.side, self.uniform[keep][:, offset:], self.fields[keep])

    def ridge(self, first: int, cells: int) -> Tensor:
        """Return a smooth random profile along x, (n, 1, side), uniform in about [-1, 1], of `cells` random heights."""
        heights = 2 * self.uniform[:, None, first : first + cells] - 1
        return F.interpolate(heights, size=self.side, mode="linear", align_corners=True)


def natural_fields(grain: Tensor, side: int) -> Tensor:
    """Return the random fields of a canvas, (n, 2, side, side), from white noise (n, 2, 128, 128)."""
    coloured = torch.fft.irfft2(torch.fft.rfft2(grain) * _falloff(grain.shape[-1]), s=grain.shape[-2:])
    fields = coloured / coloured.std((-2, -1), keepdim=True)
    return fields if side == grain.shape[-1] else F.interpolate(fields, size=(side, side), mode="bicubic")


@lru_cache(maxsize=4)
def _falloff(size: int) -> Tensor:
    """Return the amplitudes of both fields by frequency, (2, size, size // 2 + 1), without a mean."""
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    radius = torch.hypot(fy, fx)
    radius[0, 0] = torch.inf
    return torch.stack([radius**-1.75, radius**-1.0])


def lay(image: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    """Lay a colour (n, 3, 1 or h, 1 or w) over pictures (n, 3, h, w) where a mask (n, h, w) in [0, 1] is set."""
    return torch.lerp(image, colour.expand_as(image), mask[:, None])


def inside(distance: Tensor, edge: float) -> Tensor:
    """Return the coverage in [0, 1] of pixels at signed distances from an edge, negative inside."""
    return (0.5 - distance / edge).clamp(0, 1)


def rgb(table: dict[str, tuple[float, float, float]], kind: Tensor) -> Tensor:
    """Return the colours (n, 3, 1, 1) of the entries `kind` (n,) of a table."""
    return torch.tensor(list(table.values()))[kind][:, :, None, None]
