"""Stages, steps and crossings: the parts of a step plan (Sec. 3.1).

A cascade generates a sample in stages of growing resolution. Each stage runs one or more steps, and a step is one
evaluation of the student. Between two steps of the same stage the state moves along the noise schedule; between two
stages it crosses to the higher resolution (Eq. 4 and 10). This module defines these three parts as frozen data and the
conditions under which they form a cascade; `rmd.core.plan` puts them together.

Times are in the scheduler's unit, 0 (clean) to 1000 (pure noise). Sides are in pixels, height before width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from rmd.common.errors import RMDError, finite, integer, one_of, shown
from rmd.core.shift import MAX_TIME

Upsample = Literal["bilinear", "nearest", "bicubic", "dct", "taps"]
NoiseRule = Literal["plain", "corrected", "block"]
StepNoise = Literal["predicted", "fresh"]
MAX_SIDE = 16384
"""Longest side of a stage in pixels. A larger value is a typing error, and would exceed any memory."""
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Pydantic's rules for the parts of a plan that are read from JSON; the same as `rmd.common.typed.Strict`."""

# JSON has no infinity, so the logSNR of pure noise, -inf, is written as null. NaN passes this type, and is then refused
# by the check that logSNRs rise from step to step.
LogSNR = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda value: -math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]


@dataclass(frozen=True)
class Stage:
    """One resolution R_k of the cascade.

    Attributes:
        index: number of the stage, k, counted from 1.
        height, width: sides in pixels.
    """

    __pydantic_config__ = STRICT

    index: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """The size as text, "512x768": height, then width."""
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Step:
    """One evaluation of the student.

    Attributes:
        index: number of the step, i, counted from 1.
        stage: number of the stage it runs at, counted from 1.
        teacher_time: its time t_i on the teacher's schedule, above 0 and up to 1000.
        model_time: the time given to the student, above 0 and up to 1000. Below the final resolution it differs from
            `teacher_time` by the resolution shift (Eq. 2).
        logsnr: logSNR of the teacher's schedule at `teacher_time`; -inf for pure noise.
        tau_low, tau_high: the step's segment of teacher times. It extends from the next step's `teacher_time`, or 0
            after the last step, to the step's own.
    """

    __pydantic_config__ = STRICT

    index: int
    stage: int
    teacher_time: float
    model_time: float
    logsnr: LogSNR
    tau_low: float
    tau_high: float


