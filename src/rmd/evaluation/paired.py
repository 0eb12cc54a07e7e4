"""Samples a teacher at several resolutions from the same prompts and corresponding noise, and lets a judge look.

A low-resolution sample starts from the part of the full-resolution sample's noise that its own resolution sees, so the
two have the same layout as far as the teacher is consistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rmd.common.errors import RMDError
from rmd.core.agreement import paired_kernel_distance
from rmd.core.crossing import low_part, upsample
from rmd.core.finite import check_pictures
from rmd.core.metrics import Interval, standardise
from rmd.core.noise import NoiseSchedule
from rmd.core.plan import Crossing, Stage, Step, StepPlan, build_plan
from rmd.core.randomness import CounterNoise, NoiseSource
from rmd.core.shift import shift_time
from rmd.core.times import logsnr_at
from rmd.data.prompts import load_prompts
from rmd.evaluation.protocol import SAMPLES_PER_PROMPT, SAMPLING_SEED, evaluation_prompts
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.recipes.schema import Recipe
from rmd.sample.progress import Progress, running_total
from rmd.worlds.base import Assessment, Judge, Measured, World
from rmd.worlds.registry import judge_of, world_of

FINISH = 3
"""The teacher finishes a state at the crossing with a third of its steps."""


@dataclass
class PairedTeacher:
    """A teacher that samples the same prompts with corresponding noise at several resolutions.

    Attributes:
        final: the resolution at which noise is drawn, and on which the teacher is conditioned.
        seed: seed of the noise.
        batch: number of samples that are made at once.
        judge, world: the judge of the prompts' world; None for other prompts.
        per_prompt: number of consecutive samples that share a prompt.
    """

    backbone: Backbone
    recipe: Recipe
    final: Stage
    prompts: Sequence[str]
    steps: int
    seed: int
    batch: int
    progress: Progress
    judge: Judge | None
    world: World | None
    per_prompt: int

    @torch.no_grad()
    def latents(self, plan: StepPlan, what: str, low: Tensor | None = None) -> Tensor:
        """Return latents (n, ...) of all prompts, on the CPU.

        Args:
            plan: the plan; noise below the final resolution is the low part of that of the final one.
            what: name of this work in reports of progress.
            low: latents (n, ...) that replace the prediction of the plan's first step.
        """
        backbone, guidance, made = self.backbone, self.recipe.method.guidance, []
        advance = running_total(self.progress, what, len(self.prompts))
        for start in range(0, len(self.prompts), self.batch):
            part = list(self.prompts[start : start + self.batch])
            full = backbone.latent_shape(len(part), self.final.height, self.final.width, self.recipe.frames)
            source = CounterNoise(self.seed, range(start, start + len(part)), device=backbone.device)
            given = None if low is None else low[start : start + len(part)].to(backbone.device)

            def replace(step: Step, x0_hat: Tensor, x_t: Tensor, given: Tensor | None = given) -> Tensor | None:
                return given.to(x0_hat) if given is not None and step.index == 1 else None

            latents = sample_latents(
                backbone, backbone.denoiser, plan, backbone.encode(part), LowNoise(source, full),
                null=backbone.null(len(part)) if guidance != 1.0 else None, guidance=guidance, final=self.final,
                on_step=replace,
            )  # fmt: skip
            made.append(latents.cpu())
            advance(len(part))
        return torch.cat(made)

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures in [-1, 1], on the CPU."""
        made = []
        for part in latents.split(self.batch):
            images = self.backbone.decode(part.to(self.backbone.device))
            check_pictures(images)
            made.append(images.float().clamp(-1, 1).cpu())
        return torch.cat(made)

    def assess(self, images: Tensor) -> Assessment:
        """Let the judge read pictures, which are brought to its size."""
        assert self.judge is not None and self.world is not None
        side = self.world.side
        sized = pooled(images, (min(images.shape[-2], side), min(images.shape[-1], side)))
        images = upsample(sized, (side, side), "bilinear")
        return self.judge.assess(images, list(self.prompts), samples_per_prompt=self.per_prompt)

    def distance(self, ours: Assessment, theirs: Assessment) -> Measured:
        """Return the kernel distance of the judge's features of paired samples, as z-scores by `theirs`."""
        x, y = standardise(ours.features.samples, theirs.features.samples)
        return measured(paired_kernel_distance(x, y, per_prompt=self.per_prompt * ours.features.rows))


