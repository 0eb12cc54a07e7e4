"""Crossing to the next resolution: upsampling the prediction and re-injecting noise (Eq. 4 and 10).

A step predicts x0_hat and eps_hat at the low resolution; the next step starts, at a higher one, from
``alpha' Up(x0_hat) + sigma' noise'``. How noise' is mixed from eps_hat and fresh noise is the noise rule:

* "plain" (the paper): ``beta Up(eps_hat) + sqrt(1 - beta^2) noise``. Interpolation lowers the variance of
  eps_hat and correlates neighbours, so this is white only at beta = 0;
* "corrected": the same divided by its standard deviation at every position; still correlated;
* "block": eps_hat sets the low-resolution part of white noise. Exactly white, unit variance at every beta.

Latents are images (B, C, H, W) or videos (B, C, T, H, W), which are treated frame by frame.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.core.noise import per_sample, widen
from rmd.core.plan import Crossing, Upsample

# torch's "nearest" is off centre at non-integer ratios; the two are equal at integer ones.
_TORCH_MODE: dict[Upsample, str] = {"bilinear": "bilinear", "nearest": "nearest-exact", "bicubic": "bicubic"}


def upsample(x: Tensor, size: tuple[int, int], mode: Upsample) -> Tensor:
    """Interpolate the last two dimensions of (B, C, H, W) or (B, C, T, H, W) to `size` = (height, width).

    Differentiable; x itself when it has that size already. Raises RMDError if `size` is smaller.
    """
    height, width = x.shape[-2:]
    if (height, width) == tuple(size):
        return x
    if height > size[0] or width > size[1]:
        raise RMDError(f"cannot upsample a latent of {height}x{width} to {size[0]}x{size[1]}, which is smaller")
    if x.ndim == 4:
        return F.interpolate(x, size=tuple(size), mode=_TORCH_MODE[mode])
    if x.ndim == 5:
        batch, channels, frames = x.shape[:3]
        flat = upsample(x.transpose(1, 2).flatten(0, 1), size, mode)
        return flat.reshape(batch, frames, channels, *size).transpose(1, 2)
    raise ValueError(f"expected a latent of 4 or 5 dimensions, got shape {tuple(x.shape)}")


def renoise(eps_hat: Tensor, noise: Tensor, crossing: Crossing) -> Tensor:
    """Mix the predicted noise with fresh noise: the bracket of Eq. 10.

    `eps_hat` has the low resolution, `noise` ~ N(0, I) the high one; returns the high-resolution mixture
    (at least float32, the wider type of the two). `crossing.beta` in [0, 1] weighs eps_hat: 0 returns `noise`.
    """
    eps_hat, noise = widen(eps_hat), widen(noise)
    dtype = torch.promote_types(eps_hat.dtype, noise.dtype)
    eps_hat, noise = eps_hat.to(dtype), noise.to(dtype)
    if crossing.rule == "block":
        return _block(eps_hat, noise, crossing.beta)
    size = _size(noise)
    fresh = math.sqrt(1.0 - crossing.beta**2)
    mixed = crossing.beta * upsample(eps_hat, size, crossing.upsample) + fresh * noise
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
    """State entering the first step at a higher resolution: alpha' Up(x0_hat) + sigma' renoise (Eq. 4, 10).

    `x0_hat` and `eps_hat` have the low resolution, `noise` ~ N(0, I) the high one; `alpha` and `sigma` belong
    to the next step's model time, one for all or one a sample. Returns noise's shape and x0_hat's dtype.
    """
    clean = upsample(widen(x0_hat), _size(noise), crossing.upsample)
    mixed = renoise(eps_hat, noise, crossing)
    return (per_sample(alpha, clean) * clean + per_sample(sigma, clean) * mixed).to(x0_hat.dtype)


def _block(eps_hat: Tensor, noise: Tensor, beta: float) -> Tensor:
    """Replace the low-resolution part P^T noise by beta eps_hat + sqrt(1 - beta^2) P^T noise."""
    rows = _embedding(eps_hat.shape[-2], noise.shape[-2]).to(noise)
    columns = _embedding(eps_hat.shape[-1], noise.shape[-1]).to(noise)
    part = rows.T @ noise @ columns
    change = beta * eps_hat + (math.sqrt(1.0 - beta**2) - 1.0) * part
    return noise + rows @ change @ columns.T


@lru_cache(maxsize=64)
def _embedding(low: int, high: int) -> Tensor:
    """Orthonormal map P (high, low) of one dimension, P^T P = I; float64.

    At an integer ratio r it repeats each value r times over sqrt(r), so P^T takes block means; otherwise it
    is zero-padding in the cosine transform, which has no blocks to respect.
    """
    if high < low:
        raise RMDError(f"cannot embed a latent side of {low} in one of {high}, which is smaller")
    if high % low == 0:
        identity = torch.eye(low, dtype=torch.float64, device="cpu")
        return identity.repeat_interleave(high // low, dim=0) / math.sqrt(high // low)
    return cosine_basis(high)[:low].T @ cosine_basis(low)


def cosine_basis(n: int) -> Tensor:
    """Orthonormal DCT-II matrix (n, n): row k is the k-th cosine; float64."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    basis = torch.cos(math.pi / n * k[:, None] * (k[None, :] + 0.5)) * math.sqrt(2.0 / n)
    basis[0] /= math.sqrt(2.0)
    return basis


def _mixture_std(low: tuple[int, int], high: tuple[int, int], crossing: Crossing) -> Tensor:
    """Standard deviation (H, W) of the plain mixture when eps_hat and the fresh noise are white; float64."""
    rows = _weight_energy(low[0], high[0], crossing.upsample)
    columns = _weight_energy(low[1], high[1], crossing.upsample)
    beta2 = crossing.beta**2
    return (beta2 * rows[:, None] * columns[None, :] + 1.0 - beta2).sqrt()


@lru_cache(maxsize=64)
def _weight_energy(low: int, high: int, mode: Upsample) -> Tensor:
    """Sum of squared interpolation weights at each of the `high` positions of one dimension; float64."""
    basis = torch.eye(low, dtype=torch.float64, device="cpu").reshape(low, 1, low, 1)
    return upsample(basis, (high, 1), mode).square().sum(dim=0).flatten()


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
