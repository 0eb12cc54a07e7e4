"""Metrics of a sampler: distances between distributions, amount of detail, diversity, and confidence intervals.

Whether a generator is good is a question about distributions: are its samples distributed as those of the reference?
The two distances here answer it by comparing features of the samples, computed by a network (the judge of a synthetic
world, or any other). They are defined like KID and FID but with other features than Inception's, so their values can
be compared with each other only, not with published ones. All computations are in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.common.errors import RMDError

KERNEL_SCALE = 1000.0
"""`kernel_distance` returns the squared MMD times this factor."""
Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution: half the width of a 95 % interval, in standard errors."""
_STD_FLOOR = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def standardise(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature sets as z-scores, by the reference's mean and standard deviation of each dimension.

    Standard deviations below a hundredth of their average over the dimensions are raised to it, so that a dimension
    that is (nearly) constant in the reference cannot dominate the others.

    Args:
        features: (n, d).
        reference: (m, d).

    Returns:
        Both sets, standardised; float64.

    Raises:
        RMDError: the shapes do not match, a value is not finite, or the reference is constant in every dimension.
    """
    features, reference = _checked(features, reference, fewest=2)
    mean, std = reference.mean(0), reference.std(0)
    floor = _STD_FLOOR * float(std.mean())
    if floor <= _ROUNDING * float(reference.abs().max()):
        raise RMDError(
            "all reference samples have the same features, so nothing can be measured against them: use others"
        )
    std = std.clamp(min=floor)
    return (features - mean) / std, (reference - mean) / std


def kernel_distance(x: Tensor, y: Tensor, *, per_prompt: tuple[int, int] = (1, 1)) -> Interval:
    """Return the unbiased squared MMD of two feature sets with the kernel (x.y / d + 1)^3, times 1000.

    For equal distributions the estimate is zero on average, and so is often negative. The 95 % interval is normal; its
    variance is the jackknife's, leaving out one prompt at a time. For equal distributions the statistic is degenerate
    and the interval conservative: it covers 0 more often than 95 %. The interval does not account for a scaling of the
    features that was estimated from one of the sets (`standardise`).

    Source: Binkowski et al., Demystifying MMD GANs (2018), Eq. 4 and Sec. 3 (KID), with other features.

    Args:
        x, y: features (n, d) and (m, d) of independent samples.
        per_prompt: number of consecutive rows that belong to one prompt, in x and in y. Samples of one prompt
            resemble each other; comparing them would bias the estimate upwards, so they are not compared.

    Raises:
        RMDError: the shapes do not match, a value is not finite, or a set has fewer than three prompts or an incomplete
            one.
    """
    x, y = _checked(x, y, fewest=3)
    for rows, run in zip((x, y), per_prompt, strict=True):
        if run < 1 or len(rows) % run or len(rows) < 3 * run:
            raise RMDError(f"{len(rows)} samples are not three or more prompts of {run} samples each")
    value, variance = _squared_mmd(x, y, *per_prompt)
    half = Z95 * math.sqrt(variance)
    return Interval(KERNEL_SCALE * value, KERNEL_SCALE * (value - half), KERNEL_SCALE * (value + half))


def kernel_distance_gap(x: Tensor, z: Tensor, y: Tensor) -> Interval:
    """Return how much farther x is from y than z is: the difference of two kernel distances, times 1000.

    The interval is that of `kernel_distance`, for the difference: row i of x and of z is left out together, because
    they are samples of one prompt and often of the same noise. What they have in common, and the error of y, cancel.

    Args:
        x, z: features (n, d) of two sets of samples of the same prompts, in the same order.
        y: features (m, d) with which both are compared.

    Raises:
        RMDError: the shapes do not match, a value is not finite, or a set has fewer than three samples.
    """
    x, y = _checked(x, y, fewest=3)
    z, _ = _checked(z, y, fewest=3)
    if len(x) != len(z):
        raise RMDError(f"samples of the same prompts are compared, but there are {len(x)} and {len(z)}")
    n, m = len(x), len(y)
    within = (_all(x, x, 1) - _own(x, x, 1)) - (_all(z, z, 1) - _own(z, z, 1))
    cross, from_y = _all(x, y, 1) - _all(z, y, 1), _all(y, x, 1) - _all(y, z, 1)
    both, between = within.sum(), cross.sum()
    without_pair = (both - 2 * within) / ((n - 1) * (n - 2)) - 2 * (between - cross) / ((n - 1) * m)
    without_y = both / (n * (n - 1)) - 2 * (between - from_y) / (n * (m - 1))
    value = float(both / (n * (n - 1)) - 2 * between / (n * m))
    half = Z95 * math.sqrt(_jackknife(without_pair) + _jackknife(without_y))
    return Interval(KERNEL_SCALE * value, KERNEL_SCALE * (value - half), KERNEL_SCALE * (value + half))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance between two feature sets, each taken as a Gaussian.

    It is |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), with mu the means and S the covariances of the sets. It
    is biased upwards for small sets: compare only values with the same n and m.

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), Eq. 6, with other features.

    Args:
        x, y: features (n, d) and (m, d).

    Raises:
        RMDError: the shapes do not match, a value is not finite, or a set has fewer than two samples.
    """
    x, y = _checked(x, y, fewest=2)
    root_x, root_y = _covariance_root(x), _covariance_root(y)
    # tr((S_x S_y)^(1/2)) is the sum of the singular values of S_x^(1/2) S_y^(1/2).
    cross = torch.linalg.svdvals(root_x @ root_y).sum()
    covariance_term = (root_x**2).sum() + (root_y**2).sum() - 2 * cross
    return float((x.mean(0) - y.mean(0)).square().sum() + covariance_term.clamp(min=0))


def high_frequency(images: Tensor) -> float:
    """Return the energy of the detail in images that half their resolution cannot represent.

    It is the mean squared difference between an image and its average over 2x2 pixels, upsampled bilinearly: 0 for a
    constant image, and 1 for a checkerboard of single black and white pixels.

    Args:
        images: (n, 3, H, W) in [-1, 1], with even sides.

    Raises:
        RMDError: the shape is another one, or a value is not finite.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[2] % 2 or images.shape[3] % 2:
        raise RMDError(f"expected images (n, 3, H, W) with even sides, got the shape {tuple(images.shape)}")
    images = _finite(images)
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return float((images - half).square().mean())


def diversity(features: Tensor, prompt_ids: Tensor) -> float:
    """Return the mean Euclidean distance between two samples of the same prompt, averaged over the prompts.

    Args:
        features: (n, d).
        prompt_ids: (n,) integers; samples with the same integer belong to the same prompt.

    Raises:
        RMDError: the shapes do not match, a value is not finite, or a prompt has only one sample.
    """
    if features.ndim != 2 or prompt_ids.shape != features.shape[:1] or len(features) == 0:
        shapes = f"{tuple(features.shape)} and {tuple(prompt_ids.shape)}"
        raise RMDError(f"expected features (n, d) and prompt numbers (n,), got {shapes}")
    features = _finite(features)
    per_prompt = []
    for prompt in prompt_ids.unique():
        samples = features[prompt_ids == prompt]
        if len(samples) < 2:
            raise RMDError(f"diversity needs two samples of every prompt, but prompt {int(prompt)} has one")
        per_prompt.append(torch.pdist(samples).mean())
    return float(torch.stack(per_prompt).mean())


def wilson(hits: int, total: int) -> Interval:
    """Return the proportion `hits / total` with Wilson's 95 % score interval, which is valid at 0 and 1 too.

    Args:
        hits: number of successes, 0 to `total`.
        total: number of trials, at least 1.

    Raises:
        RMDError: a number is out of range.
    """
    if not 0 <= hits <= total or total == 0:
        raise RMDError(f"a proportion needs 0 to n successes in n > 0 trials, got {hits} of {total}")
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def _squared_mmd(x: Tensor, y: Tensor, a: int, b: int) -> tuple[float, float]:
    """Return the squared MMD and its jackknife variance; a and b are the rows per prompt of x and y."""
    n, m = len(x), len(y)
    per_prompt_x, per_prompt_y = _all(x, x, a) - _own(x, x, a), _all(y, y, b) - _own(y, y, b)
    cross_x, cross_y = _all(x, y, a), _all(y, x, b)
    sum_x, sum_y, sum_xy = per_prompt_x.sum(), per_prompt_y.sum(), cross_x.sum()
    mean_x, mean_y = sum_x / (n * (n - a)), sum_y / (m * (m - b))
    # The statistic with one prompt left out: without its rows and columns of the Gram matrices.
    without_x = (sum_x - 2 * per_prompt_x) / ((n - a) * (n - 2 * a)) + mean_y - 2 * (sum_xy - cross_x) / ((n - a) * m)
    without_y = mean_x + (sum_y - 2 * per_prompt_y) / ((m - b) * (m - 2 * b)) - 2 * (sum_xy - cross_y) / (n * (m - b))
    return float(mean_x + mean_y - 2 * sum_xy / (n * m)), _jackknife(without_x) + _jackknife(without_y)


def _jackknife(without: Tensor) -> float:
    """Return the variance of a statistic from its values with each prompt left out."""
    return float((len(without) - 1) * without.var(correction=0))


def _all(x: Tensor, y: Tensor, rows: int) -> Tensor:
    """Return the sums of the kernel between the rows of x of each prompt and all rows of y; (prompts,)."""
    return _kernel(x @ y.T, x.shape[1]).sum(1).view(-1, rows).sum(1)


def _own(x: Tensor, y: Tensor, rows: int) -> Tensor:
    """Return the sums of the kernel between the rows of x and of y of the same prompt; (prompts,)."""
    blocks_x, blocks_y = x.view(-1, rows, x.shape[1]), y.view(-1, rows, x.shape[1])
    return _kernel(blocks_x @ blocks_y.mT, x.shape[1]).sum((1, 2))


def _kernel(products: Tensor, size: int) -> Tensor:
    return (products / size + 1).pow(3)


def _covariance_root(x: Tensor) -> Tensor:
    """Return the symmetric square root (d, d) of the covariance; eigenvalues that round below 0 are set to 0."""
    values, vectors = torch.linalg.eigh(torch.atleast_2d(x.T.cov()))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _checked(x: Tensor, y: Tensor, *, fewest: int) -> tuple[Tensor, Tensor]:
    """Return two feature sets in float64; raise RMDError for other shapes or fewer than `fewest` samples."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise RMDError(f"expected two feature sets (n, d) and (m, d), got {shapes}")
    if min(len(x), len(y)) < fewest:
        raise RMDError(f"this distance needs {fewest} samples or more in each set, got {len(x)} and {len(y)}")
    return _finite(x), _finite(y)


def _finite(values: Tensor) -> Tensor:
    values = values.double().contiguous()
    if not bool(values.isfinite().all()):
        raise RMDError("some values to measure are not finite: check the samples that they come from")
    return values
