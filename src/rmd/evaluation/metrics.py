"""The registry of metrics: how each is computed from an assessment, and how it is written in tables and on pages.

A new metric is one `Metric`, here or in another package (entry points `rmd.metrics`). Everything that shows numbers
reads this registry, and stored rows are read whether or not they hold a metric that is registered today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from rmd.common.plugins import Registry
from rmd.core.metrics import Interval, diversity, frechet_distance, kernel_distance
from rmd.worlds.base import Assessment, Features, Measured, World

Shown = Literal["percent", "distance", "decimals", "significant"]


def _never(world: World) -> bool:
    return False


@dataclass(frozen=True)
class Metric:
    """A metric of judged samples.

    Attributes:
        name: key in rows and files.
        title: heading in narrow tables.
        heading: heading on the report's page.
        legend: explanation in a few words, printed below narrow tables.
        note: explanation on the report's page.
        direction: whether higher or lower values are better, or neither.
        shown: `percent` of a share; `distance` with decimals by the width of its interval; two `decimals`; or three
            `significant` digits.
        compute: measures an assessment.
        unit: text after the number on the report's page.
        group: metrics of one group share a table on the report's page.
        narrow: whether narrow tables show it.
        interval_in_narrow: whether narrow tables show its interval.
        by_sample: whether it is the share of the samples whose outcomes are stored one by one; then a difference can be
            tested with a single seed.
        margin: size of a difference that does not matter; within it, a comparison may call two rows level. None if the
            metric has no such size.
        claim: the report's first sentences about it, in which {} stands for the value.
        applies: whether a run in a world reports it although the world does not list it; for metrics of other packages.
    """

    name: str
    title: str
    compute: Callable[[Assessment], Measured]
    heading: str = ""
    legend: str = ""
    note: str = ""
    direction: Literal["higher", "lower", "none"] = "none"
    shown: Shown = "significant"
    unit: str = ""
    group: str = ""
    narrow: bool = True
    interval_in_narrow: bool = False
    by_sample: bool = False
    margin: float | None = None
    claim: str = ""
    applies: Callable[[World], bool] = _never


METRICS: Registry[Metric] = Registry(
    "rmd.metrics",
    "metric",
    {
        name: f"rmd.evaluation.metrics:{name.upper()}"
        for name in (
            "attributes", "motion", "speed", "dynamics", "flicker", "kernel_distance", "kernel_distance_to_teacher",
            "change_distance", "frechet_distance", "high_frequency", "diversity", "legibility",
        )
    },
)  # fmt: skip
"""All metrics by name."""


def metric(name: str) -> Metric:
    """Return the metric of a name; for a stored one that is not registered, a plain one that only says its name."""
    if name in METRICS.names():
        return METRICS.get(name)
    return Metric(name, name.replace("_", " "), compute=_counted(name))


def metrics_in(rows: Iterable[Iterable[str]]) -> list[Metric]:
    """Return the metrics that any of several rows has, in the order of their first appearance."""
    return [metric(name) for name in dict.fromkeys(name for row in rows for name in row)]


def metrics_of(world: World) -> tuple[str, ...]:
    """Return the names of the metrics that runs in a world report: its own list, then those that say they apply."""
    others = (name for name in METRICS.names() if name not in world.metrics)
    return (*world.metrics, *(name for name in others if METRICS.get(name).applies(world)))


def part(name: str) -> Metric:
    """Return the metric of one attribute alone: the share of samples that have it right, among those that name it."""
    return Metric(name, name.replace("_", " "), compute=_counted(name), direction="higher", shown="percent")


def _counted(name: str) -> Callable[[Assessment], Measured]:
    """Return a measure that the judge takes itself."""
    return lambda assessment: assessment.counted[name]


def _with_interval(interval: Interval) -> Measured:
    return Measured(value=interval.value, low=interval.low, high=interval.high)


def _to_renders(assessment: Assessment) -> Measured:
    return _distance(assessment.features, assessment.samples_per_prompt)


def _distance(features: Features, samples_per_prompt: int) -> Measured:
    ours, renders = features.scores
    # Rows of one sample, and samples of one prompt, resemble each other and must not be compared with each other.
    runs = (samples_per_prompt * features.rows, features.rows)
    return _with_interval(kernel_distance(ours, renders, per_prompt=runs))


def _to_teacher(assessment: Assessment) -> Measured:
    features = assessment.features
    runs = (assessment.samples_per_prompt * features.rows, features.rows)
    return _with_interval(kernel_distance(features.scores[0], features.teacher_scores, per_prompt=runs))


def _of_changes(assessment: Assessment) -> Measured:
    if assessment.changes is None:
        raise ValueError("pictures have no changes between frames")
    return _distance(assessment.changes, assessment.samples_per_prompt)


def _frechet(assessment: Assessment) -> Measured:
    return Measured(value=frechet_distance(*assessment.features.scores))


def _diversity(assessment: Assessment) -> Measured:
    features, count = assessment.features, assessment.count
    by_sample = features.scores[0].unflatten(0, (count, features.rows)).flatten(1)
    return Measured(value=diversity(by_sample, torch.arange(count) // assessment.samples_per_prompt))


ATTRIBUTES = Metric(
    "attributes", "all right", compute=_counted("attributes"), heading="All attributes right",
    legend="share of samples (of clips: of frames) in which the judge finds every attribute of the caption",
    note="Share of samples in which the judge finds everything that the caption asks for; of clips, share of their "
    "frames. The judge is a small classifier that was trained on clean renders only and knows no generator. It does "
    "what larger projects use CLIP for, but it is not CLIP. The interval is Wilson’s.",
    direction="higher", shown="percent", by_sample=True, margin=0.01,
    claim="Every attribute of the caption is right in {} of its samples",
)  # fmt: skip
MOTION = Metric(
    "motion", "motion", compute=_counted("motion"), heading="Motion right",
    legend="share of clips that move as the caption says",
    note="Share of clips whose motion is of the requested kind and direction. The judge finds the object in every "
    "frame; its track shows how far it travels, hops, turns and grows. The thresholds are exact: they are right for "
    "every path that the captions describe.",
    direction="higher", shown="percent", group="motion", claim="Its clips move as requested in {} of the cases",
)  # fmt: skip
SPEED = Metric(
    "speed", "speed", compute=_counted("speed"), heading="Speed right",
    legend="share of clips whose speed is right, too",
    note="Share of clips whose motion is right and as fast as requested.",
    direction="higher", shown="percent", group="motion",
)  # fmt: skip
DYNAMICS = Metric(
    "dynamics", "moves", compute=_counted("dynamics"), heading="Moves",
    legend="amount of motion over the requested amount",
    note="Amount of the requested motion over what the caption means: 1 is as much, 0 stands still. Few-step video "
    "samplers tend to move less than their teachers.",
    shown="decimals", group="motion",
)  # fmt: skip
FLICKER = Metric(
    "flicker", "flicker", compute=_counted("flicker"), heading="Flicker",
    legend="change where nothing moves, in % of the pixel range",
    note="Mean change from frame to frame outside the object, where nothing should change, in percent of the pixel "
    "range.",
    direction="lower", shown="decimals", unit="%", group="motion",
)  # fmt: skip
KERNEL_DISTANCE = Metric(
    "kernel_distance", "kernel distance", compute=_to_renders, heading="Kernel distance",
    legend="distance of the judge's features to those of renders, x1000, with its 95% interval (clips: of frames)",
    note="How far the samples, taken together, are from rendered scenes: the unbiased squared MMD of the judge’s "
    "features with a cubic kernel, times 1000. The formula is that of KID but the features are not, so the numbers "
    "compare only with each other. 0 means that no difference was found; chance can put it a little below. The "
    "interval is the jackknife’s. For clips, this and the next measures compare single frames.",
    direction="lower", shown="distance", interval_in_narrow=True, margin=6.0,
)  # fmt: skip
KERNEL_DISTANCE_TO_TEACHER = Metric(
    "kernel_distance_to_teacher", "to the teacher", compute=_to_teacher, heading="Kernel distance to teacher",
    legend="the same distance to the teacher's samples",
    note="The same to the teacher’s own samples, which the student was made to match. A sampler can be close to the "
    "renders and further from its teacher.",
    direction="lower", shown="distance",
)  # fmt: skip
CHANGE_DISTANCE = Metric(
    "change_distance", "of changes", compute=_of_changes, heading="Kernel distance of changes",
    legend="kernel distance of what changes from frame to frame",
    note="The kernel distance of how much the features change from frame to frame. It is not FVD.",
    direction="lower", shown="distance", group="motion",
)  # fmt: skip
FRECHET_DISTANCE = Metric(
    "frechet_distance", "Frechet distance", compute=_frechet, heading="Fréchet distance",
    legend="Frechet distance to renders",
    note="To rendered scenes, on the same features: the formula of FID, but not FID. It depends on the number of "
    "samples.",
    direction="lower", narrow=False,
)  # fmt: skip
HIGH_FREQUENCY = Metric(
    "high_frequency", "detail", compute=lambda assessment: Measured(value=assessment.detail), heading="Fine detail",
    legend="finest detail over that of renders",
    note="Energy of what half the resolution cannot hold, over that of rendered scenes. 1 is as sharp as they are; "
    "less is blurred, more is noisy or too sharp.",
    shown="decimals",
)  # fmt: skip
DIVERSITY = Metric(
    "diversity", "diversity", compute=_diversity, heading="Diversity",
    legend="distance between samples of one prompt",
    note="Mean distance between the judge’s features of two samples of one prompt. Compare it with the teacher’s: "
    "a much lower value means that the student makes less varied samples.",
)  # fmt: skip
LEGIBILITY = Metric(
    "legibility", "legibility", compute=_counted("legibility"), heading="Legibility",
    legend="log-odds that the judge gives to what the caption asks for",
    note="How clearly the judge sees what the caption asks for: the log-odds that it gives to the requested values, "
    "averaged over attributes and samples, in nats. Unlike the distances, it has no target: a student can be more "
    "legible than its teacher and even than renders, as few-step students have higher preference scores than their "
    "teachers. This does not make it a better copy of either.",
    direction="higher",
)  # fmt: skip
