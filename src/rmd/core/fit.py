"""Choosing how to split the steps over the resolutions: what each split costs, and how much detail it leaves for later.

The paper finds its thresholds by trial. This module, which is not in the paper, predicts which splits are worth trying,
from one measurement of the teacher. A step at a low resolution is cheap, but it cannot create detail above that
resolution. When the cascade leaves the stage, the remaining steps have to create this detail at the lower noise levels.
The teacher has worked at full resolution all along, so its state already contains part of the detail at that point. By
the capacity formula of the Gaussian channel, a mode of its clean latents with power P, observed at the signal-to-noise
ratio SNR of that level, carries log2(1 + P SNR) / 2 bits. Summed over the modes that a stage lacks, this is the
information that the later steps have to make up for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from rmd.common.errors import RMDError, shown
from rmd.core.crossing import cosine_basis
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import StepPlan, build_plan
from rmd.core.times import check_split, thresholds_between

Side = tuple[int, int]
"""Height and width in pixels."""
MAX_SPLITS = 2000
"""Largest number of splits to evaluate; their number grows as a power of the number of steps."""


@dataclass(frozen=True)
class Split:
    """One way to divide the steps over the resolutions.

    Attributes:
        plan: the plan that results.
        steps: number of steps in each stage.
        cost: cost of a sample, in the unit of the costs per step that were given.
        missing: information that the low resolutions lack, in bits per latent value (`missing_bits`).
    """

    plan: StepPlan
    steps: tuple[int, ...]
    cost: float
    missing: float


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


def missing_bits(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> float:
    """Return the information that the low resolutions of a cascade lack when it leaves them, in bits per latent value.

    Every crossing contributes log2(1 + P SNR) / 2 for each mode that the higher resolution has and the lower one lacks,
    at the SNR of the first step after the crossing.

    Args:
        plan: the cascade; a single stage lacks 0 bits.
        schedule: the teacher's noise schedule.
        power: P, the power spectrum (H, W) of clean latents at the last resolution (`power_spectrum`).
    """
    last, bits = plan.stages[-1], torch.zeros((), dtype=torch.float64)
    for stage, above in pairwise(plan.stages):
        first = next(step for step in plan.steps if step.stage == above.index)
        snr = math.exp(float(schedule.logsnr(first.teacher_time)))
        lacking = ~_within(power, stage.height / last.height, stage.width / last.width)
        lacking &= _within(power, above.height / last.height, above.width / last.width)
        bits = bits + (0.5 * torch.log2(1.0 + snr * power[lacking])).sum()
    return float(bits) / power.numel()


def splits(
    schedule: NoiseSchedule, *, steps: int, sides: Sequence[Side], costs: Mapping[Side, float], power: Tensor,
    grid_end: float = 0.0,
) -> list[Split]:  # fmt: skip
    """Return all splits of the steps over the last resolution and any of the others, cheapest first.

    Args:
        schedule: the teacher's noise schedule.
        steps: total number of steps.
        sides: (height, width) of the resolutions in pixels, increasing; the last is the teacher's.
        costs: cost of one step at each resolution, in any unit.
        power: power spectrum of clean latents at the last resolution (`power_spectrum`).
        grid_end: exclusive end of the time grid; see `NoiseSchedule.grid`.

    Raises:
        RMDError: the sides do not increase, or there are more than `MAX_SPLITS` splits.
    """
    check_count(steps, len(sides))
    results = []
    for count in range(len(sides)):
        for lower in combinations(sides[:-1], count):
            chosen = [*lower, sides[-1]]
            for counts in _compositions(steps, len(chosen)):
                thresholds = split_thresholds(schedule, counts, grid_end=grid_end)
                plan = build_plan(schedule, steps=steps, sides=chosen, thresholds=thresholds, grid_end=grid_end)
                cost = sum(n * costs[side] for n, side in zip(counts, chosen, strict=True))
                results.append(Split(plan, counts, cost, missing_bits(plan, schedule, power)))
    return sorted(results, key=_by_cost)


def check_count(steps: int, sides: int) -> None:
    """Raise RMDError if the steps can be split over the last side and any of the others in too many ways."""
    count = sum(math.comb(sides - 1, lower) * math.comb(steps - 1, lower) for lower in range(min(sides, steps)))
    if count > MAX_SPLITS:
        raise RMDError(
            f"{steps} steps can be split over {sides} sides in {shown(count)} ways, and at most {MAX_SPLITS} can be "
            "compared: use fewer steps or fewer sides"
        )


def frontier(candidates: Sequence[Split]) -> list[Split]:
    """Return the Pareto frontier, cheapest first: the splits that no other one beats in both cost and missing bits."""
    best: list[Split] = []
    for split in sorted(candidates, key=_by_cost):
        if not best or split.missing < best[-1].missing:
            best.append(split)
    return best


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


def _by_cost(split: Split) -> tuple[float, float]:
    return split.cost, split.missing


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield all ways to write `total` as an ordered sum of `parts` positive integers."""
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, total)))


def _within(power: Tensor, height: float, width: float) -> Tensor:
    """Return which modes (H, W) exist at a resolution that is this fraction of the full height and width."""
    rows, columns = (torch.arange(side) for side in power.shape)
    return (rows < round(height * len(rows)))[:, None] & (columns < round(width * len(columns)))[None, :]
