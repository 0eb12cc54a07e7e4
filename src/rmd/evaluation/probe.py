"""Probes a teacher: samples it at every resolution of a plan from the same prompts and noise, and compares structure.

The low resolution is compared with what it could hold of the full one: latents with their low band, pictures after
pooling. Detail that is too fine for it is no fault of it. Where a judge is at hand, a further test asks what matters to
a cascade. The teacher finishes two states at the crossing, one from its low-resolution sample and one from the low band
of its full-resolution sample, and only the difference between the two counts against the low resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.pictures import to_uint8
from rmd.common.typed import Strict
from rmd.core.agreement import (
    coherence,
    low_band,
    picture_difference,
    power_ratio,
    ring_edges,
)
from rmd.core.fit import power_spectrum
from rmd.core.metrics import Z95, wilson
from rmd.core.plan import Stage, StepPlan
from rmd.core.stages import Upsample
from rmd.core.taps import fit_taps, tap_count, upsampling_error
from rmd.evaluation.metrics import METRICS, metrics_of
from rmd.evaluation.paired import PairedTeacher, finishing_plan, measured, paired_teacher, pooled
from rmd.evaluation.protocol import full_plan
from rmd.evaluation.trust import (
    SIGMAS,
    Criterion,
    Matching,
    bits_by_sigma,
    criteria,
    crossing_sigmas,
    early_enough,
    falling,
    least_trusting,
    sampling_cost,
    training_cost,
    unseen_attributes,
    verdict,
)
from rmd.models.base import Backbone
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress
from rmd.worlds.base import Assessment, Measured

SHOWN = 6
"""Largest number of prompts whose pictures are kept for the page."""


class Ring(Strict):
    """One ring of spatial frequencies of a low resolution."""

    low: float
    high: float
    """Its lower and upper end, as fractions of the highest frequency of the low resolution."""
    power: Measured
    """Power of the low-resolution latents over that of the full ones' low band."""
    recoded: Measured | None
    """The same over that of pooled and encoded full-resolution pictures; None for clips."""
    coherence: Measured
    """Coherence of the low-resolution latents with the full ones' low band."""


class Reading(Strict):
    """The judge's metrics of one kind of pictures, such as the teacher's low-resolution samples."""

    label: str
    measures: dict[str, Measured]
    distance: Measured | None = None
    """Kernel distance to the pictures that these are compared with."""


class StageProbe(Strict):
    """A lower resolution of the plan, compared with the full one."""

    size: str
    rings: list[Ring]
    difference: Measured
    """Mean square between the pooled and the low-resolution picture of a pair, over that between others."""
    readings: list[Reading]
    loss: Measured | None
    """Share of right samples that is lost because the state at the crossing comes from the low resolution."""
    upsamplers: dict[str, float]
    """Error of enlarging encoded pictures, over the variance of the full-resolution latents."""
    taps: tuple[float, ...]
    bits: list[tuple[float, float]]
    """Bits per latent value that are left bare, by sigma of the crossing."""
    sigma: float
    """The crossing that these bits speak for."""
    criteria: list[Criterion]
    matching: Matching


class Probe(Strict):
    """The result of probing a teacher."""

    recipe: str
    teacher: str
    size: str
    samples: int
    seed: int
    steps: int
    guidance: float
    judged: bool
    stages: list[StageProbe]
    matching: Matching
    sigmas: list[float]
    """The crossings that are recommended, one for every stage of the plan but its first."""
    method: str
    """Name of the recipe's method."""
    sides: list[str]
    """Sizes of the plan's stages."""
    split: list[int]
    """Steps of each of them."""
    now: list[tuple[float, float]]
    """The recipe's own crossings: sigma, and the bits that are left bare there."""
    sampling: tuple[float, int]
    """Cost of a sample in full-resolution steps by area, and the number of its steps."""
    training: dict[Matching, float]
    """Cost of an iteration by matching, in evaluations at the full resolution by area."""


@dataclass(frozen=True)
class ProbeResult:
    """A probe, and pictures of its first prompts.

    Attributes:
        pictures: by size of the low resolution, labelled uint8 pictures (n, 3, H, W) or clips (n, 3, T, H, W).
    """

    probe: Probe
    prompts: Sequence[str]
    pictures: Mapping[str, Mapping[str, Tensor]]


