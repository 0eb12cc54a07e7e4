"""The best linear upsampler of a teacher's latents: a filter for `crossing.upsample` "taps", fitted to pairs.

A pair is the same picture encoded at two resolutions. The filter is symmetric and separable (the same along rows and
columns), so an enlarged latent is quadratic in the taps: A(t) x A(t)^T. Gauss-Newton steps from bilinear
interpolation solve the least-squares problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import upsample
from rmd.core.stages import Upsample

ITERATIONS = 30
PARTS = 8
"""Number of samples whose Jacobian is computed at once."""


def tap_count(low: tuple[int, int], high: tuple[int, int]) -> int | None:
    """Return the number of taps to fit: about four times the ratio of the sides, 8 at a ratio of 2.

    Args:
        low, high: height and width of the latents at the two resolutions.

    Returns:
        The number; None if the ratio is not the same whole number along both sides, for which no taps exist.
    """
    ratio, rest = divmod(high[0], low[0])
    if rest or ratio < 2 or (low[0] * ratio, low[1] * ratio) != tuple(high):
        return None
    return 4 * ratio - ratio % 2


def fit_taps(low: Tensor, high: Tensor) -> tuple[float, ...]:
    """Return the symmetric taps with which `upsample` brings the low latents as close to the high ones as possible.

    Args:
        low: latents (n, C, h, w).
        high: latents (n, C, H, W) of the same pictures; the ratio of the sides is a whole number above 1.

    Returns:
        `tap_count` numbers, for `crossing.taps`.

    Raises:
        RMDError: no taps exist for the ratio of the sides.
    """
    length = tap_count(_size(low), _size(high))
    if length is None:
        raise RMDError(
            f"no filter enlarges latents of {low.shape[-2]}x{low.shape[-1]} to {high.shape[-2]}x{high.shape[-1]}: the "
            "ratio must be the same whole number along both sides"
        )
    rows, columns = (_basis(low.shape[axis], high.shape[axis], length) for axis in (-2, -1))
    ratio = high.shape[-2] // low.shape[-2]
    taps = _bilinear(ratio, length)
    for _ in range(ITERATIONS):
        normal, right = torch.zeros(len(taps), len(taps), dtype=torch.float64), torch.zeros_like(taps)
        for x, y in zip(low.double().cpu().split(PARTS), high.double().cpu().split(PARTS), strict=True):
            across, down = torch.tensordot(taps, columns, 1), torch.tensordot(taps, rows, 1)
            slopes = torch.stack(
                [(r @ x @ across.T + down @ x @ c.T).flatten() for r, c in zip(rows, columns, strict=True)]
            )
            normal += slopes @ slopes.T
            right += slopes @ (y - down @ x @ across.T).flatten()
        step = torch.linalg.lstsq(normal, right[:, None], driver="gelsd").solution[:, 0]
        taps = taps + step
        if float(step.abs().max()) < 1e-12:
            break
    half = taps.tolist()
    return tuple(half + half[::-1][length % 2 :])


def upsampling_error(low: Tensor, high: Tensor, mode: Upsample, taps: Sequence[float] = ()) -> float:
    """Return the mean square by which enlarged low latents miss the high ones, over the variance of the high ones.

    Args:
        low: latents (n, C, h, w).
        high: latents (n, C, H, W) of the same pictures.
        mode, taps: the interpolation, as for `rmd.core.crossing.upsample`.
    """
    mean = high.double().mean((0, -2, -1), keepdim=True)
    made = upsample(low.double(), _size(high), mode, tuple(taps))
    return float((made - high.double()).square().mean() / (high.double() - mean).square().mean().clamp(min=1e-300))


def _basis(low: int, high: int, length: int) -> Tensor:
    """Return the matrices (parameters, high, low) of upsampling by each pair of equal taps alone; float64."""
    pixels = torch.eye(low, dtype=torch.float64).reshape(low, 1, low, 1)
    parts = []
    for place in range((length + 1) // 2):
        taps = [0.0] * length
        taps[place] = taps[length - 1 - place] = 1.0
        parts.append(upsample(pixels, (high, 1), "taps", tuple(taps)).reshape(low, high).T)
    return torch.stack(parts)


def _bilinear(ratio: int, length: int) -> Tensor:
    """Return the first half of the taps of bilinear interpolation, padded with zeros; float64."""
    places = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2).abs() / ratio
    return (1 - places).clamp(min=0)[: (length + 1) // 2]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
