"""Plans of students: read from `rmd_config.json` or made of a few numbers, and fitted to the size of a picture.

A plan is a list of steps, each with its stage and its time. The stages have growing resolutions. Times are in the unit
of RMD, 0 (clean) to 1000 (pure noise). This module needs PyTorch only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG_NAME = "rmd_config.json"
UPSAMPLES = ("bilinear", "nearest", "bicubic", "dct", "taps")
RULES = ("plain", "corrected", "block")
TOLD = ("final", "stage")
LARGEST_CONFIG = 1 << 20
"""Largest size of a config in bytes; real ones have a few thousand."""
LARGEST_SIGMA = 1e6
"""Noise level, in multiples of the signal, in whose place infinity cannot be told in float32."""


class PlanError(ValueError):
    """Reports in one sentence why a plan or a student cannot be used."""


@dataclass(frozen=True)
class Crossing:
    """The rule by which a state moves on to the next step.

    Attributes:
        upsample: interpolation to a higher resolution.
        rule: how predicted and fresh noise are mixed there.
        beta: weight of the predicted noise there, from 0 (fresh noise only) to 1 (predicted noise only).
        within: "predicted" or "fresh" noise for a step that stays at its resolution.
        eta: with "predicted", the weight of the predicted noise at its own resolution; the rest is fresh.
        taps: the filter of `upsample` "taps".
    """

    upsample: str = "bilinear"
    rule: str = "plain"
    beta: float = 1.0
    within: str = "predicted"
    eta: float = 1.0
    taps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _one_of("upsample", self.upsample, UPSAMPLES)
        _one_of("rule", self.rule, RULES)
        _one_of("within", self.within, ("predicted", "fresh"))
        for name, value in ("beta", self.beta), ("eta", self.eta):
            if not 0.0 <= value <= 1.0:
                raise PlanError(f"{name} is a number from 0 to 1, not {value:g}")
        if (self.upsample == "taps") != bool(self.taps):
            raise PlanError("upsampling by taps needs the taps, and no other upsampling has any")


@dataclass(frozen=True)
class Plan:
    """The steps of a student.

    Attributes:
        stages: (height, width) of each stage, in pixels or relative to the last stage's.
        steps: (stage, model time) of each step; stages are counted from 0.
        crossing: how states move between steps.
        original, target: the size that SDXL is told at a stage: that of the "final" picture or that of the "stage".
        match: (height, width) of the "final" picture if it is larger than the last stage; None otherwise.
        family: "sdxl", "sd3" or "wan"; empty if the plan is of no certain model.
    """

    stages: tuple[tuple[float, float], ...]
    steps: tuple[tuple[int, float], ...]
    crossing: Crossing = field(default_factory=Crossing)
    original: str = "final"
    target: str = "stage"
    match: tuple[float, float] | None = None
    family: str = ""

    def __post_init__(self) -> None:
        for (height, width), (next_height, next_width) in pairwise(self.stages):
            if height > next_height or width > next_width or (height, width) == (next_height, next_width):
                raise PlanError("each stage of a plan must be larger than the one before")
        if not self.stages or not all(side > 0 and math.isfinite(side) for stage in self.stages for side in stage):
            raise PlanError("a plan needs at least one stage, and sides above 0")
        owners = [stage for stage, _ in self.steps]
        if owners != sorted(owners) or set(owners) != set(range(len(self.stages))):
            raise PlanError("the steps of a plan must run through its stages in order, with at least one step in each")
        if not all(0 < time <= 1000 for _, time in self.steps):
            raise PlanError("the times of a plan are above 0 and up to 1000")
        if self.steps[0][1] != 1000:
            raise PlanError(f"the first time of a plan is 1000, which is pure noise, not {self.steps[0][1]:g}")
        for (stage, time), (next_stage, next_time) in pairwise(self.steps):
            if stage == next_stage and next_time > time:
                raise PlanError(f"the times of a stage must fall, but {next_time:g} follows {time:g}")
        _one_of("original", self.original, TOLD)
        _one_of("target", self.target, TOLD)

    def with_noise(self, rule: str, beta: float) -> Plan:
        """Return the plan with another noise rule for its crossings."""
        return replace(self, crossing=replace(self.crossing, rule=rule, beta=beta))

    def fitted(self, height: int, width: int, multiple: int) -> Plan:
        """Return the plan with all sides in pixels, for a picture of a size.

        Args:
            height, width: sides of the last stage. Those of the others keep their ratios to them.
            multiple: number of pixels by which all sides are divisible.

        Raises:
            PlanError: the size is not divisible by `multiple`, or so small that two stages would coincide.
        """
        last = self.stages[-1]
        if (height, width) == last:
            return self
        if height % multiple or width % multiple:
            near = "x".join(str(_scaled(side, 1, 1, multiple)) for side in (width, height))
            raise PlanError(f"the sides of {width}x{height} are not divisible by {multiple}: use {near}")

        def sized(side: tuple[float, float]) -> tuple[int, int]:
            return _scaled(side[0], height, last[0], multiple), _scaled(side[1], width, last[1], multiple)

        stages = tuple(map(sized, self.stages))
        if len(set(stages)) < len(stages):
            raise PlanError(
                f"{width}x{height} is too small for this plan, whose stages would be equal: use a larger size"
            )
        return replace(self, stages=stages, match=None if self.match is None else sized(self.match))

    def told(self, stage: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the original size and the target size, as (height, width), that SDXL is told at a stage."""
        size = {"final": self.match or self.stages[-1], "stage": self.stages[stage]}
        return size[self.original], size[self.target]


