"""Trying a model: samples of a prompt with a stopwatch, and a student's prediction after each of its steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmd.common.errors import RMDError, shown
from rmd.common.pictures import to_image, to_uint8
from rmd.core.randomness import check_seeds, seeded
from rmd.data.captions import check_prompts
from rmd.models.base import Backbone
from rmd.models.registry import wrap
from rmd.sample.samplers import Media, PipelineSampler, StudentSampler
from rmd.sample.timing import Stopwatch, wait_for

MAX_COUNT = 16
"""Largest number of samples at once."""


@dataclass(frozen=True)
class View:
    """The samples as they are at one moment.

    Attributes:
        text: the moment, such as "after step 1 of 4".
        media: one picture or clip per sample.
    """

    text: str
    media: tuple[Media, ...]


@dataclass(frozen=True)
class Tried:
    """Samples of a model, and what they took.

    Attributes:
        seconds: time of the whole call: encoding, sampling and decoding.
        network: the share of it in the network, in seconds.
        evaluations: evaluations of the network per sample.
        views: the clean prediction after every step, of which the last is the result; a teacher has the result alone.
    """

    seconds: float
    network: float
    evaluations: float
    views: tuple[View, ...]


def check_request(prompt: str, seed: int, count: int) -> tuple[list[str], list[int]]:
    """Return the prompts and the seeds of `count` samples of one prompt.

    Raises:
        RMDError: the prompt is not usable text, or a number is out of range.
    """
    check_prompts([prompt])
    if not 1 <= count <= MAX_COUNT:
        raise RMDError(f"the number of samples must be between 1 and {MAX_COUNT}, got {shown(count)}")
    check_seeds(seed, count)
    return [prompt] * count, [seed + index for index in range(count)]


def try_student(sampler: StudentSampler, prompts: Sequence[str], seeds: Sequence[int]) -> Tried:
    """Sample a student, and decode its prediction after every step once the clock has stopped.

    Args:
        sampler: the student, at the wanted size.
        prompts, seeds: one of each per sample.

    Raises:
        RMDError: the arguments do not suit the model, or its samples are not finite.
    """
    pipe, backbone, steps = sampler.pipe, sampler.pipe.backbone, list[Tensor]()

    def keep(_: Any, index: int, at: float, tensors: dict[str, Tensor]) -> None:
        steps.append(tensors["x0"])

    with Stopwatch(backbone.denoiser) as watch:
        began = time.perf_counter()
        output = pipe(
            list(prompts), generator=[seeded(seed) for seed in seeds], height=sampler.height, width=sampler.width,
            num_frames=sampler.frames, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=("x0",),
        )  # fmt: skip
        wait_for(backbone.device)
        seconds = time.perf_counter() - began
    before = [
        View(f"after step {number} of {len(steps)}", decoded(backbone, x0))
        for number, x0 in enumerate(steps[:-1], start=1)
    ]
    views = (*before, View(f"after step {len(steps)} of {len(steps)}: the result", tuple(output[0])))
    return Tried(seconds, watch.seconds, watch.evaluations / len(prompts), views)


def try_teacher(sampler: PipelineSampler, prompts: Sequence[str], seeds: Sequence[int]) -> Tried:
    """Sample a teacher; arguments and errors as for `try_student`."""
    backbone = wrap(sampler.pipe)
    with Stopwatch(backbone.denoiser) as watch:
        began = time.perf_counter()
        samples = sampler.sample(prompts, seeds)
        wait_for(backbone.device)
        seconds = time.perf_counter() - began
    view = View(f"{sampler.steps} steps: the result", tuple(sample.media for sample in samples))
    return Tried(seconds, watch.seconds, watch.evaluations / len(prompts), (view,))


@torch.no_grad()
def decoded(backbone: Backbone, x0: Tensor) -> tuple[Media, ...]:
    """Return latents (n, ...) as n pictures, or as n clips, which are lists of frames."""
    pixels = to_uint8(backbone.decode(x0).float())
    if pixels.ndim == 4:
        return tuple(to_image(picture) for picture in pixels)
    return tuple([to_image(frame) for frame in clip.unbind(1)] for clip in pixels)
