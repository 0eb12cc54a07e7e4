"""Samplers side by side on the scenes: the same prompts and seeds, timed, judged and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rmd.common.errors import RMDError
from rmd.common.pictures import from_image
from rmd.core.crossing import upsample
from rmd.core.metrics import diversity, frechet_distance, high_frequency, kernel_distance, standardise
from rmd.core.plan import Stage, StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.data.prompts import scene_captions
from rmd.evaluate.rows import Motion, Row
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.models.roles import Role
from rmd.sample.samplers import Media, Sampler
from rmd.sample.timing import Stopwatch
from rmd.worlds.references import References
from rmd.worlds.still.accuracy import Accuracy, accuracy
from rmd.worlds.still.grammar import parse
from rmd.worlds.still.judge import Judge

SAMPLES_PER_PROMPT = 2
SAMPLING_SEED = 1_000_003
"""Far from the training seeds: evaluation noise is never training noise."""
TEACHER_STEPS = 25
"""Steps of the teacher's own row, and of its reference samples."""


@dataclass(frozen=True)
class Entry:
    """What a row is called: shortly and uniquely, and as a person reads it."""

    name: str
    label: str


@dataclass(frozen=True)
class Contender(Entry):
    """One way of sampling: whose network, a plan and a guidance scale (1: none).

    A plan that ends below `size` has its pictures enlarged bilinearly; the network is told `size` all the same.
    """

    role: Role
    plan: StepPlan
    guidance: float = 1.0


@dataclass(frozen=True)
class Samples:
    """What a contender made, and what it cost in seconds for all of them."""

    images: Tensor
    denoiser_seconds: float
    loop_seconds: float
    total_seconds: float
    evaluations: int

    @property
    def overhead(self) -> float:
        """Share of the sampler's time outside the network, over the time inside it."""
        return self.loop_seconds / self.denoiser_seconds - 1


def full_plan(backbone: Backbone, side: Stage, steps: int, *, frames: int = 1) -> StepPlan:
    """The teacher's own sampling: one resolution, steps uniform in its time."""
    return build_plan(backbone.schedule, steps=steps, sides=[(side.height, side.width)], thresholds=[], frames=frames)


