"""The teacher times of a plan's steps, and the thresholds that divide them into stages (Sec. 3.1).

The paper's times are uniform (`NoiseSchedule.grid`). With few steps that ties the noise level at which a cascade enters
the next resolution to the number of steps, although these are different questions: the less noise there is at the
crossing, the more of the detail that the low resolution cannot hold should already be there. `stage_times` frees the
crossings: it puts each stage's first step where it is wanted, and spaces the stage's other steps uniformly, as the
paper spaces all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from rmd.common.errors import RMDError, finite, shown
from rmd.core.noise import NoiseSchedule
from rmd.core.shift import MAX_TIME, shift_time

FIRST_TIME = 990.0
"""Earliest time of a first step: it starts from pure noise, and must be told so."""


def flow_sigma(logsnr: float) -> float:
    """Return the noise level of a logSNR as sigma of a rectified flow, 1 / (1 + exp(logSNR / 2)) in [0, 1] (Eq. 1).

    Levels of all schedules are comparable in this unit.
    """
    return 1.0 / (1.0 + math.exp(min(logsnr / 2.0, 700.0)))


def logsnr_at(sigma: float) -> float:
    """Return the logSNR at which a rectified flow has this sigma in (0, 1); the inverse of `flow_sigma` (Eq. 1).

    Raises:
        RMDError: `sigma` is not between 0 and 1.
    """
    if not 0.0 < finite("a sigma", sigma) < 1.0:
        raise RMDError(f"a crossing's sigma must be between 0 (clean) and 1 (pure noise), got {sigma:g}")
    return 2.0 * math.log((1.0 - sigma) / sigma)


def stage_times(
    schedule: NoiseSchedule, split: Sequence[int], logsnrs: Sequence[float], end: float = 0.0
) -> tuple[float, ...]:
    """Return the teacher times of a cascade that crosses at given noise levels.

    A stage's first step has the level of its crossing (pure noise for the first stage), and its other steps divide the
    way to the next stage's first step evenly, in the scheduler's time before the flow shift. With crossings on the
    uniform grid, this is the uniform grid. Crossings are rounded to whole times, at which discrete-time teachers were
    trained.

    Args:
        schedule: the teacher's noise schedule.
        split: number of steps in each stage, at least 1.
        logsnrs: logSNR of the first step of every stage but the first, increasing.
        end: exclusive end of the last stage's times, in [0, 1), as a fraction of the scheduler's time.

    Raises:
        RMDError: there is not one crossing for each later stage, or the crossings do not follow each other.
    """
    check_split(split)
    if len(logsnrs) != len(split) - 1:
        raise RMDError(
            f"a cascade of {len(split)} stages has {len(split) - 1} crossings, but {len(logsnrs)} levels are given for "
            "them: give one for every stage but the first"
        )
    firsts = [MAX_TIME, *(float(round(float(schedule.time(level)))) for level in logsnrs)]
    unshifted = [*(shift_time(t, 1.0 / schedule.shift) for t in firsts), MAX_TIME * end]
    if not all(a > b for a, b in pairwise(unshifted)):
        raise RMDError(
            f"the crossings must follow each other from noise to clean, between time 1000 and the grid's end, but lie "
            f"at {', '.join(f'{t:g}' for t in firsts[1:])}: move a crossing"
        )
    return tuple(
        shift_time(start + (stop - start) * i / count, schedule.shift) if i else first
        for first, (start, stop), count in zip(firsts, pairwise(unshifted), split, strict=True)
        for i in range(count)
    )


def check_times(times: Sequence[float]) -> tuple[float, ...]:
    """Return explicit teacher times as floats.

    Raises:
        RMDError: they do not fall strictly from pure noise, 1000, to above 0.
    """
    values = tuple(finite("a time", t) for t in times)
    if not values or not FIRST_TIME <= values[0] <= MAX_TIME:
        raise RMDError(
            f"the first step starts from pure noise, so its time must be between {FIRST_TIME:g} and 1000, got "
            f"{', '.join(f'{t:g}' for t in values[:1]) or 'no time'}"
        )
    if not all(a > b for a, b in pairwise([*values, 0.0])):
        raise RMDError(f"times must fall strictly from 1000 to above 0, got {', '.join(f'{t:g}' for t in values[:8])}")
    return values


def thresholds_between(logsnrs: Sequence[float], split: Sequence[int]) -> list[float]:
    """Return the logSNR thresholds of a split: halfway between the last step of a stage and the first of the next.

    Args:
        logsnrs: logSNR of every step; the first, which may be -inf, counts as 2 below the second.
        split: number of steps in each stage, which add up to the steps.

    Returns:
        One threshold fewer than the stages, increasing, rounded to four decimals.
    """
    levels = list(logsnrs)
    if len(levels) > 1:
        levels[0] = levels[1] - 2.0  # pure noise may be -inf: any level below the others will do
    ends = list(accumulate(split))[:-1]
    return [round((levels[end - 1] + levels[end]) / 2, 4) for end in ends]


def check_split(split: Sequence[int], steps: int | None = None, stages: int | None = None) -> None:
    """Check that every stage has a step, and that the numbers agree with those of the steps and stages.

    Raises:
        RMDError: a stage has no step, or the numbers do not agree.
    """
    text = "+".join(shown(count) for count in split) or "none"
    if not split or min(split) < 1:
        raise RMDError(f"every stage needs at least one step, got {text}")
    if steps is not None and sum(split) != steps:
        raise RMDError(f"a split into {text} steps does not go with {steps} steps: the numbers must add up to them")
    if stages is not None and len(split) != stages:
        raise RMDError(f"a split into {text} steps has {len(split)} stages, but there are {stages} sides")
