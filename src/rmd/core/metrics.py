"""Measures of a sampler on judged scenes: accuracy, distances between distributions, detail, diversity.

Distances compare the judge's features of two sets of pictures. They play the part of KID and FID but are
neither: the features are not Inception's, so the numbers compare only with each other. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd.common.errors import RMDError

KERNEL_SCALE = 1000.0
"""`kernel_distance` reports this many times the squared MMD."""
Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal: half the width of a 95 % interval in standard errors."""
_STD_FLOOR = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def standardise(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets, (n, d) and (m, d), as z-scores by the reference's mean and deviation of each dimension.

    Standard deviations below a hundredth of their average over the dimensions are raised to it, so that a
    dimension which is (nearly) constant in the reference cannot drown the others.

    Raises:
        RMDError: shapes do not fit, a value is not finite, or the reference is constant in every dimension.
    """
    features, reference = _checked(features, reference, fewest=2)
    mean, std = reference.mean(0), reference.std(0)
    floor = _STD_FLOOR * float(std.mean())
    if floor <= _ROUNDING * float(reference.abs().max()):
        raise RMDError("the reference features are all alike and nothing can be measured by them: use others")
    std = std.clamp(min=floor)
    return (features - mean) / std, (reference - mean) / std


def kernel_distance(x: Tensor, y: Tensor, *, per_prompt: tuple[int, int] = (1, 1), paired: bool = False) -> Interval:
    """Unbiased squared MMD of two feature sets (n, d) and (m, d) with the kernel (x.y / d + 1)^3, times 1000.

    The estimate is zero on average for equal distributions, and so is often negative for them. The 95 %
    interval is normal, with the jackknife's variance over both sets, leaving out one prompt at a time. For
    equal distributions the statistic is degenerate and the interval wider than it need be: it holds 0 more
    often than 95 %. Scaling the features by one of the sets (`standardise`) is taken as given.

    Source: Binkowski et al., Demystifying MMD GANs (2018), Eq. 4 and Sec. 3 (KID), with other features.

    Args:
        x, y: the features; independent sets unless `paired`.
        per_prompt: how many rows in a run belong to one prompt, in x and in y. Such rows are alike: comparing
            them would push the estimate up, so they are not compared.
        paired: the same prompts at the same rows of both sets. Rows of one prompt would pull the estimate
            down, so they are not compared across the sets either, and the jackknife leaves out pairs.

    Raises:
        RMDError: shapes do not fit, a value is not finite, a set has fewer than three prompts or is no whole
            number of them, or pairs are asked of sets that are not alike.
    """
    x, y = _checked(x, y, fewest=3)
    for rows, run in zip((x, y), per_prompt, strict=True):
        if run < 1 or len(rows) % run or len(rows) < 3 * run:
            raise RMDError(f"{len(rows)} samples are not three or more prompts of {run} samples each")
    if paired and (len(x) != len(y) or per_prompt[0] != per_prompt[1]):
        raise RMDError(f"paired sets must have the same prompts, got {len(x)} and {len(y)} samples of them")
    value, variance = _paired_mmd(x, y, per_prompt[0]) if paired else _independent_mmd(x, y, *per_prompt)
    half = Z95 * math.sqrt(variance)
    return Interval(KERNEL_SCALE * value, KERNEL_SCALE * (value - half), KERNEL_SCALE * (value + half))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two feature sets (n, d) and (m, d).

    |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)). Biased upwards for few samples: compare only values
    of equal n and m.

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), Eq. 6, with other features.

    Raises:
        RMDError: shapes do not fit, a value is not finite, or a set has fewer than two samples.
    """
    x, y = _checked(x, y, fewest=2)
    root_x, root_y = _covariance_root(x), _covariance_root(y)
    # tr (S_x S_y)^(1/2) is the sum of the singular values of S_x^(1/2) S_y^(1/2).
    cross = torch.linalg.svdvals(root_x @ root_y).sum()
    spread = (root_x**2).sum() + (root_y**2).sum() - 2 * cross
    return float((x.mean(0) - y.mean(0)).square().sum() + spread.clamp(min=0))


def high_frequency(images: Tensor) -> float:
    """Energy of the detail in images (n, 3, H, W) in [-1, 1] that half their resolution cannot hold.

    The mean squared difference to the image averaged over 2x2 pixels and enlarged bilinearly: 0 for a
    constant picture, 1 for a black and white checkerboard of single pixels.

    Raises:
        RMDError: not a batch of images, odd sides, or a value that is not finite.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[2] % 2 or images.shape[3] % 2:
        raise RMDError(f"expected images (n, 3, H, W) with even sides, got the shape {tuple(images.shape)}")
    images = _finite(images)
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return float((images - half).square().mean())


def relative_high_frequency(images: Tensor, reference: Tensor) -> float:
    """`high_frequency` of the images over that of the reference: 1 is as much detail, below 1 is blurred.

    Raises:
        RMDError: as `high_frequency`, or the reference has no fine detail at all.
    """
    expected = high_frequency(reference)
    if expected == 0:
        raise RMDError("the reference images have no fine detail to compare with: use other images")
    return high_frequency(images) / expected


def diversity(features: Tensor, prompt_ids: Tensor) -> float:
    """Mean over prompts of the mean Euclidean distance between two samples of one prompt.

    Args:
        features: (n, d).
        prompt_ids: (n,) integers; equal ones mark samples of one prompt.

    Raises:
        RMDError: shapes do not fit, a value is not finite, or a prompt has a single sample.
    """
    if features.ndim != 2 or prompt_ids.shape != features.shape[:1] or len(features) == 0:
        shapes = f"{tuple(features.shape)} and {tuple(prompt_ids.shape)}"
        raise RMDError(f"expected features (n, d) and n prompts, got {shapes}")
    features = _finite(features)
    per_prompt = []
    for prompt in prompt_ids.unique():
        samples = features[prompt_ids == prompt]
        if len(samples) < 2:
            raise RMDError(f"diversity needs two samples of every prompt, but prompt {int(prompt)} has one")
        per_prompt.append(torch.pdist(samples).mean())
    return float(torch.stack(per_prompt).mean())


def wilson(hits: int, total: int) -> Interval:
    """Share `hits / total` with Wilson's 95 % score interval, which is sound at 0 and 1 too.

    Raises:
        RMDError: not 0 <= hits <= total with at least one trial.
    """
    if not 0 <= hits <= total or total == 0:
        raise RMDError(f"a share needs between 0 and n successes of n > 0 trials, got {hits} of {total}")
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return Interval(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def _independent_mmd(x: Tensor, y: Tensor, a: int, b: int) -> tuple[float, float]:
    """Squared MMD and its jackknife variance, from sums over runs of a rows of x and b rows of y."""
    n, m = len(x), len(y)
    runs_x, runs_y = _all(x, x, a) - _own(x, x, a), _all(y, y, b) - _own(y, y, b)
    cross_x, cross_y = _all(x, y, a), _all(y, x, b)
    sum_x, sum_y, sum_xy = runs_x.sum(), runs_y.sum(), cross_x.sum()
    mean_x, mean_y = sum_x / (n * (n - a)), sum_y / (m * (m - b))
    # The statistic with one run left out: its rows (and columns) of the Gram matrices no longer count.
    without_x = (sum_x - 2 * runs_x) / ((n - a) * (n - 2 * a)) + mean_y - 2 * (sum_xy - cross_x) / ((n - a) * m)
    without_y = mean_x + (sum_y - 2 * runs_y) / ((m - b) * (m - 2 * b)) - 2 * (sum_xy - cross_y) / (n * (m - b))
    return float(mean_x + mean_y - 2 * sum_xy / (n * m)), _jackknife(without_x) + _jackknife(without_y)


def _paired_mmd(x: Tensor, y: Tensor, a: int) -> tuple[float, float]:
    """As `_independent_mmd`, over pairs: the U-statistic of k(x, x') + k(y, y') - k(x, y') - k(x', y)."""
    n = len(x)
    runs = _all(x, x, a) - _own(x, x, a) + _all(y, y, a) - _own(y, y, a)
    runs = runs - (_all(x, y, a) + _all(y, x, a) - 2 * _own(x, y, a))
    without = (runs.sum() - 2 * runs) / ((n - a) * (n - 2 * a))
    return float(runs.sum() / (n * (n - a))), _jackknife(without)


def _jackknife(without: Tensor) -> float:
    """Variance of a statistic from its values with each run left out."""
    return float((len(without) - 1) * without.var(correction=0))


def _all(x: Tensor, y: Tensor, run: int) -> Tensor:
    """(n / run,) sums of the kernel between the x of a run and every y."""
    return _kernel(x @ y.T, x.shape[1]).sum(1).view(-1, run).sum(1)


def _own(x: Tensor, y: Tensor, run: int) -> Tensor:
    """(n / run,) sums of the kernel between the x of a run and the y of the same run."""
    blocks_x, blocks_y = x.view(-1, run, x.shape[1]), y.view(-1, run, x.shape[1])
    return _kernel(blocks_x @ blocks_y.mT, x.shape[1]).sum((1, 2))


def _kernel(products: Tensor, size: int) -> Tensor:
    return (products / size + 1).pow(3)


def _covariance_root(x: Tensor) -> Tensor:
    """Symmetric square root (d, d) of the samples' covariance; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh(torch.atleast_2d(x.T.cov()))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _checked(x: Tensor, y: Tensor, *, fewest: int) -> tuple[Tensor, Tensor]:
    """Two feature sets in float64; RMDError unless both are (at least `fewest`, the same d)."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise RMDError(f"expected two feature sets (n, d) and (m, d), got {shapes}")
    if min(len(x), len(y)) < fewest:
        raise RMDError(f"this distance needs {fewest} samples or more in each set, got {len(x)} and {len(y)}")
    return _finite(x), _finite(y)


def _finite(values: Tensor) -> Tensor:
    values = values.double().contiguous()
    if not bool(values.isfinite().all()):
        raise RMDError("some values to measure are not finite numbers: look at the samples they come from")
    return values
