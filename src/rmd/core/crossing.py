"""Crossing to the next resolution: upsampling the prediction and re-injecting noise (Eq. 4 and 10).

The last step of a stage predicts x0_hat and eps_hat at its own, low resolution. The next step runs at a higher one and
needs a noisy state there. Upsampling the state itself would not do: interpolated noise is no longer white. RMD
therefore upsamples the clean prediction alone and adds noise at the high resolution,

    x' = alpha' Up(x0_hat) + sigma' noise',

where alpha' and sigma' belong to the next step's model time. The noise rule says how noise' is mixed from the predicted
noise, which carries the teacher's trajectory on, and fresh noise, which is white:

* "plain" (the paper, Eq. 10): beta Up(eps_hat) + sqrt(1 - beta^2) eps. Interpolation lowers the variance of eps_hat and
  correlates neighbouring pixels, so the mixture is white only at beta = 0;
* "corrected": the plain mixture divided by its standard deviation at every position; neighbours stay correlated;
* "block": eps_hat replaces the low-resolution part of white noise. The result is exactly white and has unit variance
  at every beta.

Latents are images (B, C, H, W) or videos (B, C, T, H, W); videos are processed frame by frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.noise import per_sample, widen
from rmd.core.plan import Crossing, Upsample

# "nearest" of torch is off centre at non-integer ratios; at integer ratios it equals "nearest-exact".
_TORCH_MODE: Mapping[str, str] = {"bilinear": "bilinear", "nearest": "nearest-exact", "bicubic": "bicubic"}


def upsample(x: Tensor, size: tuple[int, int], mode: Upsample, taps: tuple[float, ...] = ()) -> Tensor:
    """Interpolate latents to a larger size: Up of Eq. 4.

    Args:
        x: latents (B, C, H, W) or (B, C, T, H, W).
        size: new height and width, in latent pixels.
        mode: kind of interpolation. "dct" pads the cosine transform with zeros; "taps" applies `taps`.
        taps: with mode "taps", the filter along one dimension at the higher resolution, in whose middle the low
            resolution's pixel lies: of even length at an even ratio of the sizes, and of odd length at an odd one.
            [0.25, 0.75, 0.75, 0.25] is bilinear interpolation at a ratio of 2.

    Returns:
        The latents of the new size; x itself if it has that size already. Differentiable.

    Raises:
        RMDError: `size` is smaller than the latents, or the taps do not go with the ratio of the sizes.
        ValueError: x has another number of dimensions.
    """
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if height > size[0] or width > size[1]:
        raise RMDError(f"cannot upsample a latent of {height}x{width} to {size[0]}x{size[1]}, which is smaller")
    if x.ndim not in (4, 5):
        raise ValueError(f"expected a latent of 4 or 5 dimensions, got shape {tuple(x.shape)}")
    if mode not in _TORCH_MODE:
        rows, columns = (_interpolation(low, high, taps).to(x) for low, high in zip((height, width), size, strict=True))
        return rows @ x @ columns.T
    if x.ndim == 4:
        return F.interpolate(x, size=tuple(size), mode=_TORCH_MODE[mode])
    batch, channels, frames = x.shape[:3]
    flat = upsample(x.transpose(1, 2).flatten(0, 1), size, mode)
    return flat.reshape(batch, frames, channels, *size).transpose(1, 2)


def renoise(eps_hat: Tensor, noise: Tensor, crossing: Crossing) -> Tensor:
    """Mix the predicted noise with fresh noise: the bracket of Eq. 10.

    Args:
        eps_hat: predicted noise at the low resolution.
        noise: fresh noise ~ N(0, I) at the high resolution.
        crossing: the noise rule; the interpolation; and beta in [0, 1], the weight of eps_hat. At beta = 0 the result
            is `noise`.

    Returns:
        The mixture, of the shape of `noise` and the wider type of the two, at least float32.
    """
    eps_hat, noise = widen(eps_hat), widen(noise)
    dtype = torch.promote_types(eps_hat.dtype, noise.dtype)
    eps_hat, noise = eps_hat.to(dtype), noise.to(dtype)
    if crossing.rule == "block":
        return _block(eps_hat, noise, crossing.beta)
    size = _size(noise)
    fresh = math.sqrt(1.0 - crossing.beta**2)
    mixed = crossing.beta * upsample(eps_hat, size, crossing.upsample, crossing.taps) + fresh * noise
    if crossing.rule == "plain":
        return mixed
    return mixed / _mixture_std(_size(eps_hat), size, crossing).to(mixed)


def cross(
    x0_hat: Tensor,
    eps_hat: Tensor,
    noise: Tensor,
    *,
    alpha: float | Tensor,
    sigma: float | Tensor,
    crossing: Crossing,
) -> Tensor:
    """Return the state that enters the first step at a higher resolution (Eq. 4 and 10).

    It is alpha' Up(x0_hat) + sigma' renoise(eps_hat, noise).

    Args:
        x0_hat, eps_hat: predictions at the low resolution.
        noise: fresh noise ~ N(0, I) at the high resolution.
        alpha, sigma: weights of the schedule at the next step's model time; scalars, or one value per sample (B,).
        crossing: the noise rule, its beta, and the interpolation.

    Returns:
        The state, of the shape of `noise` and the dtype of x0_hat.
    """
    clean = upsample(widen(x0_hat), _size(noise), crossing.upsample, crossing.taps)
    mixed = renoise(eps_hat, noise, crossing)
    return (per_sample(alpha, clean) * clean + per_sample(sigma, clean) * mixed).to(x0_hat.dtype)


def low_part(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part P^T noise of white noise that a lower resolution sees; it is white there.

    At a ratio of the sides that is a whole number, these are the block means times the ratio.

    Args:
        noise: white noise (..., H, W).
        size: height and width of the lower resolution, in latent pixels.

    Raises:
        RMDError: `size` is larger than the noise.
    """
    rows, columns = (_embedding(low, high).to(noise) for low, high in zip(size, _size(noise), strict=True))
    return rows.T @ noise @ columns


