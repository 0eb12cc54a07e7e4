"""The verdict of `rmd probe`: how far a teacher's low resolution can be trusted, what that speaks for, what it costs.

The thresholds are stated here, and on the page beside every number that is compared with them. Those of the spectra
were set after looking at one teacher, `scenes`, at 32 px (right in layout) and at 16 px (wrong), so that the two get
different verdicts. Students that were trained with either matching then showed that what decides is whether the steps
after the crossing repair the low resolution (docs/findings.md): where a judge can tell, nothing else counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Literal

import torch

from rmd.common.typed import Strict
from rmd.core.fit import missing_bits
from rmd.core.metrics import Interval
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Stage, StepPlan, build_plan
from rmd.core.times import flow_sigma, logsnr_at
from rmd.methods.base import draw_shares
from rmd.recipes.methods import MethodConfig
from rmd.worlds.base import Measured

Matching = Literal["own", "mixed", "teacher"]
TRUST: tuple[Matching, ...] = ("own", "mixed", "teacher")
"""The matchings that suit a low resolution, from one that can be trusted to one that is wrong."""

SIGMAS = tuple(step / 20 for step in range(10, 19))
"""Crossings that are weighed, as sigma of a rectified flow, from clean to noisy."""
FEW_BITS = 0.005
"""A crossing is early enough if it leaves at most this many bits per latent value bare (`rmd.core.fit`)."""
LOSS = (0.15, 0.3)
"""Share of the samples that may be wrong because of the low resolution alone: trusted up to, wrong above."""
UNSEEN = (0.3, 0.5)
"""Share of the attributes that may be right in pooled pictures and wrong in low-resolution ones: as for `LOSS`."""
HELD = 0.9
"""An attribute counts for `UNSEEN` if pooled pictures show it rightly in this share of the samples."""
FACTOR = (1.6, 2.5)
"""Factor by which the power of a ring of the coarser half may be too large or too small: trusted up to, wrong above."""
COHERENCE = 0.7
"""Smallest mean coherence of the coarser half of the rings that is trusted."""


class Criterion(Strict):
    """One comparison with a threshold, and the matching that it speaks for."""

    name: str
    measured: str
    trusted: str
    """The condition of trust, in words."""
    wrong: str
    """The condition under which the low resolution counts as wrong, in words."""
    speaks_for: Matching
    decides: bool
    """The verdict follows from the criteria for which this is true; the others are printed as reasons for doubt."""


def criteria(
    power: Sequence[Interval], coherence: Sequence[Interval], loss: Measured | None = None, unseen: float | None = None
) -> list[Criterion]:
    """Compare a low resolution with the thresholds.

    With a judge, finished samples decide alone: they show what the low resolution costs a cascade that crosses where
    the probe recommends. Without one, the spectra decide. Of these, only the coarser half of the rings counts: finer
    ones are drawn anew after the crossing.

    Args:
        power: power of the low-resolution latents over that of the full ones, by ring.
        coherence: coherence of the two, by ring.
        loss: share of right samples that is lost if a low-resolution sample in place of the low band of a full one is
            taken over the crossing and finished by the teacher; None without a judge.
        unseen: share of the attributes that low-resolution pictures get wrong and pooled ones do not
            (`unseen_attributes`); None if that is not known.
    """
    half = math.ceil(len(power) / 2)
    worst = max((each.value for each in power[:half]), key=_factor)
    level = mean(each.value for each in coherence[:half])
    rows = [
        Criterion(
            name="power of the low resolution over the full one: worst ring of the coarser half",
            measured=f"{worst:.2f}",
            trusted=f"within a factor of {FACTOR[0]:g}",
            wrong=f"beyond a factor of {FACTOR[1]:g}",
            speaks_for=_between(_factor(worst), FACTOR),
            decides=loss is None,
        ),
        Criterion(
            name="mean coherence with the full resolution: rings of the coarser half",
            measured=f"{level:.2f}",
            trusted=f"at least {COHERENCE:g}",
            wrong="never by itself: another picture from the same noise may be as good",
            speaks_for="own" if level >= COHERENCE else "mixed",
            decides=loss is None,
        ),
    ]
    if unseen is not None:
        text = f"{100 * unseen:.0f}%"
        name = "attributes that are right in pooled pictures and wrong at low resolution"
        rows.insert(0, _share(name, text, unseen, UNSEEN, decides=False))
    if loss is not None:
        text = f"{100 * loss.value:.0f}%" + _ends(loss)
        name = "finished samples that are wrong only because of the low resolution"
        rows.insert(0, _share(name, text, loss.value, LOSS, decides=True))
    return rows


def verdict(rows: Iterable[Criterion]) -> Matching:
    """Return the matching that criteria speak for: the most cautious one of those that decide."""
    return least_trusting(row.speaks_for for row in rows if row.decides)


def unseen_attributes(pooled: Mapping[str, float], low: Mapping[str, float]) -> float | None:
    """Return the mean share of attributes that pooled pictures get right and low-resolution pictures do not.

    Args:
        pooled: share of pooled pictures that have each attribute right. Those that fewer than `HELD` of them show are
            too fine for the low resolution, and do not count.
        low: the same for low-resolution pictures.

    Returns:
        The mean; None if no attribute counts.
    """
    losses = [share - low[name] for name, share in pooled.items() if share >= HELD and name in low]
    return mean(losses) if losses else None


def undecided(loss: Measured) -> bool:
    """Return whether the two ends of a loss's interval speak for different matchings."""
    ends = loss.interval
    return ends is not None and len({_between(end, LOSS) for end in ends}) > 1


