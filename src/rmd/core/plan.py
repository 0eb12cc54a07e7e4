"""The step plan: which step runs at which time and resolution, as frozen data (Sec. 3.1).

A plan is built once from logSNR thresholds (`build_plan`) and then read by everything: training, sampler,
pipeline, exporter and benchmark. It holds final times, never a rule to recompute them, and round-trips
through JSON exactly. Times are in the scheduler's unit of 0..1000, sides in pixels, height before width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic_core import to_json

from rmd.common.errors import RMDError, finite, integer, one_of, shown
from rmd.common.typed import explain
from rmd.core.noise import MAX_TIME, NoiseSchedule, shift_time

TimeMap = Literal["raise", "vp", "lower", "none"]
Upsample = Literal["bilinear", "nearest", "bicubic"]
NoiseRule = Literal["plain", "corrected", "block"]
StepNoise = Literal["predicted", "fresh"]
MAX_SIDE = 16384
"""Longest side of a stage in pixels: a larger value is a typing error, and would exceed any memory."""
MAX_FRAMES = 10_000
"""Largest number of frames in a plan's sample."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Validation of the classes below from JSON, as in `rmd.common.typed.Strict`."""

# JSON has no infinity, so the logSNR of pure noise is written as null. Times must be ordered as these numbers are,
# which rules out NaN.
LogSNR = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda value: -math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]


@dataclass(frozen=True)
class Stage:
    """One resolution of the cascade: `index` from 1, `height` and `width` in pixels."""

    __pydantic_config__ = _STRICT

    index: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """The stage's size as a person writes it: heightxwidth."""
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class Step:
    """One evaluation of the student.

    `index` and `stage` count from 1. `teacher_time` is the time on the teacher's schedule, `logsnr` that
    schedule's logSNR there (-inf for pure noise) and `model_time` the time the student runs at, which differs
    below the final resolution (Eq. 2). `tau_low`..`tau_high` is the step's segment of teacher time: from the
    next step's teacher time, or 0, to its own.
    """

    __pydantic_config__ = _STRICT

    index: int
    stage: int
    teacher_time: float
    model_time: float
    logsnr: LogSNR
    tau_low: float
    tau_high: float


@dataclass(frozen=True)
class Crossing:
    """How a state moves to the next step: to a higher resolution (Eq. 10), or on at its own.

    `beta` in [0, 1] weighs the predicted noise in a crossing. `within` is the noise of a step that stays at its
    resolution: the predicted one, which makes it deterministic, or fresh noise (DMD2, scale-wise distillation).
    """

    __pydantic_config__ = _STRICT

    upsample: Upsample = "bilinear"
    rule: NoiseRule = "plain"
    beta: float = 1.0
    within: StepNoise = "predicted"

    def __post_init__(self) -> None:
        one_of("upsample", self.upsample, get_args(Upsample))
        one_of("noise rule", self.rule, get_args(NoiseRule))
        one_of("noise within a stage", self.within, get_args(StepNoise))
        if not 0.0 <= finite("beta", self.beta) <= 1.0:
            raise RMDError(f"beta must be between 0 (fresh noise) and 1 (predicted noise), got {self.beta}")