def read_plan(path: Path) -> Plan:
    """Read the plan of a student.

    Args:
        path: its `rmd_config.json`.

    Raises:
        PlanError: the file is not a student's config, or the student cannot be run by these nodes.
    """
    config = read_config(path)
    try:
        rules, plan = config["conditioning"], config["plan"]
        if rules["pos_rescale"]:
            raise PlanError(f"{path.name}: the student rescales positions, for which RMD itself is needed")
        crossing = plan["crossing"]
        match = plan.get("match_side")
        return Plan(
            stages=tuple((int(stage["height"]), int(stage["width"])) for stage in plan["stages"]),
            steps=tuple((int(step["stage"]) - 1, float(step["model_time"])) for step in plan["steps"]),
            crossing=Crossing(**{**crossing, "taps": tuple(map(float, crossing.get("taps", ())))}),
            original=rules["original"],
            target=rules["target"],
            match=None if match is None else (int(match[0]), int(match[1])),
            family=str(config["family"]),
        )
    except PlanError:
        raise
    except KeyError as error:
        raise PlanError(f"{path.name} is not a student's config: it lacks {error}") from error
    except (TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise PlanError(f"{path.name} is not a student's config: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the values of a student's `rmd_config.json`; raise PlanError if it is none."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise PlanError(f"{path.name} is larger than a student's config: choose another one")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, PlanError) else PlanError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise PlanError(f"{path.name} is not a student's config: it holds no object")
    if values.get("version") != 1:
        raise PlanError(f"{path.name} has version {values.get('version')!r}, not 1: update the nodes")
    return values


def plan_of_numbers(
    scales: str, steps: str, times: str, crossing: Crossing, original: str = "final", target: str = "stage"
) -> Plan:
    """Return a plan from the texts of widgets.

    Args:
        scales: sides of the stages relative to the final ones, such as "0.5, 1"; the last is 1.
        steps: number of steps of each stage, such as "2, 2".
        times: times of all steps, such as "1000, 870, 745, 372".
        crossing, original, target: as in `Plan`.

    Raises:
        PlanError: a text is not a list of numbers, or they do not make a plan.
    """
    sides, counts, moments = (_numbers(*each) for each in (("scales", scales), ("steps", steps), ("times", times)))
    if len(sides) != len(counts) or any(count < 1 or count != round(count) for count in counts):
        raise PlanError(f"steps needs one whole number for each of the {len(sides)} scales, got {steps}")
    if sides[-1] != 1:
        raise PlanError(f"the last of the scales is 1, not {sides[-1]:g}")
    owners = [stage for stage, count in enumerate(counts) for _ in range(int(count))]
    if len(owners) != len(moments):
        raise PlanError(f"times needs one number for each of the {len(owners)} steps, got {len(moments)}")
    stages = tuple((side, side) for side in sides)
    return Plan(stages, tuple(zip(owners, moments, strict=True)), crossing, original, target)


def levels(
    plan: Plan, table: Tensor | None, *, steps: int = 1000, ends_in_noise: bool = False
) -> list[tuple[float, float]]:
    """Return (sigma, timestep) of each step: the noise level as ComfyUI counts it, and the network's own time.

    Args:
        table: the noise levels sigma / alpha of a variance-preserving model, in rising order; None for flows, whose
            level is the share of the noise.
        steps: number of time steps that a flow was trained with.
        ends_in_noise: whether the last level of the table stands for pure noise.
    """
    if table is None:
        return [(time / 1000, time / 1000 * steps) for _, time in plan.steps]
    alphas = (1 + table.double().cpu() ** 2).rsqrt()
    if ends_in_noise:
        alphas[-1] = 0.0
    return [_level(time, alphas) for _, time in plan.steps]


def _level(time: float, alphas: Tensor) -> tuple[float, float]:
    """Return sigma / alpha and the timestep at a time; between the table's entries, alpha is linear."""
    count = len(alphas)
    place = min(max(time * count / 1000, 1.0), float(count))
    below = min(math.floor(place), count - 1)
    alpha = float(torch.lerp(alphas[below - 1], alphas[below], place - below))
    sigma = math.sqrt((1 - alpha) * (1 + alpha))
    return min(sigma / max(alpha, 1e-12), LARGEST_SIGMA), max(time * count / 1000 - 1.0, 0.0)


def _scaled(side: float, final: float, old_final: float, multiple: int) -> int:
    """Return side * final / old_final, rounded to the nearest multiple (halves up) but at least one multiple."""
    return max(1, math.floor(side * final / (old_final * multiple) + 0.5 + 1e-9)) * multiple


def _numbers(name: str, text: str) -> list[float]:
    """Return the numbers of a text, which are divided by commas or spaces."""
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise PlanError(f"{name} is a list of numbers divided by commas, not {text!r}") from error
    if not values or not all(map(math.isfinite, values)):
        raise PlanError(f"{name} is a list of numbers divided by commas, not {text!r}")
    return values


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PlanError(f"{name} is one of {', '.join(known)}, not {value!r}")


def _refuse(constant: str) -> None:
    raise PlanError(f"a config has no {constant}")
