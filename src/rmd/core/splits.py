"""All ways of dividing a plan's steps over the resolutions, each with the times at which it loses least.

`rmd.core.fit` says what a plan loses. Both parts of that loss are sums over consecutive steps, so the best times on a
grid are found exactly, by dynamic programming from the last step to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import comb

import torch
from torch import Tensor

from rmd.common.errors import RMDError, shown
from rmd.core.fit import END_SNR, STEP_WEIGHT, Side, information, missing_bits, modes_within, plan_loss, step_snr
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import StepPlan, build_plan
from rmd.core.shift import MAX_TIME

MAX_SPLITS = 2000
"""Largest number of splits to evaluate; their number grows as a power of the number of steps."""
GRID = tuple(float(t) for t in range(990, 0, -10))
"""The times among which the best ones are looked for, from noisy to clean."""


@dataclass(frozen=True)
class Split:
    """One way to divide the steps over the resolutions, at uniform times or at the best ones.

    Attributes:
        plan: the plan that results.
        steps: number of steps in each stage.
        uniform: whether the times are uniform.
        cost: cost of a sample, in the unit of the costs per step that were given.
        missing: information that the low resolutions lack, in bits per latent value (`rmd.core.fit.missing_bits`).
        loss: what the plan loses in all (`rmd.core.fit.plan_loss`).
    """

    plan: StepPlan
    steps: tuple[int, ...]
    uniform: bool
    cost: float
    missing: float
    loss: float


def splits(
    schedule: NoiseSchedule, *, steps: int, sides: Sequence[Side], costs: Mapping[Side, float], power: Tensor,
    grid_end: float = 0.0,
) -> list[Split]:  # fmt: skip
    """Return all splits of the steps over the last resolution and any of the others, cheapest first.

    Every split comes twice: at uniform times, and at the best ones (`TimeSearch`).

    Args:
        schedule: the teacher's noise schedule.
        steps: total number of steps.
        sides: (height, width) of the resolutions in pixels, increasing; the last is the teacher's.
        costs: cost of one step at each resolution, in any unit.
        power: power spectrum of clean latents at the last resolution (`rmd.core.fit.power_spectrum`).
        grid_end: exclusive end of the uniform times; see `NoiseSchedule.grid`.

    Raises:
        RMDError: the sides do not increase, or there are too many steps or splits (`check_count`).
    """
    check_count(steps, len(sides))
    search, uniform = TimeSearch(schedule, sides, power), schedule.grid(steps, grid_end)
    results = []
    for count in range(len(sides)):
        for lower in combinations(sides[:-1], count):
            chosen = [*lower, sides[-1]]
            for counts in _compositions(steps, len(chosen)):
                cost = sum(n * costs[side] for n, side in zip(counts, chosen, strict=True))
                one, other = (
                    _split(build_plan(schedule, times=times, sides=chosen, split=counts), counts, cost, schedule, power)
                    for times in (uniform, search.best(chosen, counts))
                )
                # Uniform times may lie between those of the grid, and lose less.
                results += [one, replace(min(other, one, key=lambda split: split.loss), uniform=False)]
    return sorted(results, key=lambda split: (split.cost, len(split.steps), split.steps, not split.uniform))


def check_count(steps: int, sides: int) -> None:
    """Check that the steps' times and splits are few enough to be compared.

    Raises:
        RMDError: there are more steps than times on the grid, or more than `MAX_SPLITS` ways to split them over the
            last side and any of the others.
    """
    if steps > len(GRID) + 1:
        raise RMDError(f"the best times are looked for with at most {len(GRID) + 1} steps, got {steps}: use fewer")
    count = sum(comb(sides - 1, lower) * comb(steps - 1, lower) for lower in range(min(sides, steps)))
    if count > MAX_SPLITS:
        raise RMDError(
            f"{steps} steps can be split over {sides} sides in {shown(count)} ways, and at most {MAX_SPLITS} can be "
            "compared: use fewer steps or fewer sides"
        )


def frontier(candidates: Sequence[Split]) -> list[Split]:
    """Return the Pareto frontier, cheapest first: the splits that no other one beats in both cost and loss."""
    best: list[Split] = []
    for split in sorted(candidates, key=lambda split: (split.cost, split.loss)):
        if not best or split.loss < best[-1].loss:
            best.append(split)
    return best


class TimeSearch:
    """Finds the times of a cascade's steps at which it loses least, for one teacher and its resolutions.

    The modes fall into bands: those of the lowest resolution, and those that each further one adds. For every band, all
    that the loss of a step depends on is tabulated once for every pair of times.
    """

    def __init__(self, schedule: NoiseSchedule, sides: Sequence[Side], power: Tensor) -> None:
        """Tabulate the bands.

        Args:
            schedule: the teacher's noise schedule.
            sides: (height, width) of the resolutions in pixels, increasing; the last is the teacher's.
            power: power spectrum (H, W) of clean latents at the last resolution.
        """
        self.sides = list(sides)
        height, width = sides[-1]
        masks = [modes_within(power, side[0] / height, side[1] / width) for side in sides]
        bands = [mask & ~below for below, mask in pairwise([torch.zeros_like(masks[0]), *masks])]
        # The rows are the times, with pure noise before them and the finished sample after them.
        snrs = torch.tensor([0.0, *(step_snr(schedule, t) for t in GRID), END_SNR], dtype=torch.float64)[:, None]
        weight = STEP_WEIGHT / float(power.sum())
        uncapped = torch.tensor([float(schedule.logsnr(t)) for t in GRID], dtype=torch.float64).exp()[:, None]
        self._anew, self._on, self._missing = list[Tensor](), list[Tensor](), list[Tensor]()
        for band in bands:
            modes = power[band].double()[None, :]
            bits = information(snrs, modes)
            products = weight * (bits * modes) @ bits.T
            anew = products.diagonal()
            # What a call costs that creates all bits of the band up to a time, or those between two times.
            self._anew.append(anew)
            self._on.append((anew[:, None] + anew[None, :] - 2.0 * products).clamp(min=0.0))
            missing = torch.zeros(len(snrs), dtype=torch.float64)
            missing[1:-1] = information(uncapped, modes).sum(1) / power.numel()
            self._missing.append(missing)

    def best(self, sides: Sequence[Side], split: Sequence[int]) -> tuple[float, ...]:
        """Return the teacher times, multiples of ten after pure noise, at which a cascade loses least.

        Args:
            sides: the cascade's resolutions, some of those that were given.
            split: number of steps in each stage.
        """
        stages = [self.sides.index(side) for side, count in zip(sides, split, strict=True) for _ in range(count)]
        befores = [stages[0], *stages[:-1]]
        later = torch.triu(torch.ones(len(GRID) + 2, len(GRID) + 2, dtype=torch.bool), diagonal=1)
        # ahead[i]: the least loss of this and all later steps if this one runs at time i.
        ahead, choices = torch.full((len(GRID) + 2,), torch.inf, dtype=torch.float64), []
        ahead[-1] = 0.0
        for before, stage in reversed(list(zip(befores, stages, strict=True))):
            known, new = range(before + 1), range(before + 1, stage + 1)
            costs = torch.where(later, sum([self._on[band] for band in known], ahead), torch.inf)
            least, choice = sum([self._anew[band] for band in new], costs).min(1)
            ahead = sum([self._missing[band] for band in new], least)
            ahead[-1] = torch.inf
            choices.append(choice)
        times, at = [MAX_TIME], 0
        for choice in reversed(choices[1:]):
            at = int(choice[at])
            times.append(GRID[at - 1])
        return tuple(times)


def _split(plan: StepPlan, steps: tuple[int, ...], cost: float, schedule: NoiseSchedule, power: Tensor) -> Split:
    """Return a split at uniform times with its losses."""
    return Split(plan, steps, True, cost, missing_bits(plan, schedule, power), plan_loss(plan, schedule, power))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield all ways to write `total` as an ordered sum of `parts` positive integers."""
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, total)))