@dataclass(frozen=True)
class StepPlan:
    """The cascade as data; constructing one that is not a valid cascade raises RMDError.

    `crossing` is used for sampling, `training_crossing` in training roll-outs. `time_map` and `thresholds`
    record how the times were made; nothing recomputes them. `frames` is the length of a video at every stage, 1 for
    pictures.
    """

    __pydantic_config__ = _STRICT

    stages: tuple[Stage, ...]
    steps: tuple[Step, ...]
    crossing: Crossing
    training_crossing: Crossing
    time_map: TimeMap
    thresholds: tuple[float, ...]
    frames: int = 1
    match_side: tuple[int, int] | None = None
    """(height, width) of `match_stage` in pixels, if it is larger than the last stage."""

    def __post_init__(self) -> None:
        _check_stages(self.stages)
        _check_thresholds(self.thresholds, len(self.stages))
        one_of("time map", self.time_map, get_args(TimeMap))
        _check_steps(self.steps, len(self.stages))
        if not 1 <= integer("frames", self.frames) <= MAX_FRAMES:
            raise RMDError(f"a sample has 1 to {MAX_FRAMES} frames, got {shown(self.frames)}")
        if self.match_side is not None:
            _check_match_side(self.match_side, self.stages[-1])

    @property
    def match_stage(self) -> Stage:
        """The resolution at which teacher and fake score compare samples, and the picture size that networks are told.

        This is the last stage, unless `match_side` gives a larger resolution.
        """
        return self.stages[-1] if self.match_side is None else Stage(len(self.stages), *self.match_side)

    def stage_of(self, step: Step) -> Stage:
        """The stage a step of this plan runs at."""
        return self.stages[step.stage - 1]

    def ends_stage(self, step: Step) -> bool:
        """Whether the step is the last of its stage."""
        return step.index == len(self.steps) or self.steps[step.index].stage != step.stage

    def relative_cost(self, stage: Stage) -> float:
        """Area of the stage over area of the last one: its cost, where cost grows with pixels."""
        last = self.stages[-1]
        return stage.height * stage.width / (last.height * last.width)

    def resized(self, height: int, width: int, multiple: int) -> StepPlan:
        """The same plan for another final size; times do not change.

        Each stage keeps the ratio of its sides to the final ones, rounded to `multiple` (at least one).
        Raises RMDError if the final size is not divisible by it, or so small that two stages coincide.
        """
        _check_divisible(height, width, multiple, "the final size")
        last = self.stages[-1]
        stages = tuple(
            Stage(
                stage.index,
                _scaled(stage.height, height, last.height, multiple),
                _scaled(stage.width, width, last.width, multiple),
            )
            for stage in self.stages
        )
        for lower, upper in pairwise(stages):
            if (lower.height, lower.width) == (upper.height, upper.width):
                raise RMDError(
                    f"a final size of {height}x{width} is too small for this plan: stages {lower.index} and "
                    f"{upper.index} would both be {upper.size} in multiples of {multiple}; use a larger size"
                )
        if self.match_side is None:
            return replace(self, stages=stages)
        match = self.match_stage
        match_side = (
            _scaled(match.height, height, last.height, multiple),
            _scaled(match.width, width, last.width, multiple),
        )
        return replace(self, stages=stages, match_side=match_side)

    def warnings(self) -> list[str]:
        """Settings that are allowed but known to cost quality, one sentence each."""
        sampled, trained = self.crossing, self.training_crossing
        if len(self.stages) == 1:
            return []
        found = []
        if sampled.rule != trained.rule:
            found.append(f"noise rule {sampled.rule!r} is sampled with, but {trained.rule!r} was trained with")
        elif sampled.rule != "block" and sampled.beta != trained.beta:
            found.append(
                f"{sampled.rule} noise is sampled with beta {sampled.beta:g} but was trained with "
                f"{trained.beta:g}: the step after a crossing sees noise it was not trained on, which can "
                f"leave blotches; sample with the training beta, or train with the noise rule 'block'"
            )
        if sampled.upsample != trained.upsample:
            found.append(f"{sampled.upsample} upsampling is sampled with, but {trained.upsample} was trained with")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values; a logSNR of -inf, which JSON cannot hold, becomes None."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StepPlan:
        """Inverse of `to_dict`; RMDError for an unknown or missing key, a wrong type or an invalid plan."""
        return cls.from_json(to_json(data))

    def to_json(self) -> str:
        """The plan as (strict) JSON text; floats keep every digit."""
        return _adapter().dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> StepPlan:
        """Inverse of `to_json`; RMDError if the text is not JSON or not a plan."""
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            raise RMDError(f"the plan: {explain(error, cls)}") from error


@cache
def _adapter() -> TypeAdapter[StepPlan]:
    return TypeAdapter(StepPlan)


