"""The one way from a model to numbers: sample the prompts, let the world's judge assess, and compute the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rmd.core.plan import Stage
from rmd.evaluation.metrics import METRICS, metrics_of
from rmd.evaluation.protocol import SAMPLES_PER_PROMPT, Contender, Progress, Samples
from rmd.evaluation.rows import Row
from rmd.worlds.base import Assessment, Judge, World


@dataclass(frozen=True)
class Evaluated:
    """A contender's row, its samples, and what the judge read in them."""

    row: Row
    samples: Samples
    assessment: Assessment


def evaluate(
    contender: Contender, world: World, judge: Judge, prompts: Sequence[str], *, seed: int, size: Stage | None = None,
    samples_per_prompt: int = SAMPLES_PER_PROMPT, metrics: Sequence[str] | None = None,
    batch_size: int = 64, progress: Progress | None = None,
) -> Evaluated:  # fmt: skip
    """Sample every prompt with a contender, judge the samples, and measure them.

    Args:
        judge: the world's judge with the reference statistics of a teacher.
        prompts: captions of the world; those of the same caption are consecutive.
        seed: seed of the sampling noise.
        size: size of the samples; by default that at which the judge looks at them.
        samples_per_prompt: number of consecutive samples that share a caption.
        metrics: names of the metrics; by default those that the world reports.
        progress: called with the number of samples after every batch.

    Raises:
        RMDError: a prompt is not a caption of the world, a sample is not finite, or there are too few samples.
    """
    size = Stage(1, world.side, world.side) if size is None else size
    samples = contender.sample(prompts, seed=seed, size=size, batch_size=batch_size, progress=progress)
    assessment = judge.assess(samples.images, prompts, samples_per_prompt=samples_per_prompt)
    count = len(samples.images)
    seconds = samples.denoiser_seconds / count
    names = metrics_of(world) if metrics is None else metrics
    row = Row(
        name=contender.name,
        label=contender.label,
        nfe=samples.evaluations / count,
        seconds_per_image=seconds,
        speedup=1.0,  # over itself: whoever shows several rows knows which of them is the reference
        seconds_end_to_end=samples.total_seconds / count,
        measures={name: METRICS.get(name).compute(assessment) for name in names},
    )
    return Evaluated(row, samples, assessment)
