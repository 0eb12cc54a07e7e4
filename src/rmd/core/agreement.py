"""The agreement of two sets of samples that were made from the same prompts and the same noise at two resolutions.

`rmd probe` asks whether a teacher is still right at a lower resolution. Sample i of one set belongs to sample i of the
other, so the sets are compared in three ways:

* by spatial frequency: the modes of the orthonormal cosine transform (DCT-II) are grouped in rings of equal radial
  frequency. `power_ratio` says whether a ring has as much power in one set as in the other, and `coherence` whether
  the same structures are at the same places;
* by a distance of features, `paired_kernel_distance`, which asks about the distribution and not about the places;
* by `picture_difference`, which compares the pixels of a pair with those of pictures that do not belong together.

The intervals are normal, with the variance of a jackknife that leaves out one prompt at a time. All computations are
in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.crossing import cosine_basis
from rmd.core.metrics import KERNEL_SCALE, Z95, Interval

FEWEST = 3
"""Smallest number of prompts from which a variance is estimated."""


def low_band(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of latents that a lower resolution can hold, at that resolution.

    The cosine transform is cut off, and scaled such that a constant keeps its value: the inverse of upsampling "dct".

    Args:
        latents: (..., H, W).
        size: height and width of the lower resolution, in latent pixels.

    Returns:
        (..., *size); float64.
    """
    rows, columns = (
        math.sqrt(low / high) * cosine_basis(low).T @ cosine_basis(high)[:low]
        for low, high in zip(size, latents.shape[-2:], strict=True)
    )
    return rows.to(latents.device) @ latents.double() @ columns.to(latents.device).T


def rings(size: tuple[int, int], count: int = 8) -> Tensor:
    """Return the ring of each mode of the cosine transform, by its radial frequency.

    Args:
        size: height and width of the latents.
        count: largest number of rings; there are never more than the shorter side has modes.

    Returns:
        (H, W) int64, from 0 (coarsest) to the number of rings - 1. The corners belong to the last ring.
    """
    number = min(count, *size)
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in size)
    radius = (rows[:, None].square() + columns[None, :].square()).sqrt()
    return (radius * number).floor().long().clamp(max=number - 1)


def power_ratio(x: Tensor, y: Tensor, *, per_prompt: int = 1, count: int = 8) -> list[Interval]:
    """Return the power of x over that of y in every ring.

    Args:
        x, y: latents (n, C, H, W) or (n, C, T, H, W) of one shape.
        per_prompt: number of consecutive samples that share a prompt.
        count: largest number of rings (`rings`).

    Raises:
        RMDError: the shapes differ, or there are fewer than three prompts.
    """
    ours, theirs = (_by_ring(_modes(each).square(), count, per_prompt) for each in _matching(x, y, per_prompt))
    return [_jackknife(lambda a, b: a / b, [ours[:, ring], theirs[:, ring]]) for ring in range(ours.shape[1])]