def build_plan(
    schedule: NoiseSchedule,
    *,
    steps: int,
    sides: Sequence[tuple[int, int]],
    thresholds: Sequence[float],
    time_map: TimeMap = "raise",
    crossing: Crossing = Crossing(),
    training_crossing: Crossing | None = None,
    grid_end: float = 0.0,
    multiple: int = 1,
    frames: int = 1,
    match_side: tuple[int, int] | None = None,
) -> StepPlan:
    """Divide a teacher's schedule into the stages of a cascade (Sec. 3.1).

    `steps` teacher times are uniform in the scheduler's own time down to `grid_end` (exclusive); a step
    belongs to stage k when Lambda_{k-1} < logsnr <= Lambda_k, `thresholds` being the Lambda, and the first
    step, pure noise, to stage 1. `sides` are the stages' (height, width) in pixels, the teacher's last.
    `training_crossing` defaults to `crossing`, `match_side` to the last of `sides`. Raises RMDError for anything that
    is not a cascade: sides that do not grow or are not divisible by `multiple`, thresholds that do not increase, a
    stage without a step.
    """
    stages = tuple(Stage(i, *_side_pair(pair, i)) for i, pair in enumerate(sides, start=1))
    _check_stages(stages)
    for stage in stages:
        _check_divisible(stage.height, stage.width, multiple, f"stage {stage.index}")
    if match_side is not None:
        _check_divisible(*match_side, multiple, "the side of the matching")
    limits = tuple(finite("a threshold", value) for value in thresholds)
    _check_thresholds(limits, len(stages))
    one_of("time map", time_map, get_args(TimeMap))
    if integer("steps", steps) < len(stages):
        raise RMDError(f"{_needs(len(stages), 'stage', 'at least', len(stages), 'step')}, got {steps}")
    times = schedule.grid(steps, grid_end)
    return StepPlan(
        stages=stages,
        steps=_divide(schedule, times, stages, limits, time_map),
        crossing=crossing,
        training_crossing=crossing if training_crossing is None else training_crossing,
        time_map=time_map,
        thresholds=limits,
        frames=frames,
        match_side=match_side,
    )


def map_time(schedule: NoiseSchedule, t: float, ratio: float, time_map: TimeMap) -> float:
    """Model time (0..1000) of teacher time `t` at a resolution `ratio` times smaller than the teacher's.

    With s = t / 1000 and r = `ratio`, "raise" is the rectified-flow form of Eq. 2 whatever the schedule
    (Tab. 6), r s / (1 + (r - 1) s); "vp" lowers logSNR by 2 log r on the schedule itself; "lower", the
    inverse of "raise", is the noise level of block means of the teacher's state; "none" keeps t.
    Raises RMDError if `ratio` is below 1.
    """
    one_of("time map", time_map, get_args(TimeMap))
    if not (math.isfinite(ratio) and ratio >= 1.0):
        raise RMDError(f"the ratio of the final side to the stage's must be at least 1, got {ratio}")
    if ratio == 1.0 or time_map == "none":
        return t
    if time_map == "vp":
        return float(schedule.time(schedule.logsnr(t) - 2.0 * math.log(ratio)))
    # Both are flow shifts: s / (r - (r - 1) s) is the one by 1 / r.
    return min(shift_time(t, ratio if time_map == "raise" else 1.0 / ratio), MAX_TIME)


def _divide(
    schedule: NoiseSchedule,
    times: Sequence[float],
    stages: Sequence[Stage],
    thresholds: Sequence[float],
    time_map: TimeMap,
) -> tuple[Step, ...]:
    logsnrs = [float(schedule.logsnr(t)) for t in times]
    owners = [1] + [1 + bisect_left(thresholds, value) for value in logsnrs[1:]]
    _check_every_stage_has_a_step(owners, stages, thresholds, logsnrs)
    final = min(stages[-1].height, stages[-1].width)
    ratios = [final / min(stage.height, stage.width) for stage in stages]
    return tuple(
        Step(
            index=i + 1,
            stage=owner,
            teacher_time=t,
            model_time=map_time(schedule, t, ratios[owner - 1], time_map),
            logsnr=logsnr,
            tau_low=following,
            tau_high=t,
        )
        for i, (t, following, owner, logsnr) in enumerate(zip(times, [*times[1:], 0.0], owners, logsnrs, strict=True))
    )


