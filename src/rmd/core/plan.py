"""The step plan: which step runs at which time and resolution, as frozen data (Sec. 3.1).

A teacher samples along a schedule of falling noise levels, all at one resolution. RMD divides this schedule: steps of
low logSNR run at a low resolution, because little but the coarse layout can be seen through so much noise, and later
steps run at higher ones. `build_plan` makes this division once, from logSNR thresholds. Everything else (training,
sampling, export and benchmarks) only reads the plan. It holds the final times, not a rule to recompute them, and
converts to JSON and back without loss.

Times are in the scheduler's unit, 0 (clean) to 1000 (pure noise). Sides are in pixels, height before width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from rmd.common.errors import RMDError, finite, integer, one_of, shown
from rmd.common.typed import explain
from rmd.core.noise import NoiseSchedule
from rmd.core.shift import MAX_TIME, shift_time
from rmd.core.stages import (
    MAX_SIDE,
    STRICT,
    Crossing,
    NoiseRule,
    Stage,
    Step,
    StepNoise,
    Upsample,
    check_divisible,
    check_match_side,
    check_stages,
    check_steps,
    check_thresholds,
    needs,
    numbers,
    scaled,
)
from rmd.core.times import check_split, check_times, thresholds_between

__all__ = [
    "MAX_FRAMES",
    "MAX_SIDE",
    "Crossing",
    "NoiseRule",
    "Stage",
    "Step",
    "StepNoise",
    "StepPlan",
    "TimeMap",
    "Upsample",
    "build_plan",
    "map_time",
]

TimeMap = Literal["raise", "vp", "lower", "none"]
MAX_FRAMES = 10_000
"""Largest number of frames in a video."""
_DEFAULT_CROSSING = Crossing()


@dataclass(frozen=True)
class StepPlan:
    """A cascade as data.

    Attributes:
        stages: the resolutions R_1 < ... < R_K; the last one is the teacher's.
        steps: the student's steps, from pure noise to the cleanest time.
        crossing: how states move between steps when sampling.
        training_crossing: the same for the roll-outs of training.
        time_map: the resolution shift (Eq. 2) by which the model times were made. It is a record: nothing recomputes
            the times.
        thresholds: the logSNR thresholds Lambda_1 < ... < Lambda_{K-1} between the stages, also a record.
        frames: number of frames of a video, the same at every stage; 1 for images.

    Raises:
        RMDError: the values do not form a valid cascade.
    """

    __pydantic_config__ = STRICT

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
        check_stages(self.stages)
        check_thresholds(self.thresholds, len(self.stages))
        one_of("time map", self.time_map, get_args(TimeMap))
        check_steps(self.steps, len(self.stages))
        if not 1 <= integer("frames", self.frames) <= MAX_FRAMES:
            raise RMDError(f"a sample has 1 to {MAX_FRAMES} frames, got {shown(self.frames)}")
        if self.match_side is not None:
            check_match_side(self.match_side, self.stages[-1])

    @property
    def match_stage(self) -> Stage:
        """The resolution at which samples are compared, and the picture size on which networks are conditioned.

        This is the last stage, unless `match_side` gives a larger resolution.
        """
        return self.stages[-1] if self.match_side is None else Stage(len(self.stages), *self.match_side)

    def stage_of(self, step: Step) -> Stage:
        """Return the stage at which a step of this plan runs."""
        return self.stages[step.stage - 1]

    def ends_stage(self, step: Step) -> bool:
        """Return whether a step is the last one of its stage."""
        return step.index == len(self.steps) or self.steps[step.index].stage != step.stage

    def relative_cost(self, stage: Stage) -> float:
        """Return the area of a stage divided by that of the last stage, in (0, 1].

        This is the relative cost of one step where cost is proportional to the number of pixels.
        """
        last = self.stages[-1]
        return stage.height * stage.width / (last.height * last.width)

    def resized(self, height: int, width: int, multiple: int) -> StepPlan:
        """Return the same plan for another final size; the times stay as they are.

        Args:
            height, width: new sides of the last stage in pixels. The sides of the other stages keep their ratios to
                these, rounded to a multiple of `multiple` (and at least one).
            multiple: number of pixels by which all sides must be divisible.

        Raises:
            RMDError: the final size is not divisible by `multiple`, or is so small that two stages would coincide.
        """
        check_divisible(height, width, multiple, "the final size")
        last = self.stages[-1]

        def side(of: Stage) -> tuple[int, int]:
            return scaled(of.height, height, last.height, multiple), scaled(of.width, width, last.width, multiple)

        stages = tuple(Stage(stage.index, *side(stage)) for stage in self.stages)
        for lower, upper in pairwise(stages):
            if (lower.height, lower.width) == (upper.height, upper.width):
                raise RMDError(
                    f"a final size of {height}x{width} is too small for this plan: stages {lower.index} and "
                    f"{upper.index} would both be {upper.size} in multiples of {multiple}; use a larger size"
                )
        match_side = None if self.match_side is None else side(self.match_stage)
        return replace(self, stages=stages, match_side=match_side)

    def warnings(self) -> list[str]:
        """Return one sentence for each setting that is allowed but known to reduce quality."""
        sampled, trained = self.crossing, self.training_crossing
        if len(self.stages) == 1:
            return []
        sentences = []
        if sampled.rule != trained.rule:
            sentences.append(f"sampling uses the noise rule {sampled.rule!r}, but training uses {trained.rule!r}")
        elif sampled.rule != "block" and sampled.beta != trained.beta:
            sentences.append(
                f"sampling uses {sampled.rule} noise with beta {sampled.beta:g}, but training uses beta "
                f"{trained.beta:g}: the step after a crossing sees noise that it was not trained on, which can "
                f"leave blotches; sample with the training beta, or train with the noise rule 'block'"
            )
        if sampled.upsample != trained.upsample:
            sentences.append(f"sampling uses {sampled.upsample} upsampling, but training uses {trained.upsample}")
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values; a logSNR of -inf, which JSON cannot hold, becomes None."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StepPlan:
        """Read a plan from the values that `to_dict` returns.

        Raises:
            RMDError: a key is unknown or missing, a value has the wrong type, or the plan is not a valid cascade.
        """
        return cls.from_json(to_json(data))

    def to_json(self) -> str:
        """Return the plan as strict JSON text; floats keep every digit."""
        return _adapter().dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> StepPlan:
        """Read a plan from the text that `to_json` returns.

        Raises:
            RMDError: the text is not JSON, or not a valid plan (see `from_dict`).
        """
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
    sides: Sequence[tuple[int, int]],
    steps: int | None = None,
    times: Sequence[float] = (),
    thresholds: Sequence[float] = (),
    split: Sequence[int] = (),
    time_map: TimeMap = "raise",
    crossing: Crossing = _DEFAULT_CROSSING,
    training_crossing: Crossing | None = None,
    grid_end: float = 0.0,
    multiple: int = 1,
    frames: int = 1,
    match_side: tuple[int, int] | None = None,
) -> StepPlan:
    """Divide a teacher's schedule into the stages of a cascade (Sec. 3.1, "Trajectory division").

    Step i is in stage k if Lambda_{k-1} < logsnr(t_i) <= Lambda_k; the first, from pure noise, is in stage 1.

    Args:
        schedule: the teacher's noise schedule.
        sides: (height, width) of each stage in pixels, increasing; the last is the teacher's.
        steps: number of student steps N, at least one for each stage, at uniform times.
        times: teacher times of the steps, from 1000 (pure noise) down to above 0, in place of `steps`.
        thresholds: the logSNR thresholds Lambda between the stages, strictly increasing.
        split: number of steps in each stage, in place of `thresholds`.
        time_map: the resolution shift of the steps below the final resolution; see `map_time`.
        crossing, training_crossing: how states move between steps, in sampling and (the same by default) in training.
        grid_end: exclusive end of the uniform times, in [0, 1), as a fraction of the scheduler's time.
        multiple: number of pixels by which all sides must be divisible.
        frames, match_side: as in `StepPlan`.

    Raises:
        RMDError: the settings do not make a cascade; for example, a stage gets no step.
    """
    stages = _stages(sides, multiple, match_side)
    schedule = schedule.for_size(stages[-1].height, stages[-1].width, frames)
    chosen = _times(schedule, steps, times, grid_end, len(stages))
    limits = _limits(schedule, chosen, thresholds, split, len(stages))
    return StepPlan(
        stages=stages,
        steps=_divide(schedule, chosen, stages, limits, split, time_map),
        crossing=crossing,
        training_crossing=crossing if training_crossing is None else training_crossing,
        time_map=time_map,
        thresholds=limits,
        frames=frames,
        match_side=match_side,
    )


def map_time(schedule: NoiseSchedule, t: float, ratio: float, time_map: TimeMap) -> float:
    """Return the model time of a teacher time at a lower resolution: the resolution shift (Eq. 2).

    With s = t / 1000 and r = `ratio`, the maps are:

    * "raise" (the paper, Tab. 6): r s / (1 + (r - 1) s), the rectified-flow form of Eq. 2 for every schedule;
    * "vp": the time at which the schedule itself has the logSNR logsnr(t) - 2 log r;
    * "lower": s / (r - (r - 1) s), the inverse of "raise". It is the noise level that remains in the state if
      blocks of r x r latent pixels are averaged;
    * "none": t itself.

    Args:
        schedule: the teacher's noise schedule; only "vp" uses it.
        t: teacher time, above 0 and up to 1000.
        ratio: side of the final resolution divided by that of the step's, at least 1.
        time_map: name of the map.

    Returns:
        The model time, above 0 and up to 1000. It is t at a ratio of 1.

    Raises:
        RMDError: the map is unknown, or `ratio` is below 1 or not finite.
    """
    one_of("time map", time_map, get_args(TimeMap))
    if not (math.isfinite(ratio) and ratio >= 1.0):
        raise RMDError(f"the ratio of the final side to the stage's must be at least 1, got {ratio}")
    if ratio == 1.0 or time_map == "none":
        return t
    if time_map == "vp":
        return float(schedule.time(schedule.logsnr(t) - 2.0 * math.log(ratio)))
    # The other two are flow shifts: "raise" by r, and its inverse by 1 / r.
    return min(shift_time(t, ratio if time_map == "raise" else 1.0 / ratio), MAX_TIME)


def _times(
    schedule: NoiseSchedule, steps: int | None, times: Sequence[float], grid_end: float, stages: int
) -> tuple[float, ...]:
    """Return the teacher times of the steps: those that are given, or else uniform ones."""
    if times:
        chosen = check_times(times)
        if steps is not None and steps != len(chosen):
            raise RMDError(f"{len(chosen)} times are given for {steps} steps: leave out the number of steps")
        steps = len(chosen)
    elif steps is None:
        raise RMDError("a plan needs the number of its steps, or their times")
    if integer("steps", steps) < stages:
        raise RMDError(f"{needs(stages, 'stage', 'at least', stages, 'step')}, got {steps}")
    return chosen if times else schedule.grid(steps, grid_end)


def _limits(
    schedule: NoiseSchedule, times: Sequence[float], thresholds: Sequence[float], split: Sequence[int], stages: int
) -> tuple[float, ...]:
    """Return the thresholds between the stages: those that are given, or else those that make the split."""
    if split:
        check_split(split, len(times), stages)
        thresholds = thresholds_between([float(schedule.logsnr(t)) for t in times], split)
    limits = tuple(finite("a threshold", value) for value in thresholds)
    check_thresholds(limits, stages)
    return limits


def _divide(
    schedule: NoiseSchedule,
    times: Sequence[float],
    stages: Sequence[Stage],
    thresholds: Sequence[float],
    split: Sequence[int],
    time_map: TimeMap,
) -> tuple[Step, ...]:
    """Assign the teacher times to the stages and map them to model times."""
    logsnrs = [float(schedule.logsnr(t)) for t in times]
    owners = [k for k, count in enumerate(split, start=1) for _ in range(count)]
    if not split:
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


def _check_every_stage_has_a_step(
    owners: Sequence[int], stages: Sequence[Stage], thresholds: Sequence[float], logsnrs: Sequence[float]
) -> None:
    for stage in stages:
        if stage.index not in owners:
            low = -math.inf if stage.index == 1 else thresholds[stage.index - 2]
            high = math.inf if stage.index == len(stages) else thresholds[stage.index - 1]
            raise RMDError(
                f"stage {stage.index} ({stage.size}) gets no step: none has a logSNR above {low:g} and up to "
                f"{high:g} (the steps have {numbers(logsnrs)}); move a threshold or use more steps"
            )


def _stages(
    sides: Sequence[Sequence[int]], multiple: int, match_side: tuple[int, int] | None
) -> tuple[Stage, ...]:  # fmt: skip
    """Return the stages of these sides.

    Raises:
        RMDError: the sides do not increase, or one of them or of the matching is not divisible by `multiple`.
    """
    for index, pair in enumerate(sides, start=1):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise RMDError(f"stage {index} needs (height, width) in pixels, got {shown(pair)}")
    stages = tuple(Stage(i, integer("a height", h), integer("a width", w)) for i, (h, w) in enumerate(sides, start=1))
    check_stages(stages)
    for stage in stages:
        check_divisible(stage.height, stage.width, multiple, f"stage {stage.index}")
    if match_side is not None:
        check_divisible(*match_side, multiple, "the side of the matching")
    return stages