def least_trusting(matchings: Iterable[Matching]) -> Matching:
    """Return the most cautious of several matchings."""
    return max(matchings, key=TRUST.index)


def bits_by_sigma(
    low: Stage, final: Stage, schedule: NoiseSchedule, power: torch.Tensor, sigmas: Sequence[float] = SIGMAS
) -> list[tuple[float, float]]:
    """Return the bits per latent value that crossing at each sigma leaves bare (`rmd.core.fit.missing_bits`).

    Args:
        low, final: the stages before and after the crossing.
        schedule: the teacher's noise schedule.
        power: power spectrum of the teacher's clean latents at the final size.
        sigmas: noise levels, as sigma of a rectified flow.
    """
    sides = [(stage.height, stage.width) for stage in (low, final)]
    rows = []
    for sigma in sigmas:
        times = (1000.0, min(float(schedule.time(logsnr_at(sigma))), 999.0))
        plan = build_plan(schedule, sides=sides, times=times, split=(1, 1))
        rows.append((sigma, missing_bits(plan, schedule, power)))
    return rows


def early_enough(bits: Sequence[tuple[float, float]]) -> float:
    """Return the cleanest sigma at which at most `FEW_BITS` are left bare; the noisiest one if there is none."""
    return next((sigma for sigma, bare in bits if bare <= FEW_BITS), bits[-1][0])


def falling(sigmas: Sequence[float], gap: float = 0.05) -> list[float]:
    """Return crossings that fall from stage to stage by at least `gap`, by moving later ones towards clean."""
    result: list[float] = []
    for sigma in sigmas:
        result.append(sigma if not result else round(min(sigma, result[-1] - gap), 4))
    return result


def crossing_sigmas(plan: StepPlan) -> list[float]:
    """Return the noise level of the first step of every stage but the first, as sigma of a rectified flow."""
    firsts = [next(step for step in plan.steps if step.stage == stage.index) for stage in plan.stages[1:]]
    return [flow_sigma(step.logsnr) for step in firsts]


def sampling_cost(plan: StepPlan) -> float:
    """Return the cost of a sample in full-resolution steps, by area."""
    return sum(plan.relative_cost(plan.stage_of(step)) for step in plan.steps)


def training_cost(plan: StepPlan, config: MethodConfig, matching: Matching, *, own_share: float = 0.5) -> float:
    """Return the cost of an iteration in network evaluations at the final resolution, by area.

    It counts the roll-out and the trained step at their own resolutions, and the teacher, the fake score and its
    updates at the resolution of the matching; each branch of guidance is one evaluation.

    Args:
        plan: the cascade.
        config: the method's settings.
        matching: the resolution at which the scores read samples.
        own_share: with matching "mixed", the share of iterations at the step's own resolution.
    """
    final = plan.match_stage.height * plan.match_stage.width
    areas = [plan.stage_of(step).height * plan.stage_of(step).width / final for step in plan.steps]
    share = {"own": 1.0, "teacher": 0.0, "mixed": own_share}[matching]
    scores = (2 if config.guidance != 1.0 else 1) + 1 + config.fake_updates
    costs = [sum(areas[: i + 1]) + (share * area + 1.0 - share) * scores for i, area in enumerate(areas)]
    return sum(part * cost for part, cost in zip(draw_shares(plan, config), costs, strict=True))


def _share(name: str, measured: str, share: float, limits: tuple[float, float], *, decides: bool) -> Criterion:
    return Criterion(
        name=name, measured=measured, trusted=f"at most {100 * limits[0]:g}%", wrong=f"more than {100 * limits[1]:g}%",
        speaks_for=_between(share, limits), decides=decides,
    )  # fmt: skip


def _factor(ratio: float) -> float:
    """Return by which factor a ratio is off 1, in either direction."""
    return max(ratio, 1.0 / max(ratio, 1e-9))


def _between(value: float, limits: tuple[float, float]) -> Matching:
    return "own" if value <= limits[0] else "mixed" if value <= limits[1] else "teacher"


def _ends(loss: Measured) -> str:
    ends = loss.interval
    return "" if ends is None else f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