def _scaled(side: int, final: int, old_final: int, multiple: int) -> int:
    """side * final / old_final to the nearest multiple (halves up), at least one multiple; exact integers."""
    return max(1, (2 * side * final + old_final * multiple) // (2 * old_final * multiple)) * multiple


def _check_stages(stages: Sequence[Stage]) -> None:
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


def _check_match_side(side: tuple[int, int], last: Stage) -> None:
    _check_sides(*side, "the side of the matching")
    if side[0] < last.height or side[1] < last.width:
        raise RMDError(
            f"samples of {last.size} cannot be matched at {side[0]}x{side[1]}, which is smaller: "
            "use a match_side that is at least as large as the last stage"
        )


def _check_divisible(height: int, width: int, multiple: int, what: str) -> None:
    if integer("the size multiple", multiple) < 1:
        raise RMDError(f"the size multiple must be at least 1, got {multiple}")
    _check_sides(integer("a height", height), integer("a width", width), what)
    if height % multiple or width % multiple:
        near = f"{_scaled(height, 1, 1, multiple)}x{_scaled(width, 1, 1, multiple)}"
        raise RMDError(f"{what}, {height}x{width}, is not divisible by {multiple}: use {near}")


def _check_sides(height: int, width: int, what: str) -> None:
    if max(height, width) > MAX_SIDE:
        raise RMDError(f"{what} has a side of {shown(max(height, width))} pixels: use at most {MAX_SIDE}")
    if min(height, width) < 1:
        raise RMDError(f"{what} is {height}x{width}: sides must be positive")


def _check_thresholds(thresholds: Sequence[float], stages: int) -> None:
    if len(thresholds) != stages - 1:
        raise RMDError(
            f"{_needs(stages, 'resolution', '', stages - 1, 'logSNR threshold')} between them, got {len(thresholds)}"
        )
    for value in thresholds:
        finite("a threshold", value)
    if any(low >= high for low, high in pairwise(thresholds)):
        raise RMDError(f"logSNR thresholds must strictly increase, got {_numbers(thresholds)}")


def _check_every_stage_has_a_step(
    owners: Sequence[int], stages: Sequence[Stage], thresholds: Sequence[float], logsnrs: Sequence[float]
) -> None:
    for stage in stages:
        if stage.index not in owners:
            low = -math.inf if stage.index == 1 else thresholds[stage.index - 2]
            high = math.inf if stage.index == len(stages) else thresholds[stage.index - 1]
            raise RMDError(
                f"stage {stage.index} ({stage.size}) gets no step: none has a logSNR above {low:g} and up to "
                f"{high:g} (the steps have {_numbers(logsnrs)}); move a threshold or use more steps"
            )


def _check_steps(steps: Sequence[Step], stages: int) -> None:
    if not steps:
        raise RMDError("a plan needs at least one step, got none")
    if [step.index for step in steps] != list(range(1, len(steps) + 1)):
        raise RMDError("the steps of a plan must be numbered 1, 2, ... in order")
    owners = [step.stage for step in steps]
    if owners != sorted(owners) or set(owners) != set(range(1, stages + 1)):
        raise RMDError(f"the steps must visit stages 1 to {stages} in order, each at least once, got {shown(owners)}")
    times = [step.teacher_time for step in steps]
    if not all(a > b for a, b in pairwise([*times, 0.0])) or times[0] > MAX_TIME:
        raise RMDError(f"teacher times must strictly fall within 1000 and 0, got {_numbers(times)}")
    for step in steps:
        if not 0.0 < step.model_time <= MAX_TIME:
            raise RMDError(f"step {step.index} has model time {step.model_time:g}: use above 0 and up to 1000")
        if not 0.0 <= step.tau_low < step.tau_high <= MAX_TIME:
            raise RMDError(f"step {step.index} has an empty segment, {step.tau_low:g} to {step.tau_high:g}")
    # A model time may rise between stages, since the maps move the times of the lower stage. Two times that a map clips
    # at 1000, and two logSNRs where a schedule is flat, may be equal.
    for stage, group in groupby(steps, key=lambda step: step.stage):
        models = [step.model_time for step in group]
        if any(a < b for a, b in pairwise(models)):
            raise RMDError(f"model times must fall within a stage, but those of stage {stage} are {_numbers(models)}")
    levels = [step.logsnr for step in steps]
    if not all(a <= b for a, b in pairwise([-math.inf, *levels, math.inf])) or not all(
        math.isfinite(level) for level in levels[1:]
    ):
        raise RMDError(f"logSNRs must rise as teacher times fall, got {_numbers(levels)}")


def _side_pair(pair: Sequence[int], stage: int) -> tuple[int, int]:
    if len(pair) != 2:
        raise RMDError(f"stage {stage} needs a height and a width, got {tuple(pair)}")
    return integer("a height", pair[0]), integer("a width", pair[1])


def _needs(owners: int, owner: str, bound: str, count: int, thing: str) -> str:
    """ "2 stages need at least 2 steps", with the right endings for one."""
    subject = f"1 {owner} needs" if owners == 1 else f"{owners} {owner}s need"
    return " ".join(f"{subject} {bound} {count} {thing}{'s' * (count != 1)}".split())


def _numbers(values: Sequence[float]) -> str:
    """Return the first eight of some numbers, for an error message."""
    more = "" if len(values) <= 8 else f", ... ({len(values)} in all)"
    return ", ".join(f"{value:.4g}" for value in values[:8]) + more
