"""A metric: the share of a judge's feature dimensions in which samples vary at least half as much as renders do."""

from __future__ import annotations

from rmd.evaluation.metrics import Metric
from rmd.worlds.base import Assessment, Measured


def varied_dimensions(assessment: Assessment) -> Measured:
    """Return the share (0 to 1) of feature dimensions whose deviation over the samples is half the renders' or more."""
    samples, renders = assessment.features.scores
    return Measured(value=float((samples.std(0) >= 0.5 * renders.std(0)).float().mean()))


VARIETY = Metric(
    name="variety",
    title="varied",
    heading="Varied dimensions",
    legend="varied: share of the judge's features that vary at least half as much as in renders",
    direction="higher",
    shown="percent",
    compute=varied_dimensions,
    applies=lambda world: not world.moving,
)