def evaluation_prompts(count: int, *, seed: int) -> list[str]:
    """Captions of the whole grammar, held-out combinations included, each `SAMPLES_PER_PROMPT` times in a row."""
    distinct = -(-count // SAMPLES_PER_PROMPT)
    captions = scene_captions(distinct, seed=SAMPLING_SEED + seed, training=False)
    return [caption for caption in captions for _ in range(SAMPLES_PER_PROMPT)]


@torch.no_grad()
def run_contender(
    backbone: Backbone, module: nn.Module, contender: Contender, prompts: Sequence[str], *,
    seed: int, size: Stage, batch_size: int = 64, progress: Callable[[int], None] | None = None,
) -> Samples:  # fmt: skip
    """Sample every prompt; sample i's start noise depends on (seed, i) alone, so contenders share it stage by stage."""
    loop, began, images = 0.0, time.perf_counter(), []
    with Stopwatch(module) as watch:
        for start in range(0, len(prompts), batch_size):
            part = list(prompts[start : start + batch_size])
            cond = backbone.encode(part)
            null = backbone.null(len(part)) if contender.guidance != 1.0 else None
            noise = CounterNoise(seed, range(start, start + len(part)), device=backbone.device)
            entered = time.perf_counter()
            latents = sample_latents(
                backbone, module, contender.plan, cond, noise, null=null, guidance=contender.guidance, final=size
            )
            loop += time.perf_counter() - entered
            decoded = backbone.decode(latents).clamp(-1, 1)
            images.append(upsample(decoded, (size.height, size.width), "bilinear"))
            if progress is not None:
                progress(len(part))
    total = time.perf_counter() - began
    return Samples(torch.cat(images), watch.seconds, loop, total, watch.evaluations)


@torch.no_grad()
def run_maker(
    maker: Sampler, networks: Sequence[nn.Module], prompts: Sequence[str], *,
    seed: int, size: Stage, batch_size: int = 64, progress: Callable[[int], None] | None = None,
) -> Samples:  # fmt: skip
    """Sample every prompt by a pipeline's own call, sample i with the seed `seed + i`.

    Pictures of another size are scaled to `size`.

    Args:
        networks: the denoisers of the pipeline, which are timed; what its loop adds is part of `loop_seconds`, as are
            its encoders and its VAE.
    """
    began, images = time.perf_counter(), []
    with Stopwatch(*networks) as watch:
        for start in range(0, len(prompts), batch_size):
            part = list(prompts[start : start + batch_size])
            made = maker.sample(part, range(seed + start, seed + start + len(part)))
            images += [_scaled(sample.media, size) for sample in made]
            if progress is not None:
                progress(len(part))
    total = time.perf_counter() - began
    return Samples(torch.stack(images), watch.seconds, total, total, watch.evaluations)


def _scaled(made: Media, size: Stage) -> Tensor:
    """A picture (3, H, W) at a size: enlarged bilinearly, or reduced by the same filter with antialiasing."""
    if not isinstance(made, Image.Image):
        raise RMDError("the scenes' judge looks at single pictures, not at clips")
    image, shape = from_image(made)[None], (size.height, size.width)
    return F.interpolate(image, shape, mode="bilinear", align_corners=False, antialias=True)[0]


def measure(
    entry: Entry, samples: Samples, prompts: Sequence[str], *, judge: Judge, references: References,
    teacher_seconds: float,
) -> Row:  # fmt: skip
    """Judge samples against captions, fresh renders and the teacher's own samples.

    Args:
        prompts: captions of the scenes' grammar, `SAMPLES_PER_PROMPT` samples of each in a row.
        teacher_seconds: denoiser seconds per image of the teacher's row.
    """
    right, truth, features = assess(samples.images, prompts, judge)
    return judged_row(entry, samples, right, truth, features, references=references, teacher_seconds=teacher_seconds)


def assess(images: Tensor, prompts: Sequence[str], judge: Judge) -> tuple[Tensor, Tensor, Tensor]:
    """What a judge reads in pictures of captions: right (n, 9) bool, the truth (n, 9) asked for, features (n, d)."""
    truth = torch.tensor([found.to_tuple() for text in prompts if (found := parse(text)) is not None])
    right, features = judge.assess(images, truth)
    return right, truth, features


def judged_row(
    entry: Entry, samples: Samples, right: Tensor, truth: Tensor, features: Tensor, *,
    references: References, teacher_seconds: float,
) -> Row:  # fmt: skip
    """The row of samples that `assess` has judged."""
    return row_of(
        entry,
        samples,
        right=accuracy(right, truth),
        features=(features, references.renders, references.teacher),
        detail=high_frequency(samples.images) / references.high_frequency,
        teacher_seconds=teacher_seconds,
    )


def row_of(
    entry: Entry, samples: Samples, *, right: Accuracy, features: tuple[Tensor, Tensor, Tensor],
    detail: float, teacher_seconds: float, frames: int = 1, motion: Motion | None = None,
) -> Row:  # fmt: skip
    """The row of samples that have been judged.

    Args:
        features: of its samples, of renders, and of the teacher's own samples, a row each for every frame shown.
        detail: high-frequency energy over that of renders.
        frames: so many rows of `features` in a run are one sample's.
    """
    ours, renders = standardise(features[0], features[1])
    teacher, _ = standardise(features[2], features[1])
    # frames of one sample, and samples of one prompt, are alike, which the estimate must know
    runs = (SAMPLES_PER_PROMPT * frames, frames)
    to_renders = kernel_distance(ours, renders, per_prompt=runs)
    to_teacher = kernel_distance(ours, teacher, per_prompt=runs)
    count = len(samples.images)
    seconds = samples.denoiser_seconds / count
    return Row(
        name=entry.name,
        label=entry.label,
        nfe=samples.evaluations / count,
        seconds_per_image=seconds,
        speedup=teacher_seconds / seconds,
        seconds_end_to_end=samples.total_seconds / count,
        attributes=right.all_right.value,
        attributes_ci=(right.all_right.low, right.all_right.high),
        attributes_by_name=right.by_name,
        kernel_distance=to_renders.value,
        kernel_distance_ci=(to_renders.low, to_renders.high),
        kernel_distance_to_teacher=to_teacher.value,
        kernel_distance_to_teacher_ci=(to_teacher.low, to_teacher.high),
        frechet_distance=frechet_distance(ours, renders),
        high_frequency=detail,
        diversity=diversity(ours.unflatten(0, (count, frames)).flatten(1), torch.arange(count) // SAMPLES_PER_PROMPT),
        motion=motion,
    )
