"""Distribution matching and fake-score losses with their weights (Eq. 7 to 9): pure functions of tensors.

y is the student's sample at the teacher's resolution; f_real and f_fake are what the teacher (with guidance)
and the fake score read as clean in the noised y. Everything is computed in at least float32. Reductions over
a sample are means (the pseudo-Huber metric scales its constant instead), so that resolutions weigh alike.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rmd.common.errors import RMDError
from rmd.core.noise import per_sample, widen

Metric = Literal["pseudo_huber", "l2"]


def pseudo_huber(u: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|u|^2 + c^2) - c of each sample, |u| being the norm over all but the batch; (B, ...) -> (B,).

    `c` defaults to 0.00054 sqrt(dim) (App. B). Quadratic, |u|^2 / 2c, far below c and linear far above it.
    Raises RMDError unless c is positive.
    """
    flat = widen(u).flatten(start_dim=1)
    if c is None:
        c = 0.00054 * math.sqrt(flat.shape[1])
    if not c > 0.0:
        raise RMDError(f"the pseudo-Huber constant must be positive, got {c}")
    square = flat.square().sum(dim=1)
    # Equal to sqrt(|u|^2 + c^2) - c, without subtracting nearly equal numbers when u is small.
    return square / ((square + c * c).sqrt() + c)


def generator_loss(
    y: Tensor,
    f_real: Tensor,
    f_fake: Tensor,
    *,
    weight: Tensor | None = None,
    metric: Metric = "pseudo_huber",
) -> Tensor:
    """w H(y, stopgrad(y + f_real - f_fake)), mean over the batch; a scalar (Eq. 7 and 8).

    Its gradient reaches y alone and, descended, moves y along f_real - f_fake. `weight` is (B,) or a scalar;
    "l2" is half the mean square. Raises RMDError for an unknown metric.
    """
    # y - stopgrad(y + d), written so that a small d is not rounded away against a large y.
    residual = (widen(y) - widen(y).detach()) - (widen(f_real) - widen(f_fake)).detach()
    if metric == "pseudo_huber":
        value = pseudo_huber(residual)
    elif metric == "l2":
        value = 0.5 * residual.square().flatten(start_dim=1).mean(dim=1)
    else:
        raise RMDError(f"unknown metric {metric!r}: use pseudo_huber or l2")
    if weight is not None:
        value = per_sample(weight.detach(), value) * value
    return value.mean()


def adversarial_student_loss(logits: Tensor) -> Tensor:
    """-log D of the student's samples, mean over the batch: the non-saturating objective; logits are (B,)."""
    return functional.softplus(-widen(logits)).mean()


def adversarial_fake_loss(of_student: Tensor, of_real: Tensor) -> Tensor:
    """-log D of real samples and -log(1 - D) of the student's, means over their batches; logits are (B,)."""
    return functional.softplus(-widen(of_real)).mean() + functional.softplus(widen(of_student)).mean()


def sample_weight(y: Tensor, f_real: Tensor, floor: float = 1e-5) -> Tensor:
    """1 / mean|y - f_real| of each sample, without gradient; (B, ...) -> (B,), at most 1 / floor.

    It makes samples that are far from the teacher's reading of them count as much as near ones (DMD).
    """
    distance = (widen(y) - widen(f_real)).detach().abs().flatten(start_dim=1).mean(dim=1)
    return 1.0 / distance.clamp(min=floor)


def snr_weight(alpha: float | Tensor, sigma: float | Tensor, cap: float) -> Tensor:
    """min(alpha^2 / sigma^2, cap): weight of an error in x0 (Eq. 9); alpha's shape, `cap` at sigma = 0."""
    a, s = torch.as_tensor(alpha), torch.as_tensor(sigma)
    return ((a / s) ** 2).clamp(max=cap)


def fake_score_loss(pred_x0: Tensor, target_x0: Tensor, weight: Tensor) -> Tensor:
    """weight * |pred_x0 - stopgrad(target_x0)|^2, mean over dimensions and batch; a scalar (Eq. 9).

    `weight` is (B,) or a scalar and carries no gradient.
    """
    error = (widen(pred_x0) - widen(target_x0).detach()).square().flatten(start_dim=1).mean(dim=1)
    return (per_sample(weight.detach(), error) * error).mean()