def run_probe(
    backbone: Backbone, recipe: Recipe, *, samples: int, steps: int, batch: int, progress: Progress
) -> ProbeResult:
    """Sample a recipe's teacher at all resolutions of its plan, and compare them.

    Args:
        backbone: the teacher, on the device that computes.
        recipe: the recipe, with its noise schedule resolved.
        samples: number of samples at each resolution; with a judge, two for each caption.
        steps: the teacher's sampling steps.
        batch: number of samples that are made at once.
        progress: called with the name of a piece of work, how much of it is done, and its total.

    Raises:
        RMDError: the plan has no lower resolution, the prompts or the judge cannot be loaded, or a sample is not
            finite.
    """
    plan = recipe.build_plan()
    lower = lower_stages(plan)
    teacher = paired_teacher(
        backbone, recipe, plan.match_stage, samples=samples, steps=steps, batch=batch, progress=progress
    )
    whole = full_plan(backbone, teacher.final, steps, frames=recipe.frames)
    latents = teacher.latents(whole, f"the teacher at {teacher.final.size}")
    images, power = teacher.pictures(latents), power_spectrum(latents)
    seen = None if teacher.judge is None else teacher.assess(images)
    shown = slice(0, SHOWN * teacher.per_prompt, teacher.per_prompt)
    stages, pictures = [], {}
    for stage in lower:
        probed, kinds = _probe_stage(teacher, stage, latents, images, power, seen)
        stages.append(probed)
        pictures[stage.size] = {label: to_uint8(each[shown]) for label, each in kinds.items()}
    probe = _summary(teacher, plan, stages, power)
    return ProbeResult(probe, teacher.prompts[shown], pictures)


def lower_stages(plan: StepPlan) -> list[Stage]:
    """Return the stages of a plan below the resolution at which samples are matched; raise RMDError if there is none"""
    lower = [stage for stage in plan.stages if stage.size != plan.match_stage.size]
    if not lower:
        raise RMDError(
            f"the plan has no resolution below {plan.match_stage.size}, so there is nothing to probe: give lower ones, "
            "too, with --sides"
        )
    return lower


def _probe_stage(
    teacher: PairedTeacher,
    stage: Stage,
    full: Tensor,
    images: Tensor,
    power: Tensor,
    seen: Assessment | None,
) -> tuple[StageProbe, dict[str, Tensor]]:
    """Compare a lower resolution with the full one; return it with its pictures by label."""
    schedule, runs = teacher.backbone.schedule, teacher.per_prompt
    plan = full_plan(teacher.backbone, stage, teacher.steps, frames=teacher.recipe.frames)
    low = teacher.latents(plan, f"the teacher at {stage.size}")
    small, drawn = pooled(images, (stage.height, stage.width)), teacher.pictures(low)
    band = low_band(full, (low.shape[-2], low.shape[-1]))
    recoded = None if teacher.backbone.moving else _encoded(teacher, small)
    bits = bits_by_sigma(stage, teacher.final, schedule, power, SIGMAS)
    sigma = early_enough(bits)
    ratios, agreement = (measure(low, band, per_prompt=runs) for measure in (power_ratio, coherence))
    recoded_ratios = [None] * len(ratios) if recoded is None else power_ratio(low, recoded, per_prompt=runs)
    readings, loss, finished = _readings(teacher, stage, seen, (small, drawn), (low, band), sigma)
    taps, upsamplers = _upsamplers(recoded, full)
    rows = criteria(ratios, agreement, loss, _unseen(readings))
    edges = ring_edges((low.shape[-2], low.shape[-1]))
    probed = StageProbe(
        size=stage.size,
        rings=[
            Ring(low=a, high=b, power=measured(p), recoded=None if r is None else measured(r), coherence=measured(c))
            for (a, b), p, r, c in zip(edges, ratios, recoded_ratios, agreement, strict=True)
        ],
        difference=measured(picture_difference(drawn, small, per_prompt=runs)),
        readings=readings, loss=loss, upsamplers=upsamplers, taps=taps, bits=bits, sigma=sigma, criteria=rows,
        matching=verdict(rows),
    )  # fmt: skip
    kinds = {f"full resolution, {teacher.final.size}": images, f"the same, pooled to {stage.size}": small}
    return probed, {**kinds, f"low resolution, {stage.size}": drawn, **finished}


def _readings(
    teacher: PairedTeacher,
    stage: Stage,
    full: Assessment | None,
    images: tuple[Tensor, Tensor],
    latents: tuple[Tensor, Tensor],
    sigma: float,
) -> tuple[list[Reading], Measured | None, dict[str, Tensor]]:
    """Judge all kinds of pictures; return also the loss, and the pictures of the finished low resolution.

    Args:
        full: the judge's reading of the full resolution; None without a judge.
        images: pooled and low-resolution pictures.
        latents: low-resolution latents, and the low band of the full ones.
        sigma: noise level from which the latents are finished.
    """
    if full is None:
        return [], None, {}
    plan = finishing_plan(teacher.backbone, stage, teacher.final, sigma, teacher.steps, frames=teacher.recipe.frames)
    control = teacher.pictures(teacher.latents(plan, "finishing the low band", latents[1]))
    finished = teacher.pictures(teacher.latents(plan, "finishing the low resolution", latents[0]))
    seen = [teacher.assess(each) for each in (*images, control, finished)]
    level = f"sigma {sigma:g}"
    rows = [
        _reading(teacher, f"full resolution, {teacher.final.size}", full),
        _reading(teacher, f"the same, pooled to {stage.size}", seen[0], full),
        _reading(teacher, f"low resolution, {stage.size}", seen[1], seen[0]),
        _reading(teacher, f"low band of the full resolution, finished from {level}", seen[2], full),
        _reading(teacher, f"low resolution, finished from {level}", seen[3], full),
    ]
    lost = seen[2].right.double() - seen[3].right.double()
    return rows, _mean_loss(lost.view(-1, teacher.per_prompt)), {f"low resolution, finished from {level}": finished}


