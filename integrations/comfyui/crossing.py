"""The mathematics of a cascade: from the last prediction of one stage to the first state of the next.

The clean prediction is enlarged, and gets noise that is mixed from the predicted noise and fresh noise (Eq. 4 and 10 of
the paper). Latents are (batch, channels, height, width), or (batch, channels, frames, height, width), of which height
and width change. This module needs PyTorch only.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .plan import Crossing, PlanError

INTERPOLATIONS = {"bilinear": "bilinear", "nearest": "nearest-exact", "bicubic": "bicubic"}
"""PyTorch's names of its own interpolations."""


def enlarged(x: Tensor, size: tuple[int, int], crossing: Crossing) -> Tensor:
    """Return latents of a larger height and width (Eq. 4)."""
    if crossing.upsample in INTERPOLATIONS:
        frames = x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)
        larger = interpolate(frames, size=size, mode=INTERPOLATIONS[crossing.upsample])
        return larger if x.ndim == 4 else larger.reshape(x.shape[0], x.shape[2], x.shape[1], *size).transpose(1, 2)
    rows, columns = (
        enlarging(low, high, crossing.upsample, crossing.taps).to(x)
        for low, high in zip(x.shape[-2:], size, strict=True)
    )
    return rows @ x @ columns.T


def mixed(predicted: Tensor, fresh: Tensor, crossing: Crossing) -> Tensor:
    """Mix the predicted noise of a lower resolution with fresh noise of the next one (the bracket of Eq. 10).

    The rule "plain" adds the enlarged predicted noise to fresh noise, by their weights; "corrected" divides the sum by
    its standard deviation; and "block" replaces the part of the fresh noise that the lower resolution sees.
    """
    beta, rest = crossing.beta, math.sqrt(1 - crossing.beta**2)
    sides = list(zip(predicted.shape[-2:], fresh.shape[-2:], strict=True))
    if crossing.rule == "block":
        p, q = (embedding(low, high).to(fresh) for low, high in sides)
        return fresh + p @ (beta * predicted + (rest - 1) * (p.T @ fresh @ q)) @ q.T
    noise = beta * enlarged(predicted, (fresh.shape[-2], fresh.shape[-1]), crossing) + rest * fresh
    if crossing.rule == "plain":
        return noise
    rows, columns = (enlarging(low, high, crossing.upsample, crossing.taps).square().sum(1) for low, high in sides)
    return noise / (beta**2 * rows[:, None] * columns + 1 - beta**2).sqrt().to(noise)


def kept(predicted: Tensor, fresh: Tensor | None, crossing: Crossing) -> Tensor:
    """Return the noise of a step that stays at its resolution; `fresh` is needed if `draws_within` says so."""
    if fresh is None:
        return predicted
    if crossing.within == "fresh":
        return fresh
    return crossing.eta * predicted + math.sqrt(1 - crossing.eta**2) * fresh


def draws_within(crossing: Crossing) -> bool:
    """Return whether steps that stay at their resolution need fresh noise."""
    return crossing.within == "fresh" or crossing.eta < 1


@lru_cache(maxsize=64)
def enlarging(low: int, high: int, mode: str, taps: tuple[float, ...]) -> Tensor:
    """Return the matrix (high, low), in float64, that enlarges one dimension."""
    if low == high:
        return torch.eye(low, dtype=torch.float64)
    if mode == "dct":
        return _cosines(high)[:low].T @ _cosines(low) * math.sqrt(high / low)
    if mode == "taps":
        return _filter(low, high, taps)
    unit = torch.eye(low, dtype=torch.float64).view(low, 1, low, 1)
    return interpolate(unit, size=(high, 1), mode=INTERPOLATIONS[mode]).view(low, high).T.contiguous()


@lru_cache(maxsize=64)
def embedding(low: int, high: int) -> Tensor:
    """Return the orthonormal matrix (high, low), in float64, from a lower to a higher resolution along one dimension.

    Its transpose takes the means of blocks, up to their scale; sides without a whole ratio have no blocks, and the
    cosine transform is padded with zeros instead.
    """
    if high % low:
        return _cosines(high)[:low].T @ _cosines(low)
    return torch.eye(low, dtype=torch.float64).repeat_interleave(high // low, dim=0) / math.sqrt(high // low)


def _cosines(n: int) -> Tensor:
    """Return the orthonormal cosine transform (n, n), in float64."""
    k = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _filter(low: int, high: int, taps: tuple[float, ...]) -> Tensor:
    """Return the matrix (high, low) that puts a filter at every pixel; beyond its edges, a latent continues."""
    ratio, rest = divmod(high, low)
    if rest or (len(taps) - ratio) % 2 or len(taps) < ratio:
        raise PlanError(
            f"{len(taps)} taps cannot enlarge a latent side of {low} to {high}: use the student's own sizes"
        )
    matrix = torch.zeros(high, low, dtype=torch.float64)
    for pixel in range(-len(taps), low + len(taps)):
        for row, tap in enumerate(taps, start=pixel * ratio - (len(taps) - ratio) // 2):
            if 0 <= row < high:
                matrix[row, min(max(pixel, 0), low - 1)] += tap
    return matrix
