"""The comparison of samplers: the same prompts and seeds for all, and contenders that are timed in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from rmd.common.errors import RMDError
from rmd.common.pictures import from_image
from rmd.core.crossing import upsample
from rmd.core.finite import check_pictures
from rmd.core.plan import Stage, StepPlan, build_plan
from rmd.core.randomness import CounterNoise
from rmd.models.base import Backbone
from rmd.models.generate import sample_latents
from rmd.sample.samplers import Media, Sampler
from rmd.sample.timing import Stopwatch
from rmd.worlds.base import World

SAMPLES_PER_PROMPT = 2
SAMPLING_SEED = 1_000_003
"""Base of the evaluation seeds, far from training seeds, so that evaluation noise is never training noise."""
TEACHER_STEPS = 25
"""Steps of the teacher's own row, and of its reference samples."""

Progress = Callable[[int], None]
"""Called with the number of samples that were made since the last call."""


@dataclass(frozen=True)
class Samples:
    """The samples of a contender, (n, 3, H, W) or (n, 3, T, H, W) in [-1, 1], and their total cost in seconds."""

    images: Tensor
    denoiser_seconds: float
    loop_seconds: float
    total_seconds: float
    evaluations: int

    @property
    def overhead(self) -> float:
        """The sampler's time outside the network, over the time inside it."""
        return self.loop_seconds / self.denoiser_seconds - 1


class Contender(Protocol):
    """A way of sampling that is to be measured."""

    @property
    def name(self) -> str:
        """Short and unique."""

    @property
    def label(self) -> str:
        """The name as people read it."""

    def sample(
        self, prompts: Sequence[str], *, seed: int, size: Stage, batch_size: int = 64, progress: Progress | None = None
    ) -> Samples:
        """Make one sample of each prompt, of a size; sample i does not depend on its batch."""


@dataclass(frozen=True)
class PlanContender:
    """A network of a backbone, a student's or the teacher's, that samples by a plan.

    If the plan ends below the requested size, its pictures are enlarged bilinearly; the network is still conditioned on
    the requested size.

    Attributes:
        guidance: classifier-free guidance scale; 1 is none.
    """

    name: str
    label: str
    backbone: Backbone
    network: nn.Module
    plan: StepPlan
    guidance: float = 1.0

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], *, seed: int, size: Stage, batch_size: int = 64, progress: Progress | None = None
    ) -> Samples:
        """Sample every prompt; the start noise of sample i depends only on (seed, i), so contenders share it."""
        loop, began, images, backbone = 0.0, time.perf_counter(), [], self.backbone
        with Stopwatch(self.network) as watch:
            for start in range(0, len(prompts), batch_size):
                part = list(prompts[start : start + batch_size])
                cond = backbone.encode(part)
                null = backbone.null(len(part)) if self.guidance != 1.0 else None
                noise = CounterNoise(seed, range(start, start + len(part)), device=backbone.device)
                entered = time.perf_counter()
                latents = sample_latents(
                    backbone, self.network, self.plan, cond, noise, null=null, guidance=self.guidance, final=size
                )
                loop += time.perf_counter() - entered
                decoded = backbone.decode(latents)
                check_pictures(decoded)
                images.append(upsample(decoded.clamp(-1, 1), (size.height, size.width), "bilinear").float().cpu())
                if progress is not None:
                    progress(len(part))
        total = time.perf_counter() - began
        return Samples(torch.cat(images), watch.seconds, loop, total, watch.evaluations)


@dataclass(frozen=True)
class SamplerContender:
    """A pipeline that samples by its own call, such as any diffusers pipeline.

    Attributes:
        networks: its denoisers, which are timed. The pipeline's loop, encoders and VAE count as `loop_seconds`.
    """

    name: str
    label: str
    sampler: Sampler
    networks: Sequence[nn.Module]

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[str], *, seed: int, size: Stage, batch_size: int = 64, progress: Progress | None = None
    ) -> Samples:
        """Sample every prompt, sample i with the seed `seed + i`; pictures of another size are scaled to `size`."""
        began, images = time.perf_counter(), []
        with Stopwatch(*self.networks) as watch:
            for start in range(0, len(prompts), batch_size):
                part = list(prompts[start : start + batch_size])
                made = self.sampler.sample(part, range(seed + start, seed + start + len(part)))
                images += [_scaled(sample.media, size) for sample in made]
                if progress is not None:
                    progress(len(part))
        total = time.perf_counter() - began
        return Samples(torch.stack(images), watch.seconds, total, total, watch.evaluations)


def full_plan(backbone: Backbone, side: Stage, steps: int, *, frames: int = 1) -> StepPlan:
    """Return the teacher's own way of sampling: one resolution, with steps that are uniform in its time."""
    return build_plan(backbone.schedule, steps=steps, sides=[(side.height, side.width)], thresholds=[], frames=frames)


def evaluation_prompts(world: World, count: int, *, seed: int) -> list[str]:
    """Return captions of the whole grammar (held-out ones included), each `SAMPLES_PER_PROMPT` times in a row."""
    distinct = -(-count // SAMPLES_PER_PROMPT)
    captions = world.captions(distinct, seed=SAMPLING_SEED + seed, training=False)
    return [caption for caption in captions for _ in range(SAMPLES_PER_PROMPT)]


def _scaled(made: Media, size: Stage) -> Tensor:
    """Return a picture as (3, H, W) of a size: enlarged bilinearly, or reduced by the same filter with antialiasing."""
    if not isinstance(made, Image.Image):
        raise RMDError("the scenes' judge looks at single pictures, not at clips")
    image, shape = from_image(made)[None], (size.height, size.width)
    return F.interpolate(image, shape, mode="bilinear", align_corners=False, antialias=True)[0]
