"""Estimates what a plan loses: detail that its low resolutions lack, and detail that few steps must create at once.

The paper finds its thresholds by trial and keeps the times uniform. This module, which is not in the paper, predicts
which plans are worth training, from one measurement of the teacher: the power spectrum of its clean latents. The loss
of a plan has two parts.

*What the low resolutions lack* (`missing_bits`). A step at a low resolution is cheap, but it cannot create detail above
that resolution. The teacher has worked at full resolution all along, so its state already contains part of the detail
when the cascade crosses to a higher one. By the capacity formula of the Gaussian channel, a mode with power P, observed
at a signal-to-noise ratio SNR, carries log2(1 + P SNR) / 2 bits. This is also the factor, in powers of two, by which
the deterministic sampler makes the amplitude of a mode too small if it starts from a state that lacks the mode.

*What a step creates at once* (`step_error`). From one step's level to the next one's, the information about a mode
grows by b = log2((1 + P SNR') / (1 + P SNR)) / 2, and one call of the network has to create it. Calls that create much
at once do it badly. With an error proportional to b, relative to the mode's amplitude, the power of the error is P b^2.

The less noise there is at the crossing, the larger the first part; the more noise there is at the later steps, the
larger the second. `rmd.core.splits` looks for the times between the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rmd.core.crossing import cosine_basis
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import StepPlan
from rmd.core.times import check_split, thresholds_between

Side = tuple[int, int]
"""Height and width in pixels."""
END_SNR = 16.0
"""Signal-to-noise ratio, for a mode of unit power, at which a sample counts as finished: about that of a VAE's own
reconstruction (SDXL's reaches a PSNR of 24.7 dB, an SNR of 18 for pictures that vary by a quarter of their range)."""
STEP_WEIGHT = 0.01
"""Weight of `step_error` in the loss, in bits. It was chosen by looking at trained students: moving the times of four
steps towards noise cost TDM about as much as it gained a naive 2+2 cascade (docs/findings.md)."""
LATENT_FACTOR = 8
"""Pixels for each latent along a side, in most VAEs."""


def power_spectrum(latents: Tensor) -> Tensor:
    """Return the mean power of each mode of the orthonormal cosine transform (DCT-II).

    Args:
        latents: (B, C, H, W) or (B, C, T, H, W).

    Returns:
        (H, W), averaged over all other dimensions; float64, on the CPU.
    """
    height, width = latents.shape[-2:]
    rows, columns = (cosine_basis(side).to(latents.device) for side in (height, width))
    power = (rows @ latents.double() @ columns.T).square()
    return power.flatten(0, -3).mean(0).cpu()


def natural_spectrum(shape: tuple[int, int]) -> Tensor:
    """Return the spectrum of natural pictures, for a teacher whose own has not been measured.

    The power of natural pictures falls with the frequency f as 1 / f^2 (Field, 1987): every octave has the same power,
    although each has four times the modes of the octave below. Latents are taken to do the same.

    Args:
        shape: (H, W) of the latents.

    Returns:
        (H, W) with a mean of 1, which is the power per latent value of normalised latents; float64. The constant mode
        has the power of the lowest frequency, at which 1 / f^2 is still finite.
    """
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in shape)
    squared = rows.square()[:, None] + columns.square()[None, :]
    power = 1.0 / squared.clamp(min=1.0 / max(shape) ** 2)
    return power / power.mean()


def natural_latents(plan: StepPlan) -> Tensor:
    """Return the natural spectrum of a plan's latents at the last stage, with `LATENT_FACTOR` pixels for each."""
    last = plan.stages[-1]
    height, width = (max(round(side / LATENT_FACTOR), 1) for side in (last.height, last.width))
    return natural_spectrum((height, width))