class LowNoise:
    """Noise that is drawn at the final resolution; a lower resolution gets the part of it that it sees."""

    def __init__(self, source: NoiseSource, full: Sequence[int]) -> None:
        self.source, self.full = source, tuple(full)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        noise = self.source.normal(self.full, purpose)
        return noise if tuple(shape) == self.full else low_part(noise, (shape[-2], shape[-1]))

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        return self.source.uniform(shape, purpose)


def paired_teacher(
    backbone: Backbone, recipe: Recipe, final: Stage, *, samples: int, steps: int, batch: int, progress: Progress
) -> PairedTeacher:
    """Return a recipe's teacher with prompts: captions of its world if it belongs to one, or else the recipe's own.

    Args:
        backbone: the teacher, on the device that computes.
        recipe: the recipe.
        final: the resolution at which noise is drawn.
        samples: number of prompts; captions of a world come in pairs.
        steps: the teacher's sampling steps.
        batch: number of samples that are made at once.
        progress: called with the name of a piece of work, how much of it is done, and its total.

    Raises:
        RMDError: the prompts, the judge's weights or the teacher's statistics are missing.
    """
    seed = SAMPLING_SEED + recipe.train.seed
    try:
        world = world_of(recipe)
    except RMDError:
        prompts = load_prompts(recipe.data, seed=recipe.train.seed).batch(0, samples)[0]
        return PairedTeacher(backbone, recipe, final, prompts, steps, seed, batch, progress, None, None, 1)
    prompts = evaluation_prompts(world, samples, seed=recipe.train.seed)
    judge = judge_of(recipe)
    return PairedTeacher(
        backbone, recipe, final, prompts, steps, seed, batch, progress, judge, world, SAMPLES_PER_PROMPT
    )


def finishing_plan(
    backbone: Backbone, low: Stage, final: Stage, sigma: float, steps: int, *, frames: int = 1
) -> StepPlan:
    """Return a plan whose first step is at the low resolution, and whose others finish from sigma at the final one.

    Args:
        backbone: the teacher.
        low, final: the two stages.
        sigma: noise level of the crossing, as sigma of a rectified flow. Its noise is fresh, its upsampling the DCT.
        steps: the teacher's steps from pure noise; it finishes with a third of them.
        frames: number of frames of a video; 1 for pictures.
    """
    schedule = backbone.schedule.for_size(final.height, final.width, frames)
    times = finishing_times(schedule, float(schedule.time(logsnr_at(sigma))), steps)
    return build_plan(
        schedule, sides=[(low.height, low.width), (final.height, final.width)], times=[1000.0, *times],
        split=[1, len(times)], crossing=Crossing(upsample="dct", rule="block", beta=0.0), frames=frames,
    )  # fmt: skip


def finishing_times(schedule: NoiseSchedule, first: float, steps: int) -> list[float]:
    """Return the teacher times of the steps that finish a state, which are uniform in the schedule's own time.

    Args:
        schedule: the teacher's noise schedule.
        first: time of the state and of the first step, in 0 to 1000.
        steps: the teacher's steps from pure noise; it finishes with a third of them.
    """
    count, start = max(1, round(steps / FINISH)), shift_time(first, 1.0 / schedule.shift)
    return [shift_time(start * (count - i) / count, schedule.shift) for i in range(count)]


def pooled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Reduce pictures (n, 3, H, W), or clips (n, 3, T, H, W) frame by frame, to a size.

    At a ratio that is a whole number these are means of blocks, and otherwise an antialiased bilinear filter.
    """
    if images.shape[-2:] == size:
        return images
    if images.ndim == 5:
        frames = images.transpose(1, 2)
        small = pooled(frames.flatten(0, 1), size)
        return small.reshape(*frames.shape[:3], *size).transpose(1, 2)
    if images.shape[-2] % size[0] == 0 and images.shape[-1] % size[1] == 0:
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def measured(interval: Interval) -> Measured:
    """Return an interval as a value that can be stored."""
    return Measured(value=interval.value, low=interval.low, high=interval.high)
