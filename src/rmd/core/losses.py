"""Losses of distribution matching and of the fake score, with their weights (Eq. 7 to 9).

Distribution matching trains a generator without paired data. A sample y of the student, at the teacher's resolution, is
noised to a time tau, and two networks predict the clean latent from the noisy one: the teacher with guidance, f_real,
and the fake score, f_fake, which is trained to know the student's own distribution. Their difference points from where
the student's samples are to where the teacher's are; the generator loss moves y along it. Neither network needs a
gradient for this: the losses are functions of their predictions.

Everything is computed in at least float32. Reductions over a sample are means (or, for the pseudo-Huber metric, a norm
whose constant grows with the dimension), so that samples of all resolutions have the same weight.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rmd.common.errors import RMDError
from rmd.core.noise import per_sample, widen

Metric = Literal["pseudo_huber", "pseudo_huber_elements", "l2"]


def pseudo_huber(u: Tensor, c: float | None = None) -> Tensor:
    """Return the pseudo-Huber metric of each sample, H(u) = sqrt(|u|^2 + c^2) - c (Eq. 8, App. B).

    It is quadratic, |u|^2 / 2c, where |u| is far below c, and linear far above.

    Args:
        u: differences (B, ...); |u| is the Euclidean norm over all dimensions but the batch.
        c: positive constant; 0.00054 sqrt(dim) by default, with dim the number of values in a sample.

    Returns:
        (B,), at least float32.

    Raises:
        RMDError: c is not positive.
    """
    flat = widen(u).flatten(start_dim=1)
    if c is None:
        c = 0.00054 * math.sqrt(flat.shape[1])
    if not c > 0.0:
        raise RMDError(f"the pseudo-Huber constant must be positive, got {c}")
    square = flat.square().sum(dim=1)
    # This form of sqrt(|u|^2 + c^2) - c does not subtract nearly equal numbers when u is small.
    return square / ((square + c * c).sqrt() + c)


def pseudo_huber_elements(u: Tensor) -> Tensor:
    """Return the mean over a sample of sqrt(u^2 + c^2) - c of each value, with c = 1e-3 sqrt(dim / 16384).

    This is the metric of the authors' code. Unlike that of the sample's norm, it weighs the places in a sample against
    each other: large differences count less than in proportion.

    Args:
        u: differences (B, ...).

    Returns:
        (B,), at least float32.
    """
    flat = widen(u).flatten(start_dim=1)
    c = 1e-3 * math.sqrt(flat.shape[1] / 16384)
    square = flat.square()
    return (square / ((square + c * c).sqrt() + c)).mean(dim=1)


def generator_loss(
    y: Tensor,
    f_real: Tensor,
    f_fake: Tensor,
    *,
    weight: Tensor | None = None,
    metric: Metric = "pseudo_huber",
) -> Tensor:
    """Return the distribution-matching loss w H(y - stopgrad(y + f_real - f_fake)) (Eq. 7 and 8).

    Only y receives a gradient. Gradient descent moves it along f_real - f_fake.

    Args:
        y: the student's samples at the teacher's resolution (B, ...).
        f_real: the teacher's guided predictions of the clean latent, of y's shape.
        f_fake: those of the fake score.
        weight: w, one value per sample (B,) or a scalar; 1 by default. It carries no gradient.
        metric: H: "pseudo_huber", "pseudo_huber_elements", or "l2", half the mean square.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        RMDError: the metric is unknown.
    """
    # This form of y - stopgrad(y + d) keeps a small d from being rounded away against a large y.
    residual = (widen(y) - widen(y).detach()) - (widen(f_real) - widen(f_fake)).detach()
    if metric == "pseudo_huber":
        value = pseudo_huber(residual)
    elif metric == "pseudo_huber_elements":
        value = pseudo_huber_elements(residual)
    elif metric == "l2":
        value = 0.5 * residual.square().flatten(start_dim=1).mean(dim=1)
    else:
        raise RMDError(f"unknown metric {metric!r}: use pseudo_huber, pseudo_huber_elements or l2")
    if weight is not None:
        value = per_sample(weight.detach(), value) * value
    return value.mean()


def adversarial_student_loss(logits: Tensor) -> Tensor:
    """Return the generator's non-saturating adversarial loss, the mean of -log D over the student's samples.

    Args:
        logits: the discriminator's logits of the student's samples (B,); D is their sigmoid.
    """
    return functional.softplus(-widen(logits)).mean()


def adversarial_fake_loss(of_student: Tensor, of_real: Tensor) -> Tensor:
    """Return the discriminator's loss: mean -log D over real samples plus mean -log(1 - D) over the student's.

    Args:
        of_student, of_real: the discriminator's logits of either batch, (B,) each; D is their sigmoid.
    """
    return functional.softplus(-widen(of_real)).mean() + functional.softplus(widen(of_student)).mean()


def sample_weight(y: Tensor, f_real: Tensor, floor: float = 1e-5) -> Tensor:
    """Return the weight 1 / mean|y - f_real| of each sample, as in DMD and TDM; w in Eq. 7.

    It gives samples that are far from the teacher's prediction as much weight as near ones.

    Args:
        y, f_real: samples and the teacher's predictions (B, ...).
        floor: smallest mean distance that counts.

    Returns:
        (B,), at most 1 / floor, without gradient.
    """
    distance = (widen(y) - widen(f_real)).detach().abs().flatten(start_dim=1).mean(dim=1)
    return 1.0 / distance.clamp(min=floor)


def snr_weight(alpha: float | Tensor, sigma: float | Tensor, cap: float) -> Tensor:
    """Return min(SNR, cap), with SNR = alpha^2 / sigma^2: the weight of an error in x0 (Eq. 9).

    Args:
        alpha, sigma: weights of the schedule; scalars, or tensors of one shape.
        cap: largest weight; reached at sigma = 0.

    Returns:
        Weights of alpha's shape, in [0, cap].
    """
    a, s = torch.as_tensor(alpha), torch.as_tensor(sigma)
    return ((a / s) ** 2).clamp(max=cap)


def fake_score_loss(pred_x0: Tensor, target_x0: Tensor, weight: Tensor) -> Tensor:
    """Return the fake score's loss, weight * mean|pred_x0 - stopgrad(target_x0)|^2 (Eq. 9).

    Args:
        pred_x0: the fake score's predictions of the clean latent (B, ...).
        target_x0: the student's samples y, of the same shape; they receive no gradient.
        weight: one value per sample (B,) or a scalar; it carries no gradient.

    Returns:
        The mean over the batch, a scalar.
    """
    error = (widen(pred_x0) - widen(target_x0).detach()).square().flatten(start_dim=1).mean(dim=1)
    return (per_sample(weight.detach(), error) * error).mean()