def _reading(teacher: PairedTeacher, label: str, seen: Assessment, other: Assessment | None = None) -> Reading:
    """Return the world's metrics of judged pictures, and their distance to others."""
    assert teacher.world is not None
    names = [name for name in metrics_of(teacher.world) if METRICS.get(name).narrow]
    return Reading(
        label=label,
        measures={name: METRICS.get(name).compute(seen) for name in names},
        distance=None if other is None else teacher.distance(seen, other),
    )


def _side(stage: Stage) -> str:
    """Return a stage's size as `plan.sides` takes it: 64, or 480x832."""
    return str(stage.height) if stage.height == stage.width else stage.size


def _unseen(readings: Sequence[Reading]) -> float | None:
    """Return `unseen_attributes` of the readings of pooled and of low-resolution pictures, if the world counts them."""
    seen = [reading.measures["attributes"].parts for reading in readings[1:3] if "attributes" in reading.measures]
    return unseen_attributes(*seen) if len(seen) == 2 else None


def _mean_loss(losses: Tensor) -> Measured:
    """Return the share of samples that is lost, with a normal interval over the prompts.

    The interval reaches at least as far as Wilson's of no loss in as many samples, since few samples can all agree.

    Args:
        losses: (prompts, samples per prompt): 1 lost, 0 the same, -1 gained.
    """
    value, half = float(losses.mean()), Z95 * float(losses.mean(1).std() / len(losses) ** 0.5)
    half = max(half, wilson(0, losses.numel()).high)
    return Measured(value=value, low=value - half, high=value + half)


def _encoded(teacher: PairedTeacher, images: Tensor) -> Tensor:
    device = teacher.backbone.device
    return torch.cat([teacher.backbone.encode_images(each.to(device)).cpu() for each in images.split(teacher.batch)])


def _upsamplers(recoded: Tensor | None, full: Tensor) -> tuple[tuple[float, ...], dict[str, float]]:
    """Return the fitted taps (none if there can be none), and the errors of all kinds of upsampling."""
    if recoded is None:
        return (), {}
    modes: tuple[Upsample, ...] = ("nearest", "bilinear", "bicubic", "dct")
    errors: dict[str, float] = {mode: upsampling_error(recoded, full, mode) for mode in modes}
    if tap_count((recoded.shape[-2], recoded.shape[-1]), (full.shape[-2], full.shape[-1])) is None:
        return (), errors
    taps = tuple(round(tap, 5) for tap in fit_taps(recoded, full))
    return taps, {**errors, "taps": upsampling_error(recoded, full, "taps", taps)}


def _summary(teacher: PairedTeacher, plan: StepPlan, stages: Sequence[StageProbe], power: Tensor) -> Probe:
    """Put the verdicts of all stages together, with what they cost."""
    recipe, schedule = teacher.recipe, teacher.backbone.schedule
    crossed = [s for s in stages if s.size != plan.stages[-1].size]
    now = [
        bits_by_sigma(stage, teacher.final, schedule, power, [sigma])[0]
        for stage, sigma in zip(plan.stages, crossing_sigmas(plan), strict=False)
    ]
    return Probe(
        recipe=recipe.name, teacher=recipe.teacher, size=teacher.final.size, samples=len(teacher.prompts),
        seed=recipe.train.seed, steps=teacher.steps, guidance=recipe.method.guidance,
        judged=teacher.judge is not None, stages=list(stages),
        matching=least_trusting(stage.matching for stage in stages),
        sigmas=falling([stage.sigma for stage in crossed]),
        method=recipe.method.name, sides=[_side(stage) for stage in plan.stages],
        split=[sum(step.stage == stage.index for step in plan.steps) for stage in plan.stages],
        now=now, sampling=(sampling_cost(plan), len(plan.steps)),
        training={each: training_cost(plan, recipe.method, each) for each in ("own", "mixed", "teacher")},
    )  # fmt: skip