@dataclass(frozen=True)
class Crossing:
    """The rule by which a state moves on to the next step, at a higher resolution (Eq. 10) or at its own.

    Attributes:
        upsample: interpolation to the higher resolution.
        rule: how predicted and fresh noise are mixed in a crossing; see `rmd.core.crossing`.
        beta: weight of the predicted noise in a crossing, from 0 (fresh noise only) to 1 (predicted noise only).
        within: the noise of a step that stays at its resolution. "predicted" makes that step deterministic; "fresh"
            draws new noise, as DMD2 and scale-wise distillation do.
        eta: with `within` "predicted", the weight of the predicted noise at its own resolution; the rest is fresh.
        taps: the filter of `upsample` "taps"; see `rmd.core.crossing.upsample`.

    Raises:
        RMDError: a name is unknown, `beta` or `eta` is not in [0, 1], or the taps do not go with `upsample`.
    """

    __pydantic_config__ = STRICT

    upsample: Upsample = "bilinear"
    rule: NoiseRule = "plain"
    beta: float = 1.0
    within: StepNoise = "predicted"
    eta: float = 1.0
    taps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        one_of("upsample", self.upsample, get_args(Upsample))
        one_of("noise rule", self.rule, get_args(NoiseRule))
        one_of("noise within a stage", self.within, get_args(StepNoise))
        if not 0.0 <= finite("beta", self.beta) <= 1.0:
            raise RMDError(f"beta must be between 0 (fresh noise) and 1 (predicted noise), got {self.beta}")
        if not 0.0 <= finite("eta", self.eta) <= 1.0:
            raise RMDError(f"eta must be between 0 (fresh noise) and 1 (predicted noise), got {self.eta}")
        if self.within == "fresh" and self.eta != 1.0:
            raise RMDError("steps with fresh noise have no eta: leave it out, or use predicted noise")
        if (self.upsample == "taps") != bool(self.taps):
            raise RMDError("upsampling by taps needs the taps, and no other upsampling has any")
        for tap in self.taps:
            finite("a tap", tap)


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise RMDError unless there is a stage, they are numbered 1, 2, ..., and each is larger than the one before."""
    if not stages:
        raise RMDError("a plan needs at least one resolution, got none")
    for position, stage in enumerate(stages, start=1):
        if stage.index != position:
            raise RMDError(f"stages must be numbered 1, 2, ..., but stage {position} has index {stage.index}")
        _check_sides(stage.height, stage.width, f"stage {position}")
    for lower, upper in pairwise(stages):
        if lower.height > upper.height or lower.width > upper.width:
            raise RMDError(
                f"stage {lower.index} ({lower.size}) is larger than stage {upper.index} ({upper.size}): "
                "list the sides from the smallest to the final one"
            )
        if (lower.height, lower.width) == (upper.height, upper.width):
            raise RMDError(
                f"stages {lower.index} and {upper.index} are both {upper.size}: "
                "each stage must be larger than the one before; merge them or change a side"
            )


def check_thresholds(thresholds: Sequence[float], stages: int) -> None:
    """Raise RMDError unless the logSNR thresholds are one fewer than the stages, finite, and strictly increasing."""
    if len(thresholds) != stages - 1:
        raise RMDError(
            f"{needs(stages, 'resolution', '', stages - 1, 'logSNR threshold')} between them, got {len(thresholds)}"
        )
    for value in thresholds:
        finite("a threshold", value)
    if any(low >= high for low, high in pairwise(thresholds)):
        raise RMDError(f"logSNR thresholds must strictly increase, got {numbers(thresholds)}")


def check_steps(steps: Sequence[Step], stages: int) -> None:
    """Check that the steps run through all the stages in order, from the noisiest time to the cleanest.

    Args:
        steps: the steps of a plan.
        stages: number of stages in the plan.

    Raises:
        RMDError: there is no step, the numbers or stages of the steps are out of order, a stage has no step, or times
            and logSNRs are out of range or do not follow each other.
    """
    if not steps:
        raise RMDError("a plan needs at least one step, got none")
    if [step.index for step in steps] != list(range(1, len(steps) + 1)):
        raise RMDError("the steps of a plan must be numbered 1, 2, ... in order")
    owners = [step.stage for step in steps]
    if owners != sorted(owners) or set(owners) != set(range(1, stages + 1)):
        raise RMDError(f"the steps must visit stages 1 to {stages} in order, each at least once, got {shown(owners)}")
    _check_times(steps)
    levels = [step.logsnr for step in steps]
    rising = all(a <= b for a, b in pairwise([-math.inf, *levels, math.inf]))
    if not rising or not all(math.isfinite(level) for level in levels[1:]):
        raise RMDError(f"logSNRs must rise as teacher times fall, got {numbers(levels)}")


def check_match_side(side: tuple[int, int], last: Stage) -> None:
    """Raise RMDError unless samples of the last stage can be matched at `side` (height, width): it must be as large."""
    _check_sides(*side, "the side of the matching")
    if side[0] < last.height or side[1] < last.width:
        raise RMDError(
            f"samples of {last.size} cannot be matched at {side[0]}x{side[1]}, which is smaller: "
            "use a match_side that is at least as large as the last stage"
        )


def check_divisible(height: int, width: int, multiple: int, what: str) -> None:
    """Check that a size is made of valid sides which are divisible by the backbone's size multiple.

    Args:
        height, width: sides in pixels, 1 to `MAX_SIDE`.
        multiple: number of pixels by which both must be divisible, at least 1.
        what: what has this size, for the error message.

    Raises:
        RMDError: a value is not an integer, is out of range, or a side is not divisible.
    """
    if integer("the size multiple", multiple) < 1:
        raise RMDError(f"the size multiple must be at least 1, got {multiple}")
    _check_sides(integer("a height", height), integer("a width", width), what)
    if height % multiple or width % multiple:
        near = f"{scaled(height, 1, 1, multiple)}x{scaled(width, 1, 1, multiple)}"
        raise RMDError(f"{what}, {height}x{width}, is not divisible by {multiple}: use {near}")


def scaled(side: int, final: int, old_final: int, multiple: int) -> int:
    """Return side * final / old_final, rounded to the nearest multiple (halves up) but at least one multiple.

    All numbers are integers, and so is the arithmetic: the result is exact.
    """
    return max(1, (2 * side * final + old_final * multiple) // (2 * old_final * multiple)) * multiple


def needs(owners: int, owner: str, bound: str, count: int, thing: str) -> str:
    """Return a phrase for an error message such as "2 stages need at least 2 steps", in singular or plural."""
    subject = f"1 {owner} needs" if owners == 1 else f"{owners} {owner}s need"
    return " ".join(f"{subject} {bound} {count} {thing}{'s' * (count != 1)}".split())


def numbers(values: Sequence[float]) -> str:
    """Return a list of numbers as an error message quotes it: the first eight, and how many there are if more."""
    more = "" if len(values) <= 8 else f", ... ({len(values)} in all)"
    return ", ".join(f"{value:.4g}" for value in values[:8]) + more


def _check_sides(height: int, width: int, what: str) -> None:
    if max(height, width) > MAX_SIDE:
        raise RMDError(f"{what} has a side of {shown(max(height, width))} pixels: use at most {MAX_SIDE}")
    if min(height, width) < 1:
        raise RMDError(f"{what} is {height}x{width}: sides must be positive")


def _check_times(steps: Sequence[Step]) -> None:
    """Check the teacher times, the model times and the segments of the steps."""
    times = [step.teacher_time for step in steps]
    if not all(a > b for a, b in pairwise([*times, 0.0])) or times[0] > MAX_TIME:
        raise RMDError(f"teacher times must strictly fall within 1000 and 0, got {numbers(times)}")
    for step in steps:
        if not 0.0 < step.model_time <= MAX_TIME:
            raise RMDError(f"step {step.index} has model time {step.model_time:g}: use above 0 and up to 1000")
        if not 0.0 <= step.tau_low < step.tau_high <= MAX_TIME:
            raise RMDError(f"step {step.index} has an empty segment, {step.tau_low:g} to {step.tau_high:g}")
    # Model times may rise from one stage to the next, because the map shifts the times of the lower stage only. Within
    # a stage two of them may be equal, where a map clips both at 1000; so may two logSNRs, where a schedule is flat.
    for stage, group in groupby(steps, key=lambda step: step.stage):
        models = [step.model_time for step in group]
        if any(a < b for a, b in pairwise(models)):
            raise RMDError(f"model times must fall within a stage, but those of stage {stage} are {numbers(models)}")