def coherence(x: Tensor, y: Tensor, *, per_prompt: int = 1, count: int = 8) -> list[Interval]:
    """Return the correlation of the modes of x and y over the samples, in every ring.

    It is 1 where sample i of x and of y are equal up to a factor, and 0 on average where they are independent. Every
    mode's mean over the samples is subtracted, so that what all samples have in common does not count.

    Args:
        x, y, per_prompt, count: as for `power_ratio`.

    Raises:
        RMDError: the shapes differ, or there are fewer than three prompts.
    """
    ours, theirs = (_modes(each) for each in _matching(x, y, per_prompt))
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    both, first, second = (_by_ring(p, count, per_prompt) for p in (ours * theirs, ours.square(), theirs.square()))

    def correlation(joint: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return joint / (left * right).sqrt().clamp(min=1e-300)

    return [_jackknife(correlation, [both[:, ring], first[:, ring], second[:, ring]]) for ring in range(both.shape[1])]


def paired_kernel_distance(x: Tensor, y: Tensor, *, per_prompt: int = 1) -> Interval:
    """Return the unbiased squared MMD of two feature sets whose rows belong together, times 1000.

    The kernel is that of `rmd.core.metrics.kernel_distance`. Rows of the same prompt resemble each other, within a set
    and also across the sets, and are not compared. For equal distributions the estimate is zero on average.

    Args:
        x, y: features (n, d); row i of x and row i of y come from the same prompt and noise.
        per_prompt: number of consecutive rows that share a prompt.

    Raises:
        RMDError: the shapes differ, or there are fewer than three prompts.
    """
    x, y = _matching(x, y, per_prompt)
    groups = len(x) // per_prompt

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        products = (a @ b.T / a.shape[1] + 1).pow(3)
        return products.view(groups, per_prompt, groups, per_prompt).sum((1, 3))

    terms = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    terms.fill_diagonal_(0.0)
    total, own = terms.sum(), terms.sum(1)

    def mean(of: Tensor, prompts: int) -> Tensor:
        return of * KERNEL_SCALE / (prompts * (prompts - 1) * per_prompt**2)

    without = mean(total - 2 * own, groups - 1)
    return _interval(float(mean(total, groups)), without)


def picture_difference(x: Tensor, y: Tensor, *, per_prompt: int = 1) -> Interval:
    """Return the mean square between pictures that belong together, over that between pictures that do not.

    It is 0 if the pictures of each pair are equal, and 1 if they resemble each other no more than others do.

    Args:
        x, y: pictures (n, ...) of one shape.
        per_prompt: number of consecutive pictures that share a prompt.

    Raises:
        RMDError: the shapes differ, or there are fewer than three prompts.
    """
    x, y = (each.flatten(1) for each in _matching(x, y, per_prompt))
    groups = len(x) // per_prompt
    square = torch.cdist(x, y).square()
    pairs = square.diagonal().view(groups, -1).mean(1)
    blocks = square.view(groups, per_prompt, groups, per_prompt).mean((1, 3))
    others = (blocks.sum(1) - blocks.diagonal()) / (groups - 1)
    return _jackknife(lambda a, b: a / b.clamp(min=1e-300), [pairs, others])


def _matching(x: Tensor, y: Tensor, per_prompt: int) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise RMDError(f"two sets of paired samples have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if per_prompt < 1 or len(x) % per_prompt or len(x) < FEWEST * per_prompt:
        raise RMDError(f"{len(x)} samples are not {FEWEST} or more prompts of {per_prompt} samples each")
    return x.double(), y.double()


def _modes(latents: Tensor) -> Tensor:
    """Return the modes (n, K, H, W) of latents, over channels and frames K."""
    rows, columns = (cosine_basis(side).to(latents.device) for side in latents.shape[-2:])
    return (rows @ latents @ columns.T).flatten(1, -3)


def _by_ring(values: Tensor, count: int, per_prompt: int) -> Tensor:
    """Return the sums of values (n, K, H, W) over each ring and over the samples of each prompt: (prompts, rings)."""
    index = rings((values.shape[-2], values.shape[-1]), count).flatten().to(values.device)
    flat = values.sum(1).flatten(1)
    sums = flat.new_zeros(len(flat), int(index.max()) + 1).index_add_(1, index, flat)
    return sums.view(-1, per_prompt, sums.shape[1]).sum(1).cpu()


def _jackknife(statistic: Callable[..., Tensor], sums: Sequence[Tensor]) -> Interval:
    """Return a statistic of sums over prompts, each given by prompt, with its interval."""
    totals = [each.sum() for each in sums]
    without = statistic(*(total - each for total, each in zip(totals, sums, strict=True)))
    return _interval(float(statistic(*totals)), without)


def _interval(value: float, without: Tensor) -> Interval:
    """Return a value's interval from the values with each prompt left out."""
    half = Z95 * math.sqrt(float((len(without) - 1) * without.var(correction=0)))
    return Interval(value, value - half, value + half)


def ring_edges(size: tuple[int, int], count: int = 8) -> list[tuple[float, float]]:
    """Return the lower and upper radial frequency of each ring, as fractions of the resolution's highest one."""
    number = min(count, *size)
    return list(pairwise(ring / number for ring in range(number + 1)))