def _block(eps_hat: Tensor, noise: Tensor, beta: float) -> Tensor:
    """Replace the low-resolution part of the noise, P^T noise, by beta eps_hat + sqrt(1 - beta^2) P^T noise."""
    rows = _embedding(eps_hat.shape[-2], noise.shape[-2]).to(noise)
    columns = _embedding(eps_hat.shape[-1], noise.shape[-1]).to(noise)
    part = low_part(noise, _size(eps_hat))
    change = beta * eps_hat + (math.sqrt(1.0 - beta**2) - 1.0) * part
    return noise + rows @ change @ columns.T


@lru_cache(maxsize=64)
def _interpolation(low: int, high: int, taps: tuple[float, ...]) -> Tensor:
    """Return the matrix (high, low) that interpolates along one dimension: by taps, or without any by the DCT; float64.

    Beyond its edges a latent continues with its outermost values.
    """
    if high == low:
        return torch.eye(low, dtype=torch.float64, device="cpu")
    if not taps:
        return _zero_padding(low, high) * math.sqrt(high / low)
    ratio, rest = divmod(high, low)
    if rest or (len(taps) - ratio) % 2 or len(taps) < ratio:
        raise RMDError(
            f"{len(taps)} taps cannot enlarge a latent side of {low} to {high}: the ratio must be a whole number, and "
            "the number of taps even or odd as it is, and at least as large"
        )
    matrix = torch.zeros(high, low, dtype=torch.float64, device="cpu")
    for pixel in range(-len(taps), low + len(taps)):
        start = pixel * ratio - (len(taps) - ratio) // 2
        for offset, tap in enumerate(taps):
            if 0 <= start + offset < high:
                matrix[start + offset, min(max(pixel, 0), low - 1)] += tap
    return matrix


@lru_cache(maxsize=64)
def _embedding(low: int, high: int) -> Tensor:
    """Return the orthonormal map P (high, low) from low to high resolution along one dimension; float64, P^T P = I.

    At an integer ratio r, P repeats each value r times and divides it by sqrt(r), so that P^T takes block means up to
    that scale. Other ratios have no blocks; there, P is zero-padding in the cosine transform.
    """
    if high < low:
        raise RMDError(f"cannot embed a latent side of {low} in one of {high}, which is smaller")
    if high % low == 0:
        identity = torch.eye(low, dtype=torch.float64, device="cpu")
        return identity.repeat_interleave(high // low, dim=0) / math.sqrt(high // low)
    return _zero_padding(low, high)


def _zero_padding(low: int, high: int) -> Tensor:
    """Return the map (high, low) that pads the orthonormal cosine transform with zeros; float64."""
    return cosine_basis(high)[:low].T @ cosine_basis(low)


def cosine_basis(n: int) -> Tensor:
    """Return the orthonormal DCT-II matrix (n, n), whose row k is the k-th cosine; float64."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    basis = torch.cos(math.pi / n * k[:, None] * (k[None, :] + 0.5)) * math.sqrt(2.0 / n)
    basis[0] /= math.sqrt(2.0)
    return basis


def _mixture_std(low: tuple[int, int], high: tuple[int, int], crossing: Crossing) -> Tensor:
    """Return the standard deviation (H, W) of the plain mixture if eps_hat and the noise are white; float64."""
    rows = _weight_energy(low[0], high[0], crossing.upsample, crossing.taps)
    columns = _weight_energy(low[1], high[1], crossing.upsample, crossing.taps)
    beta2 = crossing.beta**2
    return (beta2 * rows[:, None] * columns[None, :] + 1.0 - beta2).sqrt()


@lru_cache(maxsize=64)
def _weight_energy(low: int, high: int, mode: Upsample, taps: tuple[float, ...]) -> Tensor:
    """Return the sum of squared interpolation weights at each of the `high` positions along one dimension; float64."""
    basis = torch.eye(low, dtype=torch.float64, device="cpu").reshape(low, 1, low, 1)
    return upsample(basis, (high, 1), mode, taps if high > low else ()).square().sum(dim=0).flatten()


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