def crossing_bits(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> list[float]:
    """Return the information that each low resolution lacks when the cascade leaves it, in bits per latent value.

    A crossing contributes log2(1 + P SNR) / 2 for each mode that the higher resolution has and the lower one lacks, at
    the SNR of the first step after the crossing. The bits are those of the last stage's latent values.

    Args:
        plan: the cascade.
        schedule: the teacher's noise schedule.
        power: P, the power spectrum (H, W) of clean latents at the last resolution (`power_spectrum`).

    Returns:
        One number for every stage but the first.
    """
    masks = _masks(plan, power)
    bits = []
    for below, stage in pairwise(plan.stages):
        first = next(step for step in plan.steps if step.stage == stage.index)
        snr = math.exp(float(schedule.logsnr(first.teacher_time)))
        lacking = masks[stage.index - 1] & ~masks[below.index - 1]
        bits.append(float(information(snr, power[lacking]).sum()) / power.numel())
    return bits


def missing_bits(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> float:
    """Return the information that all low resolutions together lack, in bits per latent value; see `crossing_bits`.

    A plan of a single stage lacks 0 bits.
    """
    return sum(crossing_bits(plan, schedule, power))


def step_error(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> float:
    """Return the share of the power that is wrong because the steps create too much at once, up to a constant factor.

    It is the sum of P b^2 over all calls and modes, divided by the sum of P, where b are the bits by which a call
    sharpens a mode. The first call starts from nothing, the last ends at `END_SNR`, and modes that the stage before
    lacked have all their bits still to come. The levels are the teacher's; with the time map `lower`, a state at a low
    resolution has just these.

    Args:
        plan, schedule, power: as in `crossing_bits`.
    """
    masks = _masks(plan, power)
    snrs = [step_snr(schedule, step.teacher_time) for step in plan.steps[1:]]
    error, known = 0.0, torch.zeros_like(power)
    for i, (step, snr) in enumerate(zip(plan.steps, [*snrs, END_SNR], strict=True)):
        bits = information(snr, power)
        error += float((power * (bits - known).square())[masks[step.stage - 1]].sum())
        known = bits * masks[step.stage - 1]
        if i + 1 == len(plan.steps):
            break
    return error / float(power.sum())


def plan_loss(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> float:
    """Return the loss of a plan: `missing_bits` plus `STEP_WEIGHT` times `step_error`, in bits per latent value.

    Losses compare plans for one teacher; they do not say how good a student will be.
    """
    return missing_bits(plan, schedule, power) + STEP_WEIGHT * step_error(plan, schedule, power)


def information(snr: float | Tensor, power: Tensor) -> Tensor:
    """Return what is known about modes of some power at a signal-to-noise ratio, log2(1 + P SNR) / 2 bits."""
    return 0.5 * torch.log2(1.0 + snr * power)


def step_snr(schedule: NoiseSchedule, time: float) -> float:
    """Return the signal-to-noise ratio at a teacher time, and at most `END_SNR`: more is not seen in a picture."""
    return math.exp(min(float(schedule.logsnr(time)), math.log(END_SNR)))


def split_thresholds(schedule: NoiseSchedule, split: Sequence[int], *, grid_end: float = 0.0) -> list[float]:
    """Return the logSNR thresholds of a split: halfway between the last step of a stage and the first of the next.

    Args:
        schedule: the teacher's noise schedule.
        split: number of steps in each stage, at least 1.
        grid_end: exclusive end of the time grid; see `NoiseSchedule.grid`.

    Returns:
        One threshold fewer than the stages, increasing, rounded to four decimals.

    Raises:
        RMDError: there is no stage, or a stage has no step.
    """
    check_split(split)
    return thresholds_between([float(schedule.logsnr(t)) for t in schedule.grid(sum(split), grid_end)], split)


def _masks(plan: StepPlan, power: Tensor) -> list[Tensor]:
    """Return which modes (H, W) exist at each stage of a plan."""
    last = plan.stages[-1]
    return [modes_within(power, stage.height / last.height, stage.width / last.width) for stage in plan.stages]


def modes_within(power: Tensor, height: float, width: float) -> Tensor:
    """Return which modes (H, W) exist at a resolution that is this fraction of the full height and width."""
    rows, columns = (torch.arange(side) for side in power.shape)
    return (rows < round(height * len(rows)))[:, None] & (columns < round(width * len(columns)))[None, :]
