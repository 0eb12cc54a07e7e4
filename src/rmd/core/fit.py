"""Which split of the steps over the resolutions pays: what each costs, and what its low resolutions would miss.

Not in the paper, which finds its thresholds by trial. A stage cannot make what lies above its own resolution, and when
the cascade leaves it, the steps above it have only the noise levels below to make it in. The teacher, which works at
the full resolution all along, knows some of it by then: a mode of its clean latents that has power P, seen through the
noise of that level, carries log2(1 + P SNR) / 2 bits. Summed over the modes that the stage lacks, this is what the
student has to make up for.
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

Side = tuple[int, int]
MOST = 2000
"""Largest number of splits that are evaluated; their number grows as a power of the number of steps."""


@dataclass(frozen=True)
class Split:
    """A way of dividing the steps.

    Attributes:
        steps: of every stage.
        cost: of a sample, in the unit of the sides' costs.
        missing: bits per latent number that its low resolutions miss.
    """

    plan: StepPlan
    steps: tuple[int, ...]
    cost: float
    missing: float


def power_spectrum(latents: Tensor) -> Tensor:
    """Mean power (H, W) of latents (B, C, H, W) or (B, C, T, H, W) in the orthonormal cosine transform; float64."""
    height, width = latents.shape[-2:]
    rows, columns = (cosine_basis(side).to(latents.device) for side in (height, width))
    power = (rows @ latents.double() @ columns.T).square()
    return power.flatten(0, -3).mean(0).cpu()


def missing_bits(plan: StepPlan, schedule: NoiseSchedule, power: Tensor) -> float:
    """Bits per latent number that a cascade's low resolutions miss when it leaves them; 0 at one resolution.

    Args:
        power: of clean latents at the plan's last resolution (`power_spectrum`).
    """
    last, missing = plan.stages[-1], torch.zeros((), dtype=torch.float64)
    for stage, above in pairwise(plan.stages):
        enters = next(step for step in plan.steps if step.stage == above.index)
        snr = math.exp(float(schedule.logsnr(enters.teacher_time)))
        lacks = ~_within(power, stage.height / last.height, stage.width / last.width)
        lacks &= _within(power, above.height / last.height, above.width / last.width)
        missing = missing + (0.5 * torch.log2(1.0 + snr * power[lacks])).sum()
    return float(missing) / power.numel()


def splits(
    schedule: NoiseSchedule, *, steps: int, sides: Sequence[Side], costs: Mapping[Side, float], power: Tensor,
    grid_end: float = 0.0,
) -> list[Split]:  # fmt: skip
    """Return every division of the steps over the last side and any of the others, cheapest first.

    Args:
        sides: (height, width) in pixels, in increasing order.
        costs: cost of one step at each side.

    Raises:
        RMDError: the sides do not increase, or there are more than `MOST` splits.
    """
    check_count(steps, len(sides))
    found = []
    for count in range(len(sides)):
        for lower in combinations(sides[:-1], count):
            chosen = [*lower, sides[-1]]
            for split in _compositions(steps, len(chosen)):
                thresholds = split_thresholds(schedule, split, grid_end=grid_end)
                plan = build_plan(schedule, steps=steps, sides=chosen, thresholds=thresholds, grid_end=grid_end)
                cost = sum(n * costs[side] for n, side in zip(split, chosen, strict=True))
                found.append(Split(plan, split, cost, missing_bits(plan, schedule, power)))
    return sorted(found, key=lambda split: (split.cost, split.missing))


def check_count(steps: int, sides: int) -> None:
    """Raise RMDError if the steps can be divided over the last side and any others in more than `MOST` ways."""
    count = sum(math.comb(sides - 1, lower) * math.comb(steps - 1, lower) for lower in range(min(sides, steps)))
    if count > MOST:
        raise RMDError(
            f"{steps} steps over {sides} sides can be split in {shown(count)} ways, and at most {MOST} are weighed: "
            "use fewer steps or fewer sides"
        )


def frontier(found: Sequence[Split]) -> list[Split]:
    """Those that no other one beats in cost and in what is missing, the cheapest first."""
    best: list[Split] = []
    for split in sorted(found, key=lambda split: (split.cost, split.missing)):
        if not best or split.missing < best[-1].missing:
            best.append(split)
    return best


def split_thresholds(schedule: NoiseSchedule, split: Sequence[int], *, grid_end: float = 0.0) -> list[float]:
    """logSNR thresholds that give every stage its steps: halfway between the levels of neighbouring steps."""
    if not split or min(split) < 1:
        raise RMDError(f"every stage needs at least one step, got {'+'.join(map(str, split)) or 'none'}")
    levels = [float(schedule.logsnr(t)) for t in schedule.grid(sum(split), grid_end)]
    if len(levels) > 1:
        levels[0] = levels[1] - 2.0  # pure noise: any level below the others will do
    ends = [sum(split[:count]) for count in range(1, len(split))]
    return [round((levels[end - 1] + levels[end]) / 2, 4) for end in ends]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways of writing a number as a sum of so many positive ones, in order."""
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, total)))


def _within(power: Tensor, height: float, width: float) -> Tensor:
    """Modes (H, W) that a part of the resolution can hold."""
    rows, columns = (torch.arange(side) for side in power.shape)
    return (rows < round(height * len(rows)))[:, None] & (columns < round(width * len(columns)))[None, :]
